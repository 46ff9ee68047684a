"""Sharded checkpoints, which count only once they are committed."""
