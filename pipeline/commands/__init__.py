"""The commands of `vmp`, one noun per file."""
