"""Digest of annotations, so that a resumed run detects changes."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosschannel.data import ImageSet
from crosschannel.errors import UserError
from crosschannel.files import read_bytes


def annotation_digest(images: ImageSet) -> str:
    """Hash the annotations of an image set to 16 hex digits, which change with any label, box or mask.

    Raises:
        UserError: a mask cannot be read.
    """
    digest = sha256(np.ascontiguousarray(images.labels).tobytes())
    for index in range(len(images)):
        for part in _parts(list(images.fields(index).values()) or images.label(index)):
            digest.update(part)
    return digest.hexdigest()[:16]


def _parts(annotation: Any) -> Iterator[bytes]:
    """Yield the content of an annotation: the file's for a path, nothing for an object of an unknown type."""
    if isinstance(annotation, int):
        yield b"%d" % annotation
    elif isinstance(annotation, np.ndarray | np.generic | torch.Tensor):
        array = np.asarray(annotation.cpu() if isinstance(annotation, torch.Tensor) else annotation)
        yield f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    elif isinstance(annotation, float | str):
        yield repr(annotation).encode()
    elif isinstance(annotation, Path):
        try:
            yield read_bytes(annotation)
        except OSError as error:
            raise UserError(f"cannot read {annotation}: {error.strerror}") from None
    elif is_dataclass(annotation):
        for field in fields(annotation):
            yield from _parts(getattr(annotation, field.name))
    elif isinstance(annotation, tuple | list):
        for part in annotation:
            yield from _parts(part)
