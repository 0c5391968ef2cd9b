"""Choice of the device, and of the values of ``auto`` settings on that device (from a fixed table, not a benchmark)."""

import re
from pathlib import Path
from typing import Any, TypeVar

import torch

from crosschannel.config.keys import flatten, items
from crosschannel.config.load import override
from crosschannel.errors import UserError, describe
from crosschannel.runs.folder import RunFolder
from crosschannel.training.ranks import World

C = TypeVar("C")
# device kind: (precision, channels_last, compile)
AUTO = {
    "cuda": ("bfloat16", True, True),
    "cuda-without-bfloat16": ("float16", True, False),
    "cpu-with-bfloat16": ("bfloat16", True, False),
    "cpu": ("float32", True, False),
}


def find_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the first GPU, or the CPU if there is no GPU.

    Raises:
        UserError: invalid name, or the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from None
    return device


def as_device(device: torch.device | str) -> torch.device:
    """Convert a device name to a ``torch.device``; return a ``torch.device`` unchanged.

    Raises:
        UserError: wrong type, invalid name, or the device is not available.
    """
    if not isinstance(device, str | torch.device):
        raise UserError(f"a device must be a string such as cuda:0, or a torch.device, got {describe(device)}")
    return find_device(device) if isinstance(device, str) else device


def device_kind(device: torch.device) -> str:
    """Return the key of a device in :data:`AUTO`."""
    if device.type == "cuda":
        return "cuda" if torch.cuda.is_bf16_supported(including_emulation=False) else "cuda-without-bfloat16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "cpu-with-bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "cpu"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context manager for forward passes in "float32", "bfloat16" or "float16".

    The cache of cast weights is off: within a caller's autocast context, the cache would outlive optimiser steps and
    return outdated weights.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)


def resolve_auto(config: C, run: RunFolder, world: World) -> C:
    """Replace ``auto`` in precision, channels_last and compile with the value stored in a resumed run, or else with the
    default for the device (:data:`AUTO`). All ranks use rank 0's values."""

    def resolve() -> dict[str, Any]:
        precision, channels_last, compiled = AUTO[device_kind(world.device)]
        defaults = {"precision": precision, "train.precision": precision}
        defaults |= {"train.channels_last": channels_last, "train.compile": compiled}
        stored = flatten(run.stored_config()) if run.resuming else {}
        auto_keys = [key.name for key, value in items(config) if key.name in defaults and value == "auto"]
        return {name: defaults[name] if stored.get(name, "auto") == "auto" else stored[name] for name in auto_keys}

    return override(config, world.broadcast_from_main(resolve))
