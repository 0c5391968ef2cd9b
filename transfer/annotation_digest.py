"""Digest of the annotations of an image set, to detect changes when a run resumes."""

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
    """Return a digest of all labels, boxes and masks of an image set, 16 hex digits.

    Raises:
        UserError: a mask cannot be read.
    """
    digest = sha256(np.ascontiguousarray(images.labels).tobytes())
    for index in range(len(images)):
        for chunk in _chunks(list(images.fields(index).values()) or images.label(index)):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def _chunks(annotation: Any) -> Iterator[bytes]:
    """Yield the bytes of an annotation; for a path, the bytes of the file. Objects of unknown types are skipped."""
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
            raise UserError(f"could not read {annotation}: {error.strerror}") from None
    elif is_dataclass(annotation):
        for field in fields(annotation):
            yield from _chunks(getattr(annotation, field.name))
    elif isinstance(annotation, tuple | list):
        for element in annotation:
            yield from _chunks(element)
