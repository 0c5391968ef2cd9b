"""Isolation of a call from the global state of torch, NumPy and Python, which is restored afterwards.

User code may call a measurement under ``torch.no_grad()``, autocast or another default device, or between two batches
of its training. Such state must not change a result, and the measurement must not change such state.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from crosschannel.data.stream import workers_ended
from crosschannel.models.module_net import no_autocast

_FLAGS: tuple[tuple[Any, str, Any], ...] = (
    (torch.backends.cudnn, "enabled", True),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", False),
)
_PRECISIONS = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul", "mkldnn.conv")


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run a block with the global state of a fresh process and seeded generators; restore the state afterwards.

    Gradients are on, autocast is off, and new tensors are float32 on the CPU. Workers of loaders that the block started
    are ended. The number of threads is unchanged.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(no_autocast())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(_default_tensors())
        stack.enter_context(_algorithms())
        stack.enter_context(_random_state(seed))
        stack.enter_context(workers_ended())
        yield


@contextlib.contextmanager
def _default_tensors() -> Iterator[None]:
    """Create new tensors as float32 on the CPU by default."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # A default device slows down every torch call: set one only to override another.
        with contextlib.nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _algorithms() -> Iterator[None]:
    """Reset cuDNN's flags, determinism and float32 matmul precision to torch's defaults at import."""
    flags = [getattr(owner, name) for owner, name, _ in _FLAGS]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    for owner, name, value in _FLAGS:
        setattr(owner, name, value)
    if deterministic:
        torch.use_deterministic_algorithms(False)
    try:
        with _exact_products():
            yield
    finally:
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for (owner, name, _), value in zip(_FLAGS, flags, strict=True):
            setattr(owner, name, value)


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Compute float32 matmuls in float32. torch refuses to mix its older setting with the newer ``fp32_precision``."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        with _exact_backends():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def _exact_backends() -> Iterator[None]:
    owners = [_backend(path) for path in _PRECISIONS]
    precisions = [owner.fp32_precision for owner in owners]
    for owner in owners:
        owner.fp32_precision = "none"
    try:
        yield
    finally:
        for owner, precision in zip(owners, precisions, strict=True):
            if owner.fp32_precision != precision:  # most inherit it from a backend above
                owner.fp32_precision = precision


def _backend(path: str) -> Any:
    owner = torch.backends
    for name in path.split(".") if path else ():
        owner = getattr(owner, name)
    return owner


@contextlib.contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed all global generators, then restore their states: a user's net may draw from any of them."""
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
