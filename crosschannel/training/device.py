"""Which device, and what `auto` means on it: a fixed table, looked up, never timed."""

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
    """``auto`` is the first GPU, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"no device {name!r}: there are auto, cpu, cuda and cuda:N")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"no device {name!r} here: {str(error).splitlines()[0]}") from None
    return device


def as_device(device: torch.device | str) -> torch.device:
    """Return a device, or find one by name.

    Raises:
        UserError: neither a device nor a name, or no such device on this machine.
    """
    if not isinstance(device, str | torch.device):
        raise UserError(f"a device is a string such as cuda:0 or a torch.device, got {describe(device)}")
    return find_device(device) if isinstance(device, str) else device


def device_kind(device: torch.device) -> str:
    """The row of the table that holds for a device."""
    if device.type == "cuda":
        return "cuda" if torch.cuda.is_bf16_supported(including_emulation=False) else "cuda-without-bfloat16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "cpu-with-bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "cpu"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context manager for a forward pass in "float32", "bfloat16" or "float16".

    The weight cache is off: inside a caller's autocast it would be the caller's and outlive our optimiser steps.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)


def resolve_auto(config: C, run: RunFolder, world: World) -> C:
    """Replace ``auto`` in precision, channels_last and compile by the value stored in a resumed run, or by the default
    for the device (:data:`AUTO`). Rank 0 decides for all ranks."""

    def resolve() -> dict[str, Any]:
        precision, channels_last, compiled = AUTO[device_kind(world.device)]
        table = {"precision": precision, "train.precision": precision}
        table |= {"train.channels_last": channels_last, "train.compile": compiled}
        stored = flatten(run.stored_config()) if run.resuming else {}
        auto = [key.name for key, value in items(config) if key.name in table and value == "auto"]
        return {name: table[name] if stored.get(name, "auto") == "auto" else stored[name] for name in auto}

    return override(config, world.broadcast_from_main(resolve))
