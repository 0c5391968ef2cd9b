"""Batches of crops in an order that depends on (seed, epoch, position) alone.

A training stream is endless: sample number c is position c mod N of epoch c div N. A rank asks for the numbers it
is to see; who else runs, how many workers decode and whether the run was restarted changes nothing.
"""

import ctypes
import errno
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crosschannel.data.crops import CropConfig, centre_box, cut, random_box, ten_crop_box
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.data.images import ImageSet
from crosschannel.data.order import epoch_order, mix, uniforms
from crosschannel.errors import UserError

_LOST = "DataLoader worker"  # as torch begins to say so
_ATTEMPTS = 20
_BLANK = np.zeros((1, 1, 3), np.uint8)
Sample = tuple[np.ndarray | None, int, list[tuple[int, str]]]  # crop if any was readable, index, broken ones met


@dataclass
class Batch:
    """A batch as it leaves the workers.

    Attributes:
        images: (N, 3, S, S) uint8 RGB, channels_last in memory.
        indices: (N,) int64 into the ImageSet.
        broken: (index, reason) of the images that had to be replaced (training) or left out (validation).
    """

    images: Tensor
    indices: Tensor
    broken: list[tuple[int, str]]

    def pin_memory(self) -> "Batch":
        return Batch(self.images.pin_memory(), self.indices, self.broken)


class CropStream(Dataset):
    """Sample number → crop, a pure function of the seed.

    Args:
        images: where the pixels come from.
        crop: what is cut out of them.
        seed: of order and augmentation.
        train: shuffle and augment; otherwise sample c is the centre crop of image c.
        ten_crops: where not training, sample c is one of ten crops of image c div 10.
        interpolation: of crops that are not copies, "bilinear" or "bicubic".
    """

    def __init__(
        self,
        images: ImageSet,
        crop: CropConfig,
        seed: int = 0,
        train: bool = True,
        ten_crops: bool = False,
        interpolation: str = "bilinear",
    ):
        self.images, self.crop, self.seed, self.train = images, crop, seed, train
        self.ten_crops, self.interpolation = ten_crops, interpolation
        self.views = 10 if ten_crops else 1  # crops an image, where not training
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> Sample:
        return self._sample(number, self._read(self.place(number, 0)))

    def __getitems__(self, numbers: list[int]) -> list[Sample] | UserError:
        """Several samples; where the images are gone, why (a worker's exception would arrive as a traceback)."""
        try:
            if not self.images.remote:
                return [self[number] for number in numbers]
            first = self.images.read_many([self.place(number, 0) for number in numbers])
            return [self._sample(number, data) for number, data in zip(numbers, first, strict=True)]
        except UserError as error:
            return error

    def _sample(self, number: int, first: bytes | str) -> Sample:
        broken: list[tuple[int, str]] = []
        for attempt in range(_ATTEMPTS if self.train else 1):
            index = self.place(number, attempt)
            data = self._read(index) if attempt else first
            if isinstance(data, str):
                broken.append((index, data))
                continue
            try:
                return self._crop(EncodedImage(data), number, attempt), index, broken
            except BrokenImage as error:
                broken.append((index, str(error)))
        return None, index, broken

    def _read(self, index: int) -> bytes | str:
        """An image's bytes, or why that one image cannot be read."""
        try:
            return self.images.read(index)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # this machine's fault, not the image's
                raise UserError(f"cannot read images: {error}") from None
            return str(error)

    def place(self, number: int, attempt: int) -> int:
        """The index of the image that a sample shows, after so many broken ones."""
        if not self.train:
            return number // self.views
        epoch, position = divmod(number, len(self.images))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.images), self.seed, epoch))
        if attempt:
            position = mix(self.seed, epoch, position, attempt) % len(self.images)
        return int(self._order[1][position])

    def _crop(self, image: EncodedImage, number: int, attempt: int) -> np.ndarray:
        mirror = False
        if self.train:
            epoch, position = divmod(number, len(self.images))
            u = uniforms(5, self.seed, epoch, position, attempt, 1)
            box = random_box(image.width, image.height, self.crop, u)
            mirror = self.crop.mirror and u[4] < 0.5
        elif self.ten_crops:
            box, mirror = ten_crop_box(image.width, image.height, self.crop, number % 10)
        else:
            box = centre_box(image.width, image.height, self.crop)
        return cut(image, box, self.crop.size, mirror, self.interpolation)


