"""One source video: looked at, decoded strictly, and brought into the normal form."""
