"""Views, which convert records to samples and collate samples into batches.

Every :class:`~crosschannel.data.stream.Stream` has one view, chosen by the task or protocol. In evaluation a view may
make several samples from each record.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from crosschannel.config.training import CropConfig
from crosschannel.data.crops import centre_box, crop_and_resize, random_box, squash, ten_crop_box
from crosschannel.data.order import mix, uniforms
from crosschannel.data.record import Record

Broken = list[tuple[int, str]]  # (index, reason) of images that could not be read


@dataclass(frozen=True)
class SampleRNG:
    """Random numbers of one sample, a pure function of (seed, epoch, position, attempt).

    Attributes:
        view: index of the sample among the samples of its record.
        keys: integers that determine the random numbers.
    """

    view: int
    keys: tuple[int, ...]

    def uniforms(self, count: int) -> list[float]:
        """Return the first ``count`` values of a fixed sequence of uniform random numbers in [0, 1)."""
        return uniforms(count, *self.keys)

    def generator(self) -> np.random.Generator:
        """Return a NumPy generator, for other distributions and any number of values."""
        return np.random.default_rng(mix(*self.keys))


@dataclass
class Batch:
    """A batch of samples. Views add their tensors in a subclass.

    Attributes:
        indices: (N,) int64 indices into the image set.
        labels: (N,) int64 class indices, -1 if unknown; (N, classes) for multi-label images.
        seeds: (N,) int64 per-sample seeds of :meth:`uniforms`.
        broken: images that were replaced (training) or skipped (evaluation).
    """

    indices: Tensor
    labels: Tensor
    seeds: Tensor
    broken: Broken

    def __len__(self) -> int:
        return len(self.indices)

    def uniforms(self, count: int) -> Tensor:
        """Return random numbers per sample: (N, count) float64 in [0, 1), on the CPU.

        The numbers of a sample do not depend on its batch, its rank or broken images. They are independent of the
        random numbers of the view.
        """
        rows = [uniforms(count, seed, 1) for seed in self.seeds.tolist()]
        return torch.tensor(rows, dtype=torch.float64).view(len(self), count)

    def pin_memory(self) -> Self:
        """Copy the tensors to page-locked memory."""
        return map_tensors(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """Move the tensors to a device, except indices and seeds: reading these back would synchronise a GPU."""
        batch = map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))
        return replace(batch, indices=self.indices, seeds=self.seeds)


T = TypeVar("T")


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Apply a function to all tensors in a dataclass, including nested lists, tuples, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


S = TypeVar("S")


class View(Protocol[S]):
    """Interface of views. A view is sent to the loader's workers, so it should contain settings but no pixels.

    A view with ``reads = False`` is never called, and its batches have no pixels.

    Attributes:
        views: number of samples per record in evaluation.
    """

    views: int

    def __call__(self, record: Record, rng: SampleRNG) -> S:
        """Make a sample, as a pure function of the record and ``rng``.

        Raises:
            BrokenImage: the image cannot be read.
        """
        ...

    def collate(self, samples: Sequence[S], base: Batch) -> Batch:
        """Collate samples, possibly none, into a batch; ``base`` contains the fields that all batches have."""
        ...


@dataclass
class ImageBatch(Batch):
    """A batch of crops.

    Attributes:
        images: (N, 3, S, S) uint8 RGB, channels_last in memory.
    """

    images: Tensor


def stack_crops(crops: Sequence[np.ndarray]) -> Tensor:
    """Stack crops (S, S, 3) uint8 of the same size into (N, 3, S, S), channels_last in memory."""
    stacked = np.stack(crops) if len(crops) else np.empty((0, 1, 1, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def collate_crops(samples: Sequence[np.ndarray], base: Batch) -> ImageBatch:
    """Collate crops (S, S, 3) uint8 of the same size into a batch."""
    return ImageBatch(**vars(base), images=stack_crops(samples))


@dataclass(frozen=True)
class TrainingCrops:
    """Training crops as configured by ``crop``; in evaluation ``views`` random crops per image."""

    crop: CropConfig
    interpolation: str = "bilinear"
    views: int = 1

    def __call__(self, record: Record, rng: SampleRNG) -> np.ndarray:
        image = record.image()
        u = rng.uniforms(5)
        box = random_box(image.width, image.height, self.crop, u)
        return crop_and_resize(image, box, self.crop.size, self.crop.mirror and u[4] < 0.5, self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class CentreCrop:
    """The centre crop of ``size`` × ``size`` pixels, after resizing the short side to ``resize``."""

    size: int
    resize: int
    interpolation: str = "bilinear"
    views: ClassVar[int] = 1

    def __call__(self, record: Record, _rng: SampleRNG) -> np.ndarray:
        image = record.image()
        box = centre_box(image.width, image.height, self.size, self.resize)
        return crop_and_resize(image, box, self.size, interpolation=self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class TenCrops:
    """The four corners and the centre, then the same mirrored, after resizing the short side to ``resize``."""

    size: int
    resize: int
    interpolation: str = "bilinear"
    views: ClassVar[int] = 10

    def __call__(self, record: Record, rng: SampleRNG) -> np.ndarray:
        image = record.image()
        box, mirror = ten_crop_box(image.width, image.height, self.size, self.resize, rng.view)
        return crop_and_resize(image, box, self.size, mirror, self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class Squashed:
    """The entire image, squashed to ``size`` × ``size`` pixels.

    Attributes:
        size: side of the result, in pixels.
        interpolation: "bilinear" or "bicubic".
        resize: short side after an intermediate resize that keeps the aspect ratio; 0 skips this resize.
    """

    size: int
    interpolation: str = "bilinear"
    resize: int = 0
    views: ClassVar[int] = 1

    def __call__(self, record: Record, _rng: SampleRNG) -> np.ndarray:
        return squash(record.image(), self.size, self.resize, self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class IndexOnly:
    """A view that reads no images, for tasks with cached features."""

    views: ClassVar[int] = 1
    reads: ClassVar[bool] = False

    @staticmethod
    def collate(_samples: Sequence[None], base: Batch) -> Batch:
        return base
