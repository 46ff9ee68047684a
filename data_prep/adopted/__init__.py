"""Indexing of WebDataset tars that other tools made, where they lie and as they are."""
