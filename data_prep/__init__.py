"""Videos and annotations in, sealed WebDataset shards out. Imports without torch."""
