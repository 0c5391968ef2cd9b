"""Views of an image and its mask: whole images, and random crops."""

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
from transfer.interpolation import nearest_indices
from transfer.pascal.masks import IGNORED, read_labels

# (H, W, 3) uint8 RGB, (H, W) uint8 labels, and (height, width) without padding. Padding lies below the image and to its
# right, and is labelled as ignored.
MaskSample = tuple[np.ndarray, np.ndarray, tuple[int, int]]


@dataclass
class SizeGroup:
    """Images of one size in a batch.

    Attributes:
        images: (N, 3, H, W) uint8 RGB, channels_last in memory.
        masks: (N, H, W) uint8.
        image_sizes: (N, 2) height and width of each image, without padding.
        positions: (N,) index of each image in the batch.
    """

    images: Tensor
    masks: Tensor
    image_sizes: Tensor
    positions: Tensor


@dataclass
class MaskBatch(Batch):
    """Images of different sizes, grouped by size."""

    groups: list[SizeGroup]


def group_sizes(samples: Sequence[MaskSample]) -> list[SizeGroup]:
    """Group samples by size, and stack each group."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for position, (_, labels, _) in enumerate(samples):
        by_size.setdefault(labels.shape, []).append(position)
    groups = []
    for positions in by_size.values():
        images, masks = (torch.from_numpy(np.stack([samples[position][i] for position in positions])) for i in (0, 1))
        image_sizes = torch.tensor([samples[position][2] for position in positions])
        groups.append(SizeGroup(images.permute(0, 3, 1, 2), masks, image_sizes, torch.tensor(positions)))
    return groups


def collate_masks(samples: Sequence[MaskSample], base: Batch) -> MaskBatch:
    """Collate samples into a batch."""
    return MaskBatch(**vars(base), groups=group_sizes(samples))


@dataclass(frozen=True)
class WholeImages:
    """Whole images at their original size.

    Attributes:
        classes: number of classes.
        mirror: whether to mirror half of the images.
    """

    classes: int
    mirror: bool = False
    views: ClassVar[int] = 1

    def __call__(self, record: Record, rng: SampleRNG) -> MaskSample:
        image = record.image()
        labels, pixels = read_labels(record.fields.get("mask"), image, self.classes), image.pixels()
        if self.mirror and rng.uniforms(1)[0] < 0.5:
            pixels, labels = flip_image(pixels), np.ascontiguousarray(labels[:, ::-1])
        return pixels, labels, labels.shape

    collate = staticmethod(collate_masks)


@dataclass(frozen=True)
class MaskedCrops:
    """Random square crops of images that are resized by a random factor.

    Masks are resized with nearest-neighbour interpolation. Crops that are larger than the resized image are padded, and
    the padding is labelled as ignored.

    Attributes:
        classes: number of classes.
        size: side of the crops, in pixels.
        scale: minimum and maximum resize factor; its logarithm is uniform.
        mirror: whether to mirror half of the crops.
    """

    classes: int
    size: int
    scale: tuple[float, float]
    mirror: bool = True
    views: ClassVar[int] = 1

    def __call__(self, record: Record, rng: SampleRNG) -> MaskSample:
        image = record.image()
        labels, pixels = read_labels(record.fields.get("mask"), image, self.classes), image.pixels()
        u = rng.uniforms(4)
        factor = self.scale[0] * (self.scale[1] / self.scale[0]) ** u[0]
        window = [min(length, max(1, round(self.size / factor))) for length in labels.shape]
        top, left = (int(u[1 + i] * (labels.shape[i] - window[i] + 1)) for i in (0, 1))
        height, width = (min(self.size, max(1, round(length * factor))) for length in window)
        patch = torch.from_numpy(pixels[top : top + window[0], left : left + window[1]])[None].permute(0, 3, 1, 2)
        patch = F.interpolate(patch, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        rows, columns = (nearest_indices(*lengths) for lengths in zip(window, (height, width), strict=True))
        mask = labels[top + rows][:, left + columns]
        if self.mirror and u[3] < 0.5:
            patch, mask = flip_image(patch), mask[:, ::-1]
        crop = np.zeros((self.size, self.size, 3), np.uint8)
        target = np.full((self.size, self.size), IGNORED, np.uint8)
        crop[:height, :width], target[:height, :width] = patch, mask
        return crop, target, (height, width)

    collate = staticmethod(collate_masks)
