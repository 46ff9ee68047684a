"""Training, evaluation and the command line of VideoMambaPro."""
