"""Views for detection: resized images with all of their proposals or, in training, a sample of labelled regions."""

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
from transfer.boxes import clip_boxes, flip_boxes, from_voc, has_area, overlaps
from transfer.pascal.devkit import Objects
from transfer.protocols.detect.config import SampleConfig


@dataclass
class Regions:
    """Regions and objects of an image, in pixels of the resized image; see :mod:`transfer.boxes`.

    Attributes:
        boxes: (R, 4) float32 boxes of the regions.
        labels: (R,) int64 class index of each region; K, the number of classes, for background; only in training.
        targets: (R, 4) float32 box of the object in each region, arbitrary for background; only in training.
        objects: (G, 4) float32 boxes of the objects to train on.
        classes: (G,) int64 class indices of the objects.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    objects: Tensor
    classes: Tensor


@dataclass
class DetectionBatch(Batch):
    """Images of different sizes, with their regions.

    Attributes:
        images: resized images, (3, H, W) uint8 RGB each.
        regions: regions of each image.
        original_sizes: (N, 2) height and width of each image before it was resized.
    """

    images: list[Tensor]
    regions: list[Regions]
    original_sizes: Tensor


RegionSample = tuple[Tensor, Regions, tuple[int, int]]


def collate_regions(samples: Sequence[RegionSample], base: Batch) -> DetectionBatch:
    """Collate samples into a batch."""
    images, regions = [sample[0] for sample in samples], [sample[1] for sample in samples]
    sizes = torch.tensor([sample[2] for sample in samples], dtype=torch.int64).view(-1, 2)
    return DetectionBatch(**vars(base), images=images, regions=regions, original_sizes=sizes)


def resize_factor(height: int, width: int, short: int, longest: int) -> float:
    """Return the factor that resizes the short side to ``short``, or the long side to ``longest`` if smaller."""
    return min(short / min(height, width), longest / max(height, width))


def resize_pixels(pixels: np.ndarray, factor: float) -> Tensor:
    """Resize an image by a factor: (H, W, 3) uint8 → (3, h, w) uint8."""
    size = [max(1, round(side * factor)) for side in pixels.shape[:2]]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(image, size, mode="bilinear", antialias=True)[0]


@dataclass(frozen=True)
class SampledRegions:
    """Training image resized to a random scale, with a sample of its regions.

    Records without ``proposals`` get no regions, because the detector proposes them itself.

    Attributes:
        classes: number of classes, which is also the label of background.
        sample: settings for sampling regions.
        scales: short sides to choose from, in pixels.
        longest: maximum long side, in pixels.
        mirror: whether to mirror half of the images.
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
        object_boxes, classes = trainable_objects(objects, height, width, self.sample.difficult)
        boxes, labels, targets = np.empty((0, 4)), np.empty(0, np.int64), np.empty((0, 4))
        if proposals is not None:
            boxes = candidates(proposals, object_boxes, height, width)
            generator = np.random.default_rng(int(u[2] * 2**53))
            boxes, labels, targets = sample_regions(boxes, object_boxes, classes, self.classes, self.sample, generator)
        if self.mirror and u[1] < 0.5:
            pixels = crops.flip_image(pixels)
            boxes, targets, object_boxes = (flip_boxes(array, width) for array in (boxes, targets, object_boxes))
        short = self.scales[int(u[0] * len(self.scales))]
        resized = resize_pixels(pixels, resize_factor(height, width, short, self.longest))
        scale = _box_scale(resized, height, width)
        boxes, targets, object_boxes = (
            torch.from_numpy(array * scale).float() for array in (boxes, targets, object_boxes)
        )
        regions = Regions(boxes, torch.from_numpy(labels), targets, object_boxes, torch.from_numpy(classes))
        return resized, regions, (height, width)

    collate = staticmethod(collate_regions)


@dataclass(frozen=True)
class AllRegions:
    """Image resized to a fixed scale, with all of its proposals.

    Attributes:
        scale: short side, in pixels.
        longest: maximum long side, in pixels.
    """

    scale: int
    longest: int
    views: ClassVar[int] = 1

    def __call__(self, record: Record, _rng: SampleRNG) -> RegionSample:
        image, proposals = record.image(), record.fields.get("proposals", np.empty((0, 4), np.float32))
        height, width = image.height, image.width
        pixels = resize_pixels(image.pixels(), resize_factor(height, width, self.scale, self.longest))
        boxes = clip_boxes(proposals.astype(np.float64), height, width)
        boxes = boxes[has_area(boxes)] * _box_scale(pixels, height, width)
        no_boxes, no_labels = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
        return (
            pixels,
            Regions(torch.from_numpy(boxes).float(), no_labels, no_boxes, no_boxes, no_labels),
            (height, width),
        )

    collate = staticmethod(collate_regions)


def trainable_objects(objects: Objects, height: int, width: int, difficult: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (G, 4) and classes (G,) of the objects to train on, clipped to the image.

    Args:
        objects: annotated objects.
        height, width: size of the image.
        difficult: include objects marked difficult.
    """
    boxes = clip_boxes(from_voc(np.asarray(objects.boxes, np.float64)), height, width)
    selected = has_area(boxes) & (difficult | ~objects.difficult)
    return boxes[selected], objects.classes[selected]


def candidates(proposals: np.ndarray, objects: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the candidate regions (N, 4) of an image: the boxes of its objects, and its proposals clipped to it."""
    boxes = clip_boxes(proposals.astype(np.float64), height, width)
    return np.concatenate([objects, boxes[has_area(boxes)]])


def sample_regions(
    boxes: np.ndarray,
    objects: np.ndarray,
    classes: np.ndarray,
    background_label: int,
    sample: SampleConfig,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample foreground and background regions of an image for training.

    Args:
        boxes: (N, 4) candidate regions.
        objects, classes: (G, 4) boxes and (G,) class indices of the objects.
        background_label: label of background regions.
        sample: sampling settings.
        generator: random generator.

    Returns:
        (R, 4) boxes of the regions, (R,) their labels, and (R, 4) target boxes: the box of the matched object, or
        the region's own box for background.
    """
    if not len(objects):
        matched, best_ious = np.zeros(len(boxes), np.int64), np.zeros(len(boxes))
    else:
        ious = overlaps(boxes, objects)
        matched, best_ious = ious.argmax(1), ious.max(1)
    low, high = sample.background
    foreground = np.flatnonzero(best_ious >= sample.overlap)
    background = np.flatnonzero((best_ious >= low) & (best_ious < high))
    n_foreground = min(round(sample.foreground * sample.regions), len(foreground))
    foreground = generator.choice(foreground, n_foreground, replace=False) if n_foreground else foreground[:0]
    n_background = min(sample.regions - n_foreground, len(background))
    background = generator.choice(background, n_background, replace=False) if n_background else background[:0]
    sampled = np.concatenate([foreground, background])
    labels = np.full(len(sampled), background_label, np.int64)
    targets = boxes[sampled].copy()
    if n_foreground:
        labels[:n_foreground], targets[:n_foreground] = classes[matched[foreground]], objects[matched[foreground]]
    return boxes[sampled], labels, targets


def _box_scale(image: Tensor, height: int, width: int) -> np.ndarray:
    """Return the factors (4,) that convert box coordinates of the original image to the resized one."""
    return np.tile([image.shape[2] / width, image.shape[1] / height], 2)
