"""Views: what is made of an image. A view turns an encoded image, what is known of it and its draws into a sample, says
how many samples an image gives, and puts samples together into a batch.

What a run sees is a :class:`~crosschannel.data.stream.Stream` of one view; a protocol that needs another one states it
in a class like these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from crosschannel.data.crops import centre_box, cut, random_box, squash, ten_crop_box
from crosschannel.data.decode import EncodedImage
from crosschannel.data.order import uniforms
from crosschannel.runs.config import CropConfig

Broken = list[tuple[int, str]]  # (index, reason) of images that could not be read


@dataclass(frozen=True)
class Draw:
    """What a sample depends on besides its image: chance, as a pure function of the keys.

    Attributes:
        view: which of the image's samples this is.
        keys: of the numbers.
    """

    view: int
    keys: tuple[int, ...]

    def uniforms(self, count: int) -> list[float]:
        """The first ``count`` of this sample's numbers in [0, 1)."""
        return uniforms(count, *self.keys)


class Batch(Protocol):
    """What the loop knows of a batch.

    Attributes:
        indices: (N,) int64 into the image set.
        broken: the images that had to be replaced (training) or left out (evaluation).
    """

    indices: Tensor
    broken: Broken

    def __len__(self) -> int:
        """Samples in it."""
        ...

    def pin_memory(self) -> "Batch":
        """With its tensors page-locked, for copies to a GPU."""
        ...


S = TypeVar("S")


class View(Protocol[S]):
    """A kind of sample. It travels to the loader's workers, so it holds settings and no pixels. One with
    ``reads = False`` is given numbers of images and never called.

    Attributes:
        views: samples that an image gives.
    """

    views: int

    def __call__(self, image: EncodedImage, annotation: Any, draw: Draw) -> S:
        """One sample.

        Raises:
            BrokenImage: the image cannot be read.
        """
        ...

    def collate(self, samples: Sequence[S], indices: Tensor, broken: Broken) -> Batch:
        """A batch of samples, of which there may be none."""
        ...


@dataclass
class ImageBatch:
    """Crops.

    Attributes:
        images: (N, 3, S, S) uint8 RGB, channels_last in memory.
        indices, broken: see :class:`Batch`.
    """

    images: Tensor
    indices: Tensor
    broken: Broken

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> "ImageBatch":
        return ImageBatch(self.images.pin_memory(), self.indices, self.broken)


@dataclass
class IndexBatch:
    """Which images, and nothing of them."""

    indices: Tensor
    broken: Broken

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> "IndexBatch":
        return self


def collate_crops(samples: Sequence[np.ndarray], indices: Tensor, broken: Broken) -> ImageBatch:
    """Crops (S, S, 3) of one size as a batch."""
    stacked = np.stack(samples) if samples else np.empty((0, 1, 1, 3), np.uint8)
    return ImageBatch(torch.from_numpy(stacked).permute(0, 3, 1, 2), indices, broken)


@dataclass(frozen=True)
class TrainingCrops:
    """A crop of training, as ``crop.kind`` has it; in evaluations, ``views`` of them from each image."""

    crop: CropConfig
    interpolation: str = "bilinear"
    views: int = 1

    def __call__(self, image: EncodedImage, _annotation: Any, draw: Draw) -> np.ndarray:
        u = draw.uniforms(5)
        box = random_box(image.width, image.height, self.crop, u)
        return cut(image, box, self.crop.size, self.crop.mirror and u[4] < 0.5, self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class CentreCrop:
    """The centre square of ``size`` pixels once the short side is ``resize``."""

    size: int
    resize: int
    interpolation: str = "bilinear"
    views: ClassVar[int] = 1

    def __call__(self, image: EncodedImage, _annotation: Any, _draw: Draw) -> np.ndarray:
        box = centre_box(image.width, image.height, self.size, self.resize)
        return cut(image, box, self.size, interpolation=self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class TenCrops:
    """The four corners and the centre, then the same mirrored, once the short side is ``resize``."""

    size: int
    resize: int
    interpolation: str = "bilinear"
    views: ClassVar[int] = 10

    def __call__(self, image: EncodedImage, _annotation: Any, draw: Draw) -> np.ndarray:
        box, mirror = ten_crop_box(image.width, image.height, self.size, self.resize, draw.view)
        return cut(image, box, self.size, mirror, self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class Squashed:
    """The whole image squashed to ``size`` × ``size`` pixels; ``resize``: short side of an intermediate resize."""

    size: int
    interpolation: str = "bilinear"
    resize: int = 0
    views: ClassVar[int] = 1

    def __call__(self, image: EncodedImage, _annotation: Any, _draw: Draw) -> np.ndarray:
        return squash(image, self.size, self.resize, self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class IndexOnly:
    """The order of a stream without its pixels, for who holds what it needs of every image already."""

    views: ClassVar[int] = 1
    reads: ClassVar[bool] = False

    @staticmethod
    def collate(_samples: Sequence[None], indices: Tensor, broken: Broken) -> IndexBatch:
        return IndexBatch(indices, broken)
