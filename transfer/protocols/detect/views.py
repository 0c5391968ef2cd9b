"""What is made of an image, its objects and its proposals: resized, and in training a sample of labelled regions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crosschannel.data import crops
from crosschannel.data.record import Record
from crosschannel.data.views import Batch, SampleRNG
from transfer.boxes import clipped, flip_boxes, from_voc, has_area, overlaps
from transfer.pascal.devkit import Objects
from transfer.protocols.detect.config import SampleConfig


@dataclass
class Regions:
    """The boxes of an image, in pixels of the resized image; see :mod:`transfer.boxes`.

    Attributes:
        boxes: (R, 4) float32 to be looked at.
        labels: (R,) int64, what each shows; the number of classes is background. In training only.
        targets: (R, 4) float32, the object that each shows (of background anything). In training only.
        objects: (G, 4) float32 of all objects that are learned.
        classes: (G,) int64.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    objects: Tensor
    classes: Tensor


@dataclass
class DetectionBatch(Batch):
    """Images of any sizes.

    Attributes:
        images: (3, H, W) uint8 RGB each.
        regions: of each.
        sizes: (N, 2) height and width that each was of before it was resized.
    """

    images: list[Tensor]
    regions: list[Regions]
    sizes: Tensor


RegionSample = tuple[Tensor, Regions, tuple[int, int]]


def collate_regions(samples: Sequence[RegionSample], base: Batch) -> DetectionBatch:
    """Samples as a batch."""
    images, regions = [sample[0] for sample in samples], [sample[1] for sample in samples]
    sizes = torch.tensor([sample[2] for sample in samples], dtype=torch.int64).view(-1, 2)
    return DetectionBatch(**vars(base), images=images, regions=regions, sizes=sizes)


def resize_factor(height: int, width: int, short: int, longest: int) -> float:
    """By what an image is resized so that its short side is ``short`` and its long side no longer than ``longest``."""
    return min(short / min(height, width), longest / max(height, width))


def resize_pixels(pixels: np.ndarray, factor: float) -> Tensor:
    """(H, W, 3) uint8 → (3, h, w) uint8."""
    size = [max(1, round(side * factor)) for side in pixels.shape[:2]]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(image, size, mode="bilinear", antialias=True)[0]


@dataclass(frozen=True)
class SampledRegions:
    """A training image at a random scale, mirrored half of the time, with a sample of its regions if the record has
    ``proposals``; else the net proposes them.

    Attributes:
        classes: there are; background's label.
        sample: which regions.
        scales, longest: of the short side, and the greatest long side.
        mirror: whether to mirror at all.
    """

    classes: int
    sample: SampleConfig
    scales: tuple[int, ...]
    longest: int
    mirror: bool = True
    views: ClassVar[int] = 1

    def __call__(self, record: Record, rng: SampleRNG) -> RegionSample:
        image, objects, proposals = record.image(), record.fields["objects"], record.fields.get("proposals")
        u = rng.uniforms(3)
        pixels, height, width = image.pixels(), image.height, image.width
        truth, classes = trainable_objects(objects, height, width, self.sample.difficult)
        boxes, labels, targets = np.empty((0, 4)), np.empty(0, np.int64), np.empty((0, 4))
        if proposals is not None:
            boxes = candidates(proposals, truth, height, width)
            generator = np.random.default_rng(int(u[2] * 2**53))
            boxes, labels, targets = sample_regions(boxes, truth, classes, self.classes, self.sample, generator)
        if self.mirror and u[1] < 0.5:
            pixels = crops.flip_image(pixels)
            boxes, targets, truth = (flip_boxes(one, width) for one in (boxes, targets, truth))
        short = self.scales[int(u[0] * len(self.scales))]
        resized_image = resize_pixels(pixels, resize_factor(height, width, short, self.longest))
        scale = _scale(resized_image, height, width)
        boxes, targets, truth = (torch.from_numpy(one * scale).float() for one in (boxes, targets, truth))
        regions = Regions(boxes, torch.from_numpy(labels), targets, truth, torch.from_numpy(classes))
        return resized_image, regions, (height, width)

    collate = staticmethod(collate_regions)


@dataclass(frozen=True)
class AllRegions:
    """A whole image at one scale, with all of its proposals, if it has any."""

    scale: int
    longest: int
    views: ClassVar[int] = 1

    def __call__(self, record: Record, _rng: SampleRNG) -> RegionSample:
        image, proposals = record.image(), record.fields.get("proposals", np.empty((0, 4), np.float32))
        height, width = image.height, image.width
        pixels = resize_pixels(image.pixels(), resize_factor(height, width, self.scale, self.longest))
        boxes = clipped(proposals.astype(np.float64), height, width)
        boxes = boxes[has_area(boxes)] * _scale(pixels, height, width)
        none, no_labels = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
        return pixels, Regions(torch.from_numpy(boxes).float(), no_labels, none, none, no_labels), (height, width)

    collate = staticmethod(collate_regions)


def trainable_objects(objects: Objects, height: int, width: int, difficult: bool) -> tuple[np.ndarray, np.ndarray]:
    """The objects that are learned: boxes (G, 4), the part of each that lies in the image, and classes (G,)."""
    boxes = clipped(from_voc(np.asarray(objects.boxes, np.float64)), height, width)
    kept = has_area(boxes) & (difficult | ~objects.difficult)
    return boxes[kept], objects.classes[kept]


def candidates(proposals: np.ndarray, truth: np.ndarray, height: int, width: int) -> np.ndarray:
    """The regions that there are to choose from: the objects themselves, and the proposals in the image."""
    boxes = clipped(proposals.astype(np.float64), height, width)
    return np.concatenate([truth, boxes[has_area(boxes)]])


def sample_regions(
    boxes: np.ndarray,
    truth: np.ndarray,
    classes: np.ndarray,
    background: int,
    sample: SampleConfig,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions that are learned from, of one image.

    Args:
        boxes: (N, 4) to choose from.
        truth, classes: (G, 4), (G,) objects.
        background: its label.
        sample: how.
        generator: of chance.

    Returns:
        boxes (R, 4), labels (R,), and the objects that they show (R, 4); of background the boxes themselves.
    """
    if not len(truth):
        matched, best = np.zeros(len(boxes), np.int64), np.zeros(len(boxes))
    else:
        shared = overlaps(boxes, truth)
        matched, best = shared.argmax(1), shared.max(1)
    low, high = sample.background
    foreground = np.flatnonzero(best >= sample.overlap)
    rest = np.flatnonzero((best >= low) & (best < high))
    front = min(round(sample.foreground * sample.regions), len(foreground))
    foreground = generator.choice(foreground, front, replace=False) if front else foreground[:0]
    back = min(sample.regions - front, len(rest))
    rest = generator.choice(rest, back, replace=False) if back else rest[:0]
    chosen = np.concatenate([foreground, rest])
    labels = np.full(len(chosen), background, np.int64)
    targets = boxes[chosen].copy()
    if front:
        labels[:front], targets[:front] = classes[matched[foreground]], truth[matched[foreground]]
    return boxes[chosen], labels, targets


def _scale(image: Tensor, height: int, width: int) -> np.ndarray:
    """By what boxes of an image are multiplied once it was resized, (4,)."""
    return np.tile([image.shape[2] / width, image.shape[1] / height], 2)
