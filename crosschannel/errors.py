"""The one exception for everything that a user can put right."""

import errno
from collections.abc import Sequence

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_FILE = _DISK | {
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "EMFILE", "ENFILE", "ENAMETOOLONG", "ELOOP")
}


class UserError(Exception):
    """Bad input: one sentence that names the offender and what would be right.

    Command lines catch it once, print it on stderr without a traceback and exit with code 2.
    """


def check_rules(rules: Sequence[tuple[bool, str, object]]) -> None:
    """Raise a :class:`UserError` for the first (holds, rule, value) that does not hold."""
    for holds, rule, value in rules:
        if not holds:
            raise UserError(f"{rule}, got {value}")


def file_problem(error: OSError) -> str:
    """What a user can put right about files and disks, in a sentence; empty for anything else."""
    if error.filename and error.errno in _FILE:
        return f"{error.filename}: {error.strerror}"
    return f"cannot write: {error.strerror}" if error.errno in _DISK else ""
