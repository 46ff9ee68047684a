"""Exit statuses of a run and of `vmp`."""

DONE = 0
FAILED = 1
BAD_INPUT = 2
RESUMABLE = 75
"""The run stopped early with a committed checkpoint; the same command resumes it."""
