"""Training: the loop, what it is put together from, and the ranks that run it."""
