"""Writes caffemodels and prototxts from a list of layers: an encoder of the wire format, apart from the reader."""

import struct

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


def blob(array: np.ndarray, legacy: bool = False, packed: bool = True) -> bytes:
    array = np.asarray(array, np.float32)
    data = array.astype("<f4").tobytes()
    if packed:
        numbers = field(5, data)
    else:
        numbers = b"".join(varint(5 << 3 | 5) + struct.pack("<f", x) for x in array.ravel())
    if legacy:
        sizes = (1,) * (4 - array.ndim) + array.shape
        return b"".join(field(i, size) for i, size in enumerate(sizes, 1)) + numbers
    return field(7, field(1, b"".join(varint(size) for size in array.shape))) + numbers


def layer(name: str, kind: str, arrays=(), v1: bool = False, **options) -> bytes:
    if v1:
        text = field(4, name.encode()) + field(5, V1[kind])
        return field(2, text + b"".join(field(6, blob(a, legacy=True)) for a in arrays))
    text = field(1, name.encode()) + field(2, kind.encode())
    return field(100, text + b"".join(field(7, blob(a, **options)) for a in arrays))


def model(layers, v1: bool = False) -> bytes:
    """layers: (name, type, arrays) …"""
    return field(1, b"test") + b"".join(layer(name, kind, arrays, v1) for name, kind, arrays in layers)
