"""Submit, watch and requeue jobs through Submitit. Imports without torch."""
