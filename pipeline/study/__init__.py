"""Studies: many small trainings of a planned design, and what they say with intervals."""
