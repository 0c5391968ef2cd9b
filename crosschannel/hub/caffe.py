"""Read caffemodels without Caffe, by parsing the few protobuf fields that hold layers and weights.

The parser executes nothing and checks every length against the size of the file. Field numbers are those of Caffe's
``caffe.proto``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crosschannel.errors import UserError

# Numeric parameters to read, by the field number of their message in a layer: ConvolutionParameter, LRNParameter,
# PoolingParameter, ReLUParameter and BatchNormParameter.
_PARAMETER_FIELDS = {
    106: {3: "pad", 4: "kernel", 5: "groups", 6: "stride", 18: "dilation"},
    118: {1: "size", 2: "alpha", 3: "beta"},
    121: {1: "method"},
    123: {1: "slope"},
    139: {3: "eps"},
}
_V1_PARAMETER_FIELDS = {10: 106, 18: 118, 19: 121, 30: 123}  # the corresponding fields in layers from before 2015
_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 39: "Deconvolution"}
_V1_TYPES |= {19: "Sigmoid", 23: "TanH"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_LAYERS, _MAX_DIMENSION = 10_000, 1 << 30


class _ParseError(Exception):
    pass


@dataclass
class CaffeLayer:
    """A layer of a Caffe net.

    Attributes:
        name: name of the layer.
        type: Caffe's layer type.
        blobs: weight arrays.
        parameters: numeric parameters by name (see ``_PARAMETER_FIELDS``), if the file contains them.
    """

    name: str = ""
    type: str = ""
    blobs: list[np.ndarray] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)


def read_caffemodel(path: Path) -> list[CaffeLayer]:
    """Read the layers of a ``.caffemodel``, in file order.

    Raises:
        UserError: the file is truncated or not a caffemodel.
    """
    data = memoryview(path.read_bytes())
    try:
        layers = [_parse_layer(_as_bytes(value)) for number, _, value in _fields(data) if number == 100]
        layers = layers or [_parse_v1_layer(_as_bytes(value)) for number, _, value in _fields(data) if number == 2]
    except (_ParseError, ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged or not a caffemodel: {error}") from None
    if not any(layer.blobs for layer in layers) or len(layers) > _MAX_LAYERS:
        raise UserError(f"{path} is not a caffemodel: it holds no layers with weights")
    return layers


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (number, wire type, value) for every field of a message."""
    offset = 0
    while offset < len(data):
        key, offset = _read_varint(data, offset)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, offset = _read_varint(data, offset)
        elif wire_type in (_BYTES, _FIXED64, _FIXED32):
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)
            if wire_type == _BYTES:
                size, offset = _read_varint(data, offset)
            if size > len(data) - offset:
                raise _ParseError(f"a field claims {size} bytes, but only {len(data) - offset} are left")
            value, offset = data[offset : offset + size], offset + size
        else:
            raise _ParseError(f"unknown wire type {wire_type} at byte {offset}")
        if not number:
            raise _ParseError(f"field number 0 at byte {offset}")
        yield number, wire_type, value


def _read_varint(data: memoryview, offset: int) -> tuple[int, int]:
    """Return the integer at an offset, and the offset of the next byte."""
    value = shift = 0
    while True:
        if offset >= len(data) or shift > 63:
            raise _ParseError(f"truncated or invalid integer at byte {offset}")
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if not byte & 0x80:
            return value, offset


def _as_bytes(value: int | memoryview) -> memoryview:
    """Check that the value of a field is a byte string."""
    if isinstance(value, int):
        raise _ParseError("a field holds a number instead of bytes")
    return value


def _as_text(value: int | memoryview) -> str:
    return bytes(_as_bytes(value)).decode("utf-8", "replace")


def _parse_layer(data: memoryview) -> CaffeLayer:
    """Parse a LayerParameter."""
    layer = CaffeLayer()
    for number, _, value in _fields(data):
        if number == 1:
            layer.name = _as_text(value)
        elif number == 2:
            layer.type = _as_text(value)
        elif number == 7:
            layer.blobs.append(_parse_blob(_as_bytes(value)))
        elif number in _PARAMETER_FIELDS:
            layer.parameters |= _parse_parameters(_as_bytes(value), _PARAMETER_FIELDS[number])
    return layer


def _parse_v1_layer(data: memoryview) -> CaffeLayer:
    """Parse a V1LayerParameter, the layer message of models from before 2015."""
    layer = CaffeLayer()
    for number, _, value in _fields(data):
        if number == 4:
            layer.name = _as_text(value)
        elif number == 5:
            layer.type = _V1_TYPES.get(value, "unknown") if isinstance(value, int) else "unknown"
        elif number == 6:
            layer.blobs.append(_parse_blob(_as_bytes(value)))
        elif number in _V1_PARAMETER_FIELDS:
            layer.parameters |= _parse_parameters(_as_bytes(value), _PARAMETER_FIELDS[_V1_PARAMETER_FIELDS[number]])
    return layer


def _parse_parameters(data: memoryview, names: dict[int, str]) -> dict[str, float]:
    parameters = {}
    for number, wire_type, value in _fields(data):
        if number in names and wire_type == _VARINT:
            parameters[names[number]] = value
        elif number in names and wire_type == _FIXED32:
            parameters[names[number]] = float(np.frombuffer(value, "<f4")[0])
    return parameters


def _parse_blob(data: memoryview) -> np.ndarray:
    """Parse a BlobProto to a float32 array of the stored shape."""
    legacy_shape: dict[int, int] = {}
    shape: list[int] | None = None
    chunks: list[np.ndarray] = []
    for number, wire_type, value in _fields(data):
        if number in (1, 2, 3, 4) and wire_type == _VARINT:
            legacy_shape[number] = value
        elif number == 7:
            shape = [size for n, kind, sizes in _fields(_as_bytes(value)) if n == 1 for size in _integers(kind, sizes)]
        elif number in (5, 8) and wire_type != _VARINT:
            chunks.append(np.frombuffer(value, "<f4" if number == 5 else "<f8").astype(np.float32))
    values = np.concatenate(chunks) if chunks else np.empty(0, np.float32)
    if shape is None:
        shape = [legacy_shape.get(i, 1) for i in (1, 2, 3, 4)]
    is_valid = len(shape) <= 8 and all(0 < size <= _MAX_DIMENSION for size in shape)
    if not is_valid or math.prod(shape) != len(values):
        raise _ParseError(f"an array of shape {shape} has {len(values)} values")
    return values.reshape(shape)


def _integers(wire_type: int, value: int | memoryview) -> list[int]:
    """Return the values of a repeated integer field, packed or not."""
    if wire_type == _VARINT:
        return [value]
    integers, offset = [], 0
    while offset < len(value):
        integer, offset = _read_varint(value, offset)
        integers.append(integer)
    return integers
