"""Seals finished shards, verifies and rebuilds them, and reports on them."""
