"""Global state of a call: torch, NumPy and Python as a fresh process has them, and afterwards as they were.

A measurement is called from other people's code: under ``torch.no_grad()``, autocast, another default device, between
two batches of a training. None of it may change a figure, and a figure may change none of it.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from crosschannel.data.stream import workers_ended
from crosschannel.models.wrapped import no_autocast

_FLAGS: tuple[tuple[Any, str, Any], ...] = (
    (torch.backends.cudnn, "enabled", True),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", False),
)
_PRECISIONS = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul", "mkldnn.conv")


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run a block with gradients on, autocast off, the CPU and float32 as defaults, and all generators seeded; then put
    everything back, and end the workers of the loaders that the block started.

    The number of threads stays as it is.
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
    """float32 on the CPU."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # A default device costs time in every call of torch: set one only over another.
        with contextlib.nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _algorithms() -> Iterator[None]:
    """cuDNN's flags, determinism and the precision of float32 products as torch sets them at import."""
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
    """float32 products in float32. Torch refuses to mix its older setting with the newer ``fp32_precision``."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        with _exact_backends():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _exact_backends() -> Iterator[None]:
    owners = [_backend(path) for path in _PRECISIONS]
    before = [owner.fp32_precision for owner in owners]
    for owner in owners:
        owner.fp32_precision = "none"
    try:
        yield
    finally:
        for owner, precision in zip(owners, before, strict=True):
            if owner.fp32_precision != precision:  # most inherit it from the one before
                owner.fp32_precision = precision


def _backend(path: str) -> Any:
    owner = torch.backends
    for name in path.split(".") if path else ():
        owner = getattr(owner, name)
    return owner


@contextlib.contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """All global generators seeded, and afterwards where they were: a user's net may draw from any of them."""
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
