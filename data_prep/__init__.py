"""Turns videos and annotations into sealed WebDataset shards, without importing torch."""
