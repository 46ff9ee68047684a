"""Training clips from FFCV's .beton format instead of the videos: an optional package."""
