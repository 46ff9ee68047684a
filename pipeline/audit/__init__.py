"""`vmp audit`: proof from the files of a run that every step saw exactly the samples it should."""
