"""A record: one item of a dataset as stored, before decoding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from crosschannel.data.decode import EncodedImage


@dataclass(frozen=True)
class Record:
    """One item of a dataset.

    Attributes:
        files: encoded files by name: ``image``, and others if the dataset has them, such as a second frame.
        label: class index, -1 if unknown; for multi-label images a row of the image set's ``labels``.
        fields: annotations, such as boxes or a mask.
    """

    files: Mapping[str, bytes]
    label: int | np.ndarray = -1
    fields: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def image(self, name: str = "image") -> EncodedImage:
        """Return the image in one of the files.

        Raises:
            BrokenImage: the file cannot be decoded.
        """
        return EncodedImage(self.files[name])
