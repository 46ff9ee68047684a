"""The commands of `vmp`, one noun a file, and what each does beyond the library."""
