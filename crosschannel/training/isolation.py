"""Isolation of a call from the global state of torch, NumPy and Python.

Users may call a protocol under ``torch.no_grad()``, autocast or another default device, or between two training
steps. The results must not depend on that state, and the call must leave it unchanged.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from crosschannel.data.stream import workers_ended
from crosschannel.models.module_net import no_autocast

_CUDNN_FLAGS: tuple[tuple[Any, str, Any], ...] = (  # owner, attribute, default
    (torch.backends.cudnn, "enabled", True),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", False),
)
_PRECISION_BACKENDS = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul", "mkldnn.conv")


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run a block with the global state of a new process and seeded RNGs, then restore the previous state.

    In the block gradients are on, autocast is off, and new tensors are float32 on the CPU. Loader workers started in
    the block are stopped. The number of threads is unchanged.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(no_autocast())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(_default_dtype_and_device())
        stack.enter_context(_default_algorithms())
        stack.enter_context(_seeded_rngs(seed))
        stack.enter_context(workers_ended())
        yield


@contextlib.contextmanager
def _default_dtype_and_device() -> Iterator[None]:
    """Set the default dtype to float32 and the default device to the CPU, then restore both."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # A default device slows down every torch call; set it only if the current one is not the CPU.
        with contextlib.nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _default_algorithms() -> Iterator[None]:
    """Use torch's defaults for cuDNN flags, determinism and float32 matmul precision, then restore the old values."""
    flags = [getattr(owner, name) for owner, name, _ in _CUDNN_FLAGS]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    for owner, name, value in _CUDNN_FLAGS:
        setattr(owner, name, value)
    if deterministic:
        torch.use_deterministic_algorithms(False)
    try:
        with _full_precision_matmuls():
            yield
    finally:
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for (owner, name, _), value in zip(_CUDNN_FLAGS, flags, strict=True):
            setattr(owner, name, value)


@contextlib.contextmanager
def _full_precision_matmuls() -> Iterator[None]:
    """Compute float32 matmuls in full float32 precision."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # this older setting cannot be read once the newer `fp32_precision` is used
        with _reset_backend_precisions():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def _reset_backend_precisions() -> Iterator[None]:
    backends = [_backend(path) for path in _PRECISION_BACKENDS]
    precisions = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "none"
    try:
        yield
    finally:
        for backend, precision in zip(backends, precisions, strict=True):
            if backend.fp32_precision != precision:  # most inherit the value of a parent backend
                backend.fp32_precision = precision


def _backend(path: str) -> Any:
    backend = torch.backends
    for name in path.split(".") if path else ():
        backend = getattr(backend, name)
    return backend


@contextlib.contextmanager
def _seeded_rngs(seed: int) -> Iterator[None]:
    """Seed all global RNGs, since a user's net may use any of them, then restore their states."""
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
