"""Atomic checkpoints with a checksum in the file name: ``step-000000500-<16 hex digits of SHA-256>.pt``.

A single rename publishes the file and its checksum. A file whose content does not match its name is damaged.
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
    """Write a checkpoint, then delete all but the ``keep`` latest ones.

    Raises:
        UserError: the file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = ""

    def file_name(partial_file: Path) -> str:
        nonlocal name
        name = f"step-{step:09d}-{_digest(partial_file)}.pt"
        return name

    with atomic_write(folder / "checkpoint", file_name) as partial_file, partial_file.open("wb") as file:
        torch.save({"schema": SCHEMA, "step": step, **state}, file)
    for path in list_checkpoints(folder):  # delete other saves of this step, and damaged later steps
        if _step(path) >= step and path.name != name:
            path.unlink()
    prune(folder / name, keep)
    return folder / name


def prune(latest: Path, keep: int) -> None:
    """Delete all checkpoints before ``latest`` except the last ``keep - 1``."""
    for path in list_checkpoints(latest.parent):
        if _step(path) < _step(latest):
            keep -= 1
            if keep < 1:
                path.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, latest step first."""
    paths = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name) and path.is_file()]
    return sorted(paths, key=_step, reverse=True)


def load_latest(
    folder: Path,
    warn: Callable[[str], None] = lambda message: None,
    accept: Callable[[dict[str, Any]], None] = lambda state: None,
) -> Path | None:
    """Load the latest valid checkpoint and return its path; None if the folder has no checkpoints.

    Args:
        folder: ``checkpoints`` folder of a run.
        warn: called with a message about each invalid checkpoint.
        accept: called with the state of a checkpoint; raises if the state does not fit the run.

    Raises:
        UserError: all checkpoints are invalid, or one was written by a newer version.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            accept(load(path))
        except DamagedCheckpoint as error:
            problem = str(error)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            problem = f"it does not fit this run: {(str(error).splitlines() or [''])[0]}"
        else:
            return path
        warn(f"could not load {path}: {problem}")
    if paths:
        tried = f"could not load any of the checkpoints in {folder} ({len(paths)} tried)"
        raise UserError(f"{tried}; start a new run with another --out")
    return None


class DamagedCheckpoint(Exception):
    """Error for an unreadable checkpoint; the message is the reason."""


def load(path: Path) -> dict[str, Any]:
    """Load the state in a checkpoint onto the CPU. Only tensors and plain values are unpickled.

    Raises:
        DamagedCheckpoint: the file is damaged.
        UserError: the file was written by a newer version.
    """
    if _digest(path) != _NAME.fullmatch(path.name)[2]:
        raise DamagedCheckpoint("its checksum does not match its name")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes can raise any type of error
        raise DamagedCheckpoint((str(error).splitlines() or [type(error).__name__])[0]) from None
    if not isinstance(state, dict) or not isinstance(state.get("schema"), int) or state.get("step") != _step(path):
        raise DamagedCheckpoint("it does not contain the state of a run")
    if state["schema"] > SCHEMA:
        raise UserError(f"{path} was written by a newer crosschannel (schema {state['schema']}); update crosschannel")
    return state


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _digest(path: Path) -> str:
    return digest(path)[:16]
