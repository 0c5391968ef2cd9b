"""Copies data to a node's own disk before the work begins, once a node."""

import fcntl
import os
import shutil
from hashlib import sha256
from pathlib import Path

from crosschannel.data.shards import CLASSES, expand
from crosschannel.files import user_path


def stage(data: str, scratch: str, attempt: str = "") -> str:
    """Copy a folder, or shards with what lies beside them, unless they are there.

    All ranks of a node call it: one copies, the others wait.

    Args:
        data: a folder, a shard or a brace pattern of shards.
        scratch: a folder on the node's disk; variables such as ``$SLURM_TMPDIR`` are filled in.
        attempt: whoever comes second in the same attempt does not look again.

    Returns:
        the same data below ``scratch``.

    Raises:
        OSError: it cannot be copied.
        ValueError: ``scratch`` holds a variable that is not set, or there is not enough room.
    """
    place = os.path.expandvars(scratch)
    if "$" in place:
        raise ValueError(f"{scratch} holds a variable that is not set here")
    source = user_path(data).absolute()
    name = sha256(str(source).encode()).hexdigest()[:16]
    target = Path(place) / f"crosschannel-{os.getuid()}-{name}"
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("a+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not attempt or lock.read() != attempt:
            _copy(source, target)
            lock.truncate(0)
            lock.write(attempt)
    return str(target if source.is_dir() else target / source.name)


def _copy(source: Path, target: Path) -> None:
    root = source if source.is_dir() else source.parent
    if source.is_dir():
        files = [Path(top, name) for top, _, names in os.walk(source, followlinks=True) for name in names]
    else:
        shards = [Path(name) for name in expand(str(source))]
        beside = [shard.with_name(shard.name + ".idx") for shard in shards] + [root / CLASSES]
        files = [*shards, *(path for path in beside if path.is_file())]
    todo = [path for path in files if not _is_copy(path, target / path.relative_to(root))]
    needed, free = sum(path.stat().st_size for path in todo), shutil.disk_usage(target).free
    if needed > free:
        raise ValueError(f"{needed / 2**30:.1f} GiB are needed in {target} and {free / 2**30:.1f} GiB are free")
    for path in todo:
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(copy.name + ".part")
        shutil.copy2(path, part)
        part.replace(copy)


def _is_copy(path: Path, copy: Path) -> bool:
    if not copy.is_file():
        return False
    ours, theirs = copy.stat(), path.stat()
    return (ours.st_size, ours.st_mtime_ns // 10**6) == (theirs.st_size, theirs.st_mtime_ns // 10**6)
