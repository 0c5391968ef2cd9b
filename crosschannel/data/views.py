"""Views: a view turns a record and its random numbers into a sample, and collates samples into a batch.

A run reads a :class:`~crosschannel.data.stream.Stream` of one view, which its task or protocol chooses. In evaluations
a view may take several samples of each record.
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
    """The random numbers of one sample: pure functions of (seed, epoch, position, attempt).

    Attributes:
        view: index of the sample among those of its record.
        keys: of the numbers.
    """

    view: int
    keys: tuple[int, ...]

    def uniforms(self, count: int) -> list[float]:
        """The first ``count`` numbers in [0, 1)."""
        return uniforms(count, *self.keys)

    def generator(self) -> np.random.Generator:
        """A generator for draws of any distribution and length."""
        return np.random.default_rng(mix(*self.keys))


@dataclass
class Batch:
    """Samples of a step, or of an evaluation. Views add their tensors in a subclass.

    Attributes:
        indices: (N,) int64 into the image set.
        labels: (N,) int64, -1 where unknown; (N, classes) for images of several classes.
        seeds: (N,) int64, per-sample seeds of :meth:`uniforms`.
        broken: images that were replaced (training) or left out (evaluation).
    """

    indices: Tensor
    labels: Tensor
    seeds: Tensor
    broken: Broken

    def __len__(self) -> int:
        return len(self.indices)

    def uniforms(self, count: int) -> Tensor:
        """Random numbers of the samples: (N, count) float64 in [0, 1), on the CPU.

        A sample has the same ones in any batch, on any rank and beside any broken image; they are independent of those
        of its view.
        """
        rows = [uniforms(count, seed, 1) for seed in self.seeds.tolist()]
        return torch.tensor(rows, dtype=torch.float64).view(len(self), count)

    def pin_memory(self) -> Self:
        """Copy to page-locked memory."""
        return map_tensors(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """Move the tensors to a device, except indices and seeds: reading these back would synchronise a GPU."""
        moved = map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, indices=self.indices, seeds=self.seeds)


T = TypeVar("T")


def map_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """Apply a function to all tensors in a dataclass, and in the lists, tuples, dicts and dataclasses in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)})
    return value


S = TypeVar("S")


class View(Protocol[S]):
    """A kind of sample. It travels to the loader's workers, so it holds settings and no decoded pixels. One with
    ``reads = False`` is never called: its batches have no pixels.

    Attributes:
        views: samples per record in evaluations.
    """

    views: int

    def __call__(self, record: Record, rng: SampleRNG) -> S:
        """One sample, a pure function of its record and ``rng``.

        Raises:
            BrokenImage: the image cannot be read.
        """
        ...

    def collate(self, samples: Sequence[S], base: Batch) -> Batch:
        """A batch of samples, of which there may be none; ``base`` has the fields that all batches have."""
        ...


@dataclass
class ImageBatch(Batch):
    """Crops.

    Attributes:
        images: (N, 3, S, S) uint8 RGB, channels_last in memory.
    """

    images: Tensor


def stack_crops(crops: Sequence[np.ndarray]) -> Tensor:
    """Stack crops (S, S, 3) uint8 of one size: (N, 3, S, S), channels_last in memory."""
    stacked = np.stack(crops) if len(crops) else np.empty((0, 1, 1, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def collate_crops(samples: Sequence[np.ndarray], base: Batch) -> ImageBatch:
    """Batch crops (S, S, 3) of one size."""
    return ImageBatch(**vars(base), images=stack_crops(samples))


@dataclass(frozen=True)
class TrainingCrops:
    """A crop of training, as ``crop.kind`` has it; in evaluations, ``views`` of them from each image."""

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
    """The centre square of ``size`` pixels once the short side is ``resize``."""

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
    """The four corners and the centre, then the same mirrored, once the short side is ``resize``."""

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
    """The whole image squashed to ``size`` × ``size`` pixels; ``resize``: short side of an intermediate resize."""

    size: int
    interpolation: str = "bilinear"
    resize: int = 0
    views: ClassVar[int] = 1

    def __call__(self, record: Record, _rng: SampleRNG) -> np.ndarray:
        return squash(record.image(), self.size, self.resize, self.interpolation)

    collate = staticmethod(collate_crops)


@dataclass(frozen=True)
class IndexOnly:
    """Yield indices only, for tasks with cached features."""

    views: ClassVar[int] = 1
    reads: ClassVar[bool] = False

    @staticmethod
    def collate(_samples: Sequence[None], base: Batch) -> Batch:
        return base
