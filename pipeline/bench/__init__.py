"""Benchmarks that give speed as ratios to peers measured in the same run."""
