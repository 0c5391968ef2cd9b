"""What a net costs: parameters, features and time an image, as the paper's Table 1 has them."""

import time
from statistics import median

import torch
from torch import Tensor, nn

from crosschannel.pretext.colorizer import Colorizer

_MB = 1e6
_RUNS = 5


def cost(colorizer: Colorizer, size: int, device: torch.device) -> dict[str, float]:
    """``parameters_mb`` and ``features_mb`` in float32, and ``runtime_ms``, the median of five passes: one picture of
    ``size``² at that size, from the net's input to ab of its grid."""
    rgb = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    colorizer.predict(rgb)
    times = []
    for _ in range(_RUNS):
        _wait(device)
        begun = time.perf_counter()
        colorizer.predict(rgb)
        _wait(device)
        times.append(time.perf_counter() - begun)
    parameters = sum(parameter.numel() for parameter in colorizer.net.parameters())
    return {
        "parameters_mb": 4 * parameters / _MB,
        "features_mb": 4 * features(colorizer, rgb) / _MB,
        "runtime_ms": 1000 * median(times),
    }


def features(colorizer: Colorizer, rgb: Tensor) -> int:
    """Numbers that the modules of a net give for a picture, each tensor counted once: what works in place adds none."""
    seen: dict[int, Tensor] = {}  # held, so that no memory is used twice

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.setdefault(output.data_ptr(), output)

    leaves = [module for module in colorizer.net.modules() if not any(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        colorizer.predict(rgb)
    finally:
        for handle in handles:
            handle.remove()
    return sum(output.numel() for output in seen.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
