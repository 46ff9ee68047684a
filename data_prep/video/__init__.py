"""Inspects a source video, decodes it strictly, and converts it to the normal form."""
