"""What a run leaves behind: its directory, metrics, provenance, status."""
