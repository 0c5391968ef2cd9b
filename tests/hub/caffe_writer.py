"""Writes caffemodels and prototxts from a list of layers, with an encoder that is independent of the reader."""

import struct
from pathlib import Path

import numpy as np

V1 = {"Convolution": 4, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18}


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        if not value:
            return out + bytes([low])
        out += bytes([low | 0x80])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def real(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def blob(array: np.ndarray, legacy: bool = False, packed: bool = True) -> bytes:
    array = np.asarray(array, np.float32)
    data = array.astype("<f4").tobytes()
    if packed:
        values = field(5, data)
    else:
        values = b"".join(varint(5 << 3 | 5) + struct.pack("<f", x) for x in array.ravel())
    if legacy:
        sizes = (1,) * (4 - array.ndim) + array.shape
        return b"".join(field(i, size) for i, size in enumerate(sizes, 1)) + values
    return field(7, field(1, b"".join(varint(size) for size in array.shape))) + values


def layer(name: str, kind: str, arrays=(), v1: bool = False, parameters: bytes = b"", **options) -> bytes:
    if v1:
        text = field(4, name.encode()) + field(5, V1[kind])
        return field(2, text + b"".join(field(6, blob(a, legacy=True)) for a in arrays))
    text = field(1, name.encode()) + field(2, kind.encode())
    return field(100, text + b"".join(field(7, blob(a, **options)) for a in arrays) + parameters)


def model(layers, v1: bool = False) -> bytes:
    """Encode layers given as (name, type, arrays) or (name, type, arrays, encoded parameters)."""
    encoded = (layer(name, kind, arrays, v1, *parameters) for name, kind, arrays, *parameters in layers)
    return field(1, b"test") + b"".join(encoded)


class Net:
    """A net that is built layer by layer and written as a prototxt and a caffemodel.

    Args:
        channels: number of input channels.
        side: height and width of the input.
    """

    def __init__(self, channels: int, side: int):
        self.text = f'input: "data" input_dim: 1 input_dim: {channels} input_dim: {side} input_dim: {side}\n'
        self.layers: list[tuple] = []
        self.top = "data"

    def add(self, name, kind, arrays=(), options="", inplace=False, parameters=b"") -> None:
        self.layers.append((name, kind, arrays, parameters))
        out = self.top if inplace else name
        self.text += f'layer {{ name: "{name}" type: "{kind}" bottom: "{self.top}" top: "{out}" {options} }}\n'
        self.top = out

    def convolution(self, name, arrays, kind="Convolution", **options: int) -> None:
        """Add a convolution; options are named as in a prototxt: pad, kernel_size, group, stride, dilation."""
        field_numbers = {"pad": 3, "kernel_size": 4, "group": 5, "stride": 6, "dilation": 18}
        outputs = arrays[0].shape[kind == "Deconvolution"]
        text = " ".join(f"{key}: {value}" for key, value in {"num_output": outputs, **options}.items())
        text += "" if len(arrays) > 1 else " bias_term: false"
        encoded = field(106, b"".join(field(field_numbers[key], value) for key, value in options.items()))
        self.add(name, kind, arrays, f"convolution_param {{ {text} }}", parameters=encoded)

    def relu(self, name, slope: float = 0.0) -> None:
        options = f"relu_param {{ negative_slope: {slope} }}" if slope else ""
        encoded = field(123, real(1, slope)) if slope else b""
        self.add(name, "ReLU", options=options, inplace=True, parameters=encoded)

    def pool(self, name, method: str = "MAX") -> None:
        options = f"pooling_param {{ pool: {method} kernel_size: 3 stride: 2 }}"
        self.add(name, "Pooling", options=options, parameters=field(121, field(1, ("MAX", "AVE").index(method))))

    def lrn(self, name, alpha: float = 0.0001) -> None:
        options = f"lrn_param {{ local_size: 5 alpha: {alpha} beta: 0.75 }}"
        self.add(name, "LRN", options=options, parameters=field(118, field(1, 5) + real(2, alpha) + real(3, 0.75)))

    def batchnorm(self, name, statistics, inplace=True, eps: float = 1e-5) -> None:
        """Add a BatchNorm layer; ``statistics`` are the mean, the variance and the factor that divides both."""
        options = f"batch_norm_param {{ use_global_stats: true eps: {eps} }}"
        self.add(name, "BatchNorm", statistics, options, inplace, field(139, real(3, eps)))

    def write(self, folder: Path) -> Path:
        """Write net.prototxt and net.caffemodel; return the path of the latter."""
        (folder / "net.prototxt").write_text(self.text)
        (folder / "net.caffemodel").write_bytes(model(self.layers))
        return folder / "net.caffemodel"
