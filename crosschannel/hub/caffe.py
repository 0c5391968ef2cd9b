"""Caffemodels without Caffe: the few fields of its protobuf messages that hold layers and weights.

A reader of the wire format with limits: nothing is executed, and no length is believed that the file does not have.
Field numbers are those of Caffe's ``caffe.proto``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crosschannel.errors import UserError

# Field of a layer: the numbers in it, of ConvolutionParameter, LRNParameter, PoolingParameter, ReLUParameter and
# BatchNormParameter.
_NUMBERS = {
    106: {3: "pad", 4: "kernel", 5: "groups", 6: "stride", 18: "dilation"},
    118: {1: "size", 2: "alpha", 3: "beta"},
    121: {1: "method"},
    123: {1: "slope"},
    139: {3: "eps"},
}
_V1_NUMBERS = {10: 106, 18: 118, 19: 121, 30: 123}  # the same in layers from before 2015
_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 39: "Deconvolution"}
_V1_TYPES |= {19: "Sigmoid", 23: "TanH"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_LAYERS, _MOST_NUMBERS = 10_000, 1 << 30


class _Damaged(Exception):
    pass


@dataclass
class CaffeLayer:
    """A layer of a net: its name, type, arrays, and those of its parameters in ``_NUMBERS`` that are stated."""

    name: str = ""
    type: str = ""
    blobs: list[np.ndarray] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)


def read_caffemodel(path: Path) -> list[CaffeLayer]:
    """The layers of a ``.caffemodel``, in its order.

    Raises:
        UserError: it is no caffemodel, or is cut off.
    """
    data = memoryview(path.read_bytes())
    try:
        layers = [_layer(_bytes(value)) for number, _, value in _fields(data) if number == 100]
        layers = layers or [_v1_layer(_bytes(value)) for number, _, value in _fields(data) if number == 2]
    except (_Damaged, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a whole caffemodel: {error}") from None
    if not any(layer.blobs for layer in layers) or len(layers) > _MOST_LAYERS:
        raise UserError(f"{path} is not a caffemodel: it holds no layers with weights")
    return layers


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, wire type, value) of every field of a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
        elif kind in (_BYTES, _FIXED64, _FIXED32):
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
            if kind == _BYTES:
                size, place = _varint(data, place)
            if size > len(data) - place:
                raise _Damaged(f"a field claims {size} bytes where {len(data) - place} are left")
            value, place = data[place : place + size], place + size
        else:
            raise _Damaged(f"wire type {kind} at byte {place}")
        if not number:
            raise _Damaged(f"field number 0 at byte {place}")
        yield number, kind, value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise _Damaged(f"it ends or breaks at byte {place}")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place


def _bytes(value: int | memoryview) -> memoryview:
    """A field that has to be one of bytes."""
    if isinstance(value, int):
        raise _Damaged("a number stands where bytes belong")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8", "replace")


def _layer(data: memoryview) -> CaffeLayer:
    """LayerParameter."""
    layer = CaffeLayer()
    for number, _, value in _fields(data):
        if number == 1:
            layer.name = _text(value)
        elif number == 2:
            layer.type = _text(value)
        elif number == 7:
            layer.blobs.append(_blob(_bytes(value)))
        elif number in _NUMBERS:
            layer.parameters |= _parameters(_bytes(value), _NUMBERS[number])
    return layer


def _v1_layer(data: memoryview) -> CaffeLayer:
    """V1LayerParameter, of models from before 2015."""
    layer = CaffeLayer()
    for number, _, value in _fields(data):
        if number == 4:
            layer.name = _text(value)
        elif number == 5:
            layer.type = _V1_TYPES.get(value, "unknown") if isinstance(value, int) else "unknown"
        elif number == 6:
            layer.blobs.append(_blob(_bytes(value)))
        elif number in _V1_NUMBERS:
            layer.parameters |= _parameters(_bytes(value), _NUMBERS[_V1_NUMBERS[number]])
    return layer


def _parameters(data: memoryview, names: dict[int, str]) -> dict[str, float]:
    found = {}
    for number, kind, value in _fields(data):
        if number in names and kind == _VARINT:
            found[names[number]] = value
        elif number in names and kind == _FIXED32:
            found[names[number]] = float(np.frombuffer(value, "<f4")[0])
    return found


def _blob(data: memoryview) -> np.ndarray:
    """BlobProto → float32, in the shape that it names."""
    legacy: dict[int, int] = {}
    shape: list[int] | None = None
    parts: list[np.ndarray] = []
    for number, kind, value in _fields(data):
        if number in (1, 2, 3, 4) and kind == _VARINT:
            legacy[number] = value
        elif number == 7:
            shape = [size for n, k, sizes in _fields(_bytes(value)) if n == 1 for size in _integers(k, sizes)]
        elif number in (5, 8) and kind != _VARINT:
            parts.append(np.frombuffer(value, "<f4" if number == 5 else "<f8").astype(np.float32))
    numbers = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if shape is None:
        shape = [legacy.get(i, 1) for i in (1, 2, 3, 4)]
    sane = len(shape) <= 8 and all(0 < size <= _MOST_NUMBERS for size in shape)
    if not sane or math.prod(shape) != len(numbers):
        raise _Damaged(f"an array of shape {shape} has {len(numbers)} numbers")
    return numbers.reshape(shape)


def _integers(kind: int, value: int | memoryview) -> list[int]:
    """A repeated integer, packed or one by one."""
    if kind == _VARINT:
        return [value]
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(number)
    return found
