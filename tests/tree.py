"""Snapshots of folders, to check that a command changed nothing."""

import hashlib
import stat
from pathlib import Path


def snapshot(root: Path) -> dict[str, tuple]:
    """Return file type, permissions and content digest (of links: the target) of each path below a folder."""
    entries = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        entries[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), content)
    return entries
