"""What callers of this package catch, and whose fault an `OSError` is."""

from __future__ import annotations

import errno
import os


def one_line(text: object) -> str:
    """For a terminal: what does not print, as labels and file names may hold, is escaped.

    Control sequences, line ends and turns of direction of Unicode, bytes that are no text.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(text)
    )


class DataError(ValueError):
    """Bad input: one line that says what, where, why and what to do."""

    exit_status = 2


class MachineTrouble(Exception):  # noqa: N818 - nobody's error in the input or the program
    """The machine failed (disk, memory, network): nothing may be concluded about the input.

    One line. Work stops, keeps what is done, and goes on when the same command is run again.
    """


_VERDICTS = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ELOOP: "missing",
    errno.ENAMETOOLONG: "missing",
    errno.EACCES: "unreadable",
    errno.EPERM: "unreadable",
    errno.EISDIR: "not_video",
}


_OF_MACHINE = frozenset(
    {
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


def is_of_machine(error: OSError) -> bool:
    """Whether what is written or read does not matter: disk full, I/O error, stale handle."""
    return error.errno in _OF_MACHINE


def verdict(error: OSError, path: str | os.PathLike[str]) -> tuple[str, str]:
    """(code, detail), when the error is a property of the file at `path`.

    Raises `MachineTrouble` for any other: no space, I/O errors, stale handles, too many open files.
    """
    reason = error.strerror or str(error)
    code = _VERDICTS.get(error.errno or 0)
    if code is None:
        raise MachineTrouble(
            f"{os.fspath(path)!r} cannot be read ({reason}); run the same command again when the "
            "machine is well, or take the file away to go on without it"
        ) from error
    return code, reason


def refused(error: OSError, message: str) -> DataError:
    """`message` with the reason, as bad input; `MachineTrouble` is raised when it is not that.

    For what a user named and cannot be used: no such place, no permission, read-only.
    """
    text = f"{message} ({error.strerror or error})"
    if error.errno in _VERDICTS or error.errno in (errno.EEXIST, errno.EROFS, errno.EINVAL):
        return DataError(text)
    raise MachineTrouble(text) from error
