"""Atomic, checksummed checkpoints: ``step-000000500-<16 hex digits of SHA-256>.pt``.

The checksum is in the name, so one rename publishes both; a file whose bytes do not match its name is damaged.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crosschannel.errors import UserError
from crosschannel.files import atomic_write, digest

SCHEMA = 1
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and drop all but the newest ``keep``.

    Raises:
        UserError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = ""

    def named(part: Path) -> str:
        nonlocal name
        name = f"step-{step:09d}-{_digest(part)}.pt"
        return name

    with atomic_write(folder / "checkpoint", named) as part, part.open("wb") as file:
        torch.save({"schema": SCHEMA, "step": step, **state}, file)
    for other in list_checkpoints(folder):  # the same step saved anew, or a damaged later one that was passed over
        if _step(other) >= step and other.name != name:
            other.unlink()
    prune(folder / name, keep)
    return folder / name


def prune(load_latest: Path, keep: int) -> None:
    """Drop the checkpoints before one, except so many that ``keep`` are left with it."""
    for old in list_checkpoints(load_latest.parent):
        if _step(old) < _step(load_latest):
            keep -= 1
            if keep < 1:
                old.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    paths = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name) and path.is_file()]
    return sorted(paths, key=_step, reverse=True)


def load_latest(
    folder: Path,
    warn: Callable[[str], None] = lambda message: None,
    accept: Callable[[dict[str, Any]], None] = lambda state: None,
) -> Path | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Args:
        folder: a run's ``checkpoints``.
        warn: told about every damaged one.
        accept: is given the state, and raises for one that is none of this run's.

    Raises:
        UserError: there are some, but all are damaged; or one is of a newer version.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            accept(load(path))
        except Damaged as error:
            problem = str(error)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            problem = f"it is of another net: {(str(error).splitlines() or [''])[0]}"
        else:
            return path
        warn(f"{path} is damaged ({problem}); trying the one before it")
    if paths:
        raise UserError(f"all {len(paths)} checkpoints in {folder} are damaged; start anew in another folder")
    return None


class Damaged(Exception):
    """A checkpoint that cannot be read; the message says why."""


def load(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote, on the CPU. Nothing but tensors and plain values is unpickled.

    Raises:
        Damaged: the file is not what was written.
        UserError: it is of a newer version.
    """
    if _digest(path) != _NAME.fullmatch(path.name)[2]:
        raise Damaged("its checksum does not match its name")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they like on bytes they cannot read
        raise Damaged((str(error).splitlines() or [type(error).__name__])[0]) from None
    if not isinstance(state, dict) or not isinstance(state.get("schema"), int) or state.get("step") != _step(path):
        raise Damaged("it holds no state of a run")
    if state["schema"] > SCHEMA:
        raise UserError(f"{path} was written by a newer crosschannel (schema {state['schema']}); update it")
    return state


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _digest(path: Path) -> str:
    return digest(path)[:16]
