"""What callers of this package catch."""


class DataError(ValueError):
    """Bad input: one line that says what, where, why and what to do."""

    exit_status = 2
