"""What is done with finished shards: sealed, proven, surveyed and shown."""
