"""Scores of a model on shards: views, ranks, and the checkpoints of a run."""