class IndexStream(CropStream):
    """The order of a stream without its pixels, for who holds what it needs of every image already."""

    def __getitems__(self, numbers: list[int]) -> list[Sample]:
        return [(_BLANK, self.place(number, 0), []) for number in numbers]


class BrokenImages:
    """Counts broken images and stops a run once they are too many.

    Args:
        limit: greatest share of broken ones among the images seen …
        after: … once this many were seen.
    """

    def __init__(self, limit: float = 0.01, after: int = 1000):
        self.limit, self.after = limit, after
        self.seen = self.broken = 0

    def count(self, seen: int, broken: list[str]) -> None:
        """Add to the tally, unless it passes the limit.

        Args:
            seen: images asked for.
            broken: names of those that could not be read.

        Raises:
            UserError: more than the allowed share is broken.
        """
        all_seen, all_broken = self.seen + seen + len(broken), self.broken + len(broken)
        if all_seen > self.after and all_broken > self.limit * all_seen:
            raise UserError(
                f"{all_broken} of {all_seen} images seen so far are broken, more than the allowed "
                f"{self.limit:.3g} of them (the last one: {broken[-1] if broken else 'see the log'})"
            )
        self.seen, self.broken = all_seen, all_broken


class _Numbers:
    """A batch sampler over sample numbers: range(start, stop) in steps of batches, `take` of each batch.

    The last part may be empty: all ranks see the same number of batches.
    """

    def __init__(self, start: int, stop: int, batch: int, take: slice):
        self.start, self.stop, self.batch, self.take = start, stop, batch, take

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch):
            yield list(range(first, min(first + self.batch, self.stop))[self.take])

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch)


def crop_loader(
    stream: CropStream,
    start: int,
    stop: int,
    batch: int,
    take: slice = slice(None),
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """Batches over sample numbers ``start`` … ``stop``.

    Args:
        stream: number → crop.
        start, stop: the sample numbers, half open.
        batch: numbers a batch over all ranks.
        take: the part of every batch that this rank loads.
        workers: processes that decode; 0 decodes in this one.
        pin: page-lock the batches, for copies to a GPU.

    Raises:
        UserError: the place that holds the images is gone.
    """
    loader = DataLoader(
        stream,
        batch_sampler=_Numbers(start, stop, batch, take),
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )
    try:
        for loaded in loader:
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded
    except (ConnectionError, EOFError) as error:  # a worker was gone while it handed something over
        raise RuntimeError(f"{_LOST} exited unexpectedly: {error}") from error


def is_worker_loss(error: BaseException) -> bool:
    """Whether an error says that the system killed a loader worker, wherever in the program torch heard of it."""
    return (
        isinstance(error, RuntimeError)
        and re.search(rf"{_LOST}.*(killed by signal|exited unexpectedly)", str(error), re.DOTALL) is not None
    )


def _collate(samples: list[Sample] | UserError) -> Batch | UserError:
    if isinstance(samples, UserError):
        return samples
    crops = [crop for crop, _, _ in samples if crop is not None]
    indices = torch.tensor([index for crop, index, _ in samples if crop is not None], dtype=torch.int64)
    stacked = np.stack(crops) if crops else np.empty((0, 1, 1, 3), np.uint8)
    return Batch(
        torch.from_numpy(stacked).permute(0, 3, 1, 2),
        indices,
        [broken for _, _, found in samples for broken in found],
    )


def _start_worker(worker: int) -> None:
    """Workers leave signals to the main process, use one thread, and die with the main process."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
