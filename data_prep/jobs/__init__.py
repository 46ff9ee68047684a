"""Processes that claim shards, prepare their clips and write them."""
