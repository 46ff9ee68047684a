"""The processes that claim shards, make their clips and write them."""
