"""What a net costs: parameters, features and time an image, as the paper's Table 1 has them."""

import time
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crosschannel.colorize.colorizer import Colorizer

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


class _NewTensors(TorchDispatchMode):
    """Notes every tensor of numbers that is made, by its memory: what works in place makes none."""

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.made: list[Tensor] = []  # held, so that no memory is used twice

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                place = tensor.untyped_storage().data_ptr()
                if place not in self.known:
                    self.known.add(place)
                    self.made.append(tensor)
        return output


@torch.inference_mode()
def features(colorizer: Colorizer, rgb: Tensor) -> int:
    """Numbers that a net makes of a picture on its way to its outputs, all of them together."""
    inputs = colorizer.task.inputs(rgb)
    with _NewTensors([*colorizer.net.parameters(), *colorizer.net.buffers(), inputs]) as noted:
        colorizer.net(inputs)
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in noted.made)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
