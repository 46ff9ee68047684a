"""Training clips from a cache in FFCV's .beton format; FFCV is an optional package."""
