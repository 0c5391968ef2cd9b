"""A folder as what can be compared before and after."""

import hashlib
import stat
from pathlib import Path


def snapshot(root: Path) -> dict[str, tuple]:
    """Kind, rights and content of everything below a folder, by relative path."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        found[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), content)
    return found
