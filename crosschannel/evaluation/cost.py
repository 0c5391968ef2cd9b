"""Cost of a colorization net: parameters, features and runtime per image, as in the paper's Table 1."""

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
    """Measure the cost of a net for one image.

    Args:
        colorizer: the net.
        size: side of the image, in pixels.
        device: device of the net.

    Returns:
        ``parameters_mb`` and ``features_mb``, both for float32, and ``runtime_ms``, the median of five predictions of
        ab at the net's output resolution.
    """
    rgb = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    colorizer.predict(rgb)
    times = []
    for _ in range(_RUNS):
        _synchronise(device)
        start = time.perf_counter()
        colorizer.predict(rgb)
        _synchronise(device)
        times.append(time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in colorizer.net.parameters())
    return {
        "parameters_mb": 4 * parameters / _MB,
        "features_mb": 4 * features(colorizer, rgb) / _MB,
        "runtime_ms": 1000 * median(times),
    }


class _NewTensors(TorchDispatchMode):
    """Recorder of floating-point tensors with new storage; in-place operations and views create none.

    Args:
        known_tensors: tensors whose storage is not recorded.
    """

    def __init__(self, known_tensors: Iterable[Tensor]):
        super().__init__()
        self.known_addresses = {tensor.untyped_storage().data_ptr() for tensor in known_tensors}
        self.new_tensors: list[Tensor] = []  # keeps the tensors alive, so that no address is reused

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                address = tensor.untyped_storage().data_ptr()
                if address not in self.known_addresses:
                    self.known_addresses.add(address)
                    self.new_tensors.append(tensor)
        return output


@torch.inference_mode()
def features(colorizer: Colorizer, rgb: Tensor) -> int:
    """Count the elements of all feature maps that a net computes for an image, including its outputs."""
    inputs = colorizer.task.inputs(rgb)
    with _NewTensors([*colorizer.net.parameters(), *colorizer.net.buffers(), inputs]) as recorder:
        colorizer.net(inputs)
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in recorder.new_tensors)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
