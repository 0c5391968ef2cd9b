"""Staging: copies data to a node-local disk, once per node, before the run starts."""

import fcntl
import os
import shutil
from hashlib import sha256
from pathlib import Path

from crosschannel.data.shards import CLASSES, expand
from crosschannel.files import user_path


def stage(data: str, scratch: str, attempt: str = "") -> str:
    """Copy a folder, or shards with their index and class files, unless the copies are up to date.

    All ranks of a node call this function. One of them copies while the others wait.

    Args:
        data: folder, shard or brace pattern of shards.
        scratch: folder on the node's disk; variables such as ``$SLURM_TMPDIR`` are expanded.
        attempt: id of the attempt. Copies made in the same attempt are not checked again.

    Returns:
        path of the copied data: a folder, shard or brace pattern, like ``data``.

    Raises:
        OSError: the data cannot be copied.
        ValueError: ``scratch`` contains an unset variable, or the disk has too little free space.
    """
    expanded = os.path.expandvars(scratch)
    if "$" in expanded:
        raise ValueError(f"scratch {scratch} contains a variable that is not set on this node")
    source = user_path(data).absolute()
    name = sha256(str(source).encode()).hexdigest()[:16]
    target = Path(expanded) / f"crosschannel-{os.getuid()}-{name}"
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
    """Copy files that are missing or outdated. Each file is copied atomically."""
    root = source if source.is_dir() else source.parent
    if source.is_dir():
        files = [Path(top, name) for top, _, names in os.walk(source, followlinks=True) for name in names]
    else:
        shards = [Path(name) for name in expand(str(source))]
        companions = [shard.with_name(shard.name + ".idx") for shard in shards] + [root / CLASSES]
        files = [*shards, *(path for path in companions if path.is_file())]
    outdated = [path for path in files if not _is_copy(path, target / path.relative_to(root))]
    needed, free = sum(path.stat().st_size for path in outdated), shutil.disk_usage(target).free
    if needed > free:
        raise ValueError(f"the data need {needed / 2**30:.1f} GiB in {target}, but {free / 2**30:.1f} GiB are free")
    for path in outdated:
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        temp_file = copy.with_name(copy.name + ".part")
        shutil.copy2(path, temp_file)
        temp_file.replace(copy)


def _is_copy(path: Path, copy: Path) -> bool:
    """Return whether ``copy`` exists and has the size and mtime of ``path``."""
    if not copy.is_file():
        return False
    copied, original = copy.stat(), path.stat()
    return (copied.st_size, copied.st_mtime_ns // 10**6) == (original.st_size, original.st_mtime_ns // 10**6)
