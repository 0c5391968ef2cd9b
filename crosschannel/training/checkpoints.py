"""Atomic, checksummed checkpoints: ``step-000000500-<16 hex digits of SHA-256>.pt``.

The checksum is in the name, so one rename publishes both; a file whose bytes do not match its name is damaged.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crosschannel.errors import UserError

SCHEMA = 1
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and drop all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "writing.part"
    try:
        with part.open("wb") as file:
            torch.save({"schema": SCHEMA, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write a checkpoint into {folder}: {error.__context__ or error}") from error
    path = folder / f"step-{step:09d}-{_digest(part)}.pt"
    part.replace(path)
    _sync(folder)
    for other in found(folder):  # the same step saved anew, or a damaged later one that was passed over
        if _step(other) >= step and other != path:
            other.unlink()
    for old in found(folder)[keep:]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    paths = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=_step, reverse=True)


def newest(folder: Path, warn: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Args:
        folder: a run's ``checkpoints``.
        warn: told about every damaged one.

    Raises:
        UserError: there are some, but all are damaged.
    """
    paths = found(folder)
    for path in paths:
        if _digest(path) != _NAME.fullmatch(path.name)[2]:
            warn(f"{path} is damaged (its checksum does not match its name); trying the one before it")
            continue
        return path
    if paths:
        raise UserError(f"all {len(paths)} checkpoints in {folder} are damaged; start anew in another folder")
    return None


def load(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote, on the CPU.

    Raises:
        UserError: it is of a newer version.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["schema"] > SCHEMA:
        raise UserError(f"{path} was written by a newer crosschannel (schema {state['schema']}); update it")
    return state


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
