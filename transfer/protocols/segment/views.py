"""What is made of an image and its mask: whole, or a crop of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crosschannel.data.crops import mirrored
from crosschannel.data.decode import EncodedImage
from crosschannel.data.views import Broken, Draw
from transfer.pascal.masks import IGNORED, labels_of

# (H, W, 3) uint8 RGB, (H, W) uint8 labels, and height and width of what is image: the rest, below and to the right, is
# none, and labelled to be ignored.
Sample = tuple[np.ndarray, np.ndarray, tuple[int, int]]


@dataclass
class MaskBatch:
    """Images of any sizes.

    Attributes:
        images: (3, H, W) uint8 RGB each.
        masks: (H, W) uint8 each.
        inside: height and width of what is image in each.
        indices, broken: see :class:`~crosschannel.data.Batch`.
    """

    images: list[Tensor]
    masks: list[Tensor]
    inside: list[tuple[int, int]]
    indices: Tensor
    broken: Broken

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> "MaskBatch":
        pinned = [[tensor.pin_memory() for tensor in part] for part in (self.images, self.masks)]
        return MaskBatch(*pinned, self.inside, self.indices, self.broken)

    def by_size(self) -> list[list[int]]:
        """Places of images of one size, in the order in which sizes first occur."""
        found: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(self.images):
            found.setdefault(tuple(image.shape), []).append(place)
        return list(found.values())


def collate_masks(samples: Sequence[Sample], indices: Tensor, broken: Broken) -> MaskBatch:
    """Samples as a batch."""
    images = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels, _, _ in samples]
    masks = [torch.from_numpy(labels) for _, labels, _ in samples]
    return MaskBatch(images, masks, [inside for _, _, inside in samples], indices, broken)


@dataclass(frozen=True)
class WholeImages:
    """Images at their own size.

    Attributes:
        classes: there are.
        mirror: half of them.
    """

    classes: int
    mirror: bool = False
    views: ClassVar[int] = 1

    def __call__(self, image: EncodedImage, annotation: Any, draw: Draw) -> Sample:
        labels, pixels = labels_of(annotation, image, self.classes), image.pixels()
        if self.mirror and draw.uniforms(1)[0] < 0.5:
            pixels, labels = mirrored(pixels), np.ascontiguousarray(labels[:, ::-1])
        return pixels, labels, labels.shape

    collate = staticmethod(collate_masks)


@dataclass(frozen=True)
class MaskedCrops:
    """Square crops of images resized by a random factor, mirrored half of the time; what the image does not fill is
    ignored. Masks take the nearest pixel.

    Attributes:
        classes: there are.
        size: side of a crop.
        scale: least and greatest factor; its logarithm is uniform.
        mirror: whether to mirror at all.
    """

    classes: int
    size: int
    scale: tuple[float, float]
    mirror: bool = True
    views: ClassVar[int] = 1

    def __call__(self, image: EncodedImage, annotation: Any, draw: Draw) -> Sample:
        labels, pixels = labels_of(annotation, image, self.classes), image.pixels()
        u = draw.uniforms(4)
        factor = self.scale[0] * (self.scale[1] / self.scale[0]) ** u[0]
        window = [min(length, max(1, round(self.size / factor))) for length in labels.shape]
        top, left = (int(u[1 + i] * (labels.shape[i] - window[i] + 1)) for i in (0, 1))
        height, width = (min(self.size, max(1, round(length * factor))) for length in window)
        part = torch.from_numpy(pixels[top : top + window[0], left : left + window[1]])[None].permute(0, 3, 1, 2)
        part = F.interpolate(part, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        rows, columns = (nearest(*lengths) for lengths in zip(window, (height, width), strict=True))
        mask = labels[top + rows][:, left + columns]
        if self.mirror and u[3] < 0.5:
            part, mask = mirrored(part), mask[:, ::-1]
        crop = np.zeros((self.size, self.size, 3), np.uint8)
        target = np.full((self.size, self.size), IGNORED, np.uint8)
        crop[:height, :width], target[:height, :width] = part, mask
        return crop, target, (height, width)

    collate = staticmethod(collate_masks)


def nearest(length: int, size: int) -> np.ndarray:
    """The nearest of ``length`` pixels to each of ``size`` evenly spread ones: (size,) int64."""
    return ((np.arange(size) + 0.5) * length / size).astype(np.int64)
