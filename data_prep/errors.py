"""The errors that callers of this package catch, and the rules that classify an `OSError`."""

from __future__ import annotations

import errno
import os


def one_line(text: object) -> str:
    """Escape what labels and file names may hold but a terminal must not receive.

    These are control sequences, line ends, Unicode direction marks, and bytes that are not text.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(text)
    )


class DataError(ValueError):
    """Bad input: one line that says what, where, why and what to do."""

    exit_status = 2


class MachineTrouble(Exception):  # noqa: N818 - no error of the input or the program
    """A failure of the machine (disk, memory, network), which says nothing about the input.

    The message is one line. Work stops, keeps what is done, and continues when the same command is
    run again.
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
    """Whether the machine, not the file, is at fault: disk full, I/O error, stale handle."""
    return error.errno in _OF_MACHINE


def verdict(error: OSError, path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return (code, detail) for an error that is a property of the file at `path`.

    Raises `MachineTrouble` for all others: no space, I/O error, stale handle, too many open files.
    """
    reason = error.strerror or str(error)
    code = _VERDICTS.get(error.errno or 0)
    if code is None:
        raise MachineTrouble(
            f"{os.fspath(path)!r} cannot be read ({reason}); run the same command again once the "
            "machine has recovered, or remove the file to continue without it"
        ) from error
    return code, reason


def refused(error: OSError, message: str) -> DataError:
    """Make a `DataError` of `message` and the reason of `error`.

    It is for a place that a user named and that cannot be used: absent, not permitted, read-only.
    Raises `MachineTrouble` when the machine is at fault instead.
    """
    text = f"{message} ({error.strerror or error})"
    if error.errno in _VERDICTS or error.errno in (errno.EEXIST, errno.EROFS, errno.EINVAL):
        return DataError(text)
    raise MachineTrouble(text) from error
