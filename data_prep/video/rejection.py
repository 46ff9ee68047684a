"""The exception that carries the reason for leaving an input out."""

from __future__ import annotations


class Rejection(Exception):  # noqa: N818 - an outcome, not a failure of the program
    """The decision to leave an input out for the reason `code`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail
