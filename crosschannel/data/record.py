"""A record: one item of a data set as it is stored, before anything is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from crosschannel.data.decode import EncodedImage


@dataclass(frozen=True)
class Record:
    """One item of a data set.

    Attributes:
        files: encoded files by name: ``image``, and others that a data set has, such as a second frame.
        label: class index, -1 if unknown; for images of several classes their row of the set's labels.
        fields: annotations, such as boxes or a mask.
    """

    files: Mapping[str, bytes]
    label: int | np.ndarray = -1
    fields: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def image(self, name: str = "image") -> EncodedImage:
        """The picture in one of the files.

        Raises:
            BrokenImage: it cannot be read.
        """
        return EncodedImage(self.files[name])
