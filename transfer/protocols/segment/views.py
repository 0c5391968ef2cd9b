"""What is made of an image and its mask: whole, or a crop of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crosschannel.data.crops import flip_image
from crosschannel.data.record import Record
from crosschannel.data.views import Batch, SampleRNG
from transfer.interpolation import nearest
from transfer.pascal.masks import IGNORED, labels_of

# (H, W, 3) uint8 RGB, (H, W) uint8 labels, and height and width of what is image: the rest, below and to the right, is
# none, and labelled to be ignored.
MaskSample = tuple[np.ndarray, np.ndarray, tuple[int, int]]


@dataclass
class SizeGroup:
    """Images of one size.

    Attributes:
        images: (N, 3, H, W) uint8 RGB, channels_last in memory.
        masks: (N, H, W) uint8.
        inside: (N, 2) height and width of what is image in each.
        places: (N,) in the batch.
    """

    images: Tensor
    masks: Tensor
    inside: Tensor
    places: Tensor


@dataclass
class MaskBatch(Batch):
    """Images of any sizes.

    Attributes:
        groups: those of one size together.
    """

    groups: list[SizeGroup]


def group_sizes(samples: Sequence[MaskSample]) -> list[SizeGroup]:
    """Stack samples of one size."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, (_, labels, _) in enumerate(samples):
        by_size.setdefault(labels.shape, []).append(place)
    groups = []
    for places in by_size.values():
        images, masks = (torch.from_numpy(np.stack([samples[place][i] for place in places])) for i in (0, 1))
        inside = torch.tensor([samples[place][2] for place in places])
        groups.append(SizeGroup(images.permute(0, 3, 1, 2), masks, inside, torch.tensor(places)))
    return groups


def collate_masks(samples: Sequence[MaskSample], base: Batch) -> MaskBatch:
    """Samples as a batch."""
    return MaskBatch(**vars(base), groups=group_sizes(samples))


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

    def __call__(self, record: Record, rng: SampleRNG) -> MaskSample:
        image = record.image()
        labels, pixels = labels_of(record.fields.get("mask"), image, self.classes), image.pixels()
        if self.mirror and rng.uniforms(1)[0] < 0.5:
            pixels, labels = flip_image(pixels), np.ascontiguousarray(labels[:, ::-1])
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

    def __call__(self, record: Record, rng: SampleRNG) -> MaskSample:
        image = record.image()
        labels, pixels = labels_of(record.fields.get("mask"), image, self.classes), image.pixels()
        u = rng.uniforms(4)
        factor = self.scale[0] * (self.scale[1] / self.scale[0]) ** u[0]
        window = [min(length, max(1, round(self.size / factor))) for length in labels.shape]
        top, left = (int(u[1 + i] * (labels.shape[i] - window[i] + 1)) for i in (0, 1))
        height, width = (min(self.size, max(1, round(length * factor))) for length in window)
        part = torch.from_numpy(pixels[top : top + window[0], left : left + window[1]])[None].permute(0, 3, 1, 2)
        part = F.interpolate(part, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        rows, columns = (nearest(*lengths) for lengths in zip(window, (height, width), strict=True))
        mask = labels[top + rows][:, left + columns]
        if self.mirror and u[3] < 0.5:
            part, mask = flip_image(part), mask[:, ::-1]
        crop = np.zeros((self.size, self.size, 3), np.uint8)
        target = np.full((self.size, self.size), IGNORED, np.uint8)
        crop[:height, :width], target[:height, :width] = part, mask
        return crop, target, (height, width)

    collate = staticmethod(collate_masks)
