"""Streams of samples, whose order depends only on (seed, epoch, position).

A training stream is endless: sample number c is position c mod N of epoch c div N, for N images. Every rank requests
its samples by number, so that they depend neither on the number of ranks and workers nor on restarts.
"""

import atexit
import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from crosschannel.data.decode import BrokenImage
from crosschannel.data.images import ImageSet
from crosschannel.data.order import epoch_order, mix
from crosschannel.data.record import Record
from crosschannel.data.views import Batch, Broken, SampleRNG, View
from crosschannel.errors import WORKER_ERROR_PREFIX, UserError, is_worker_loss

_MAX_ATTEMPTS = 20  # images to try for a training sample
_EVALUATION_KEY = 2  # separates the random numbers of evaluation from those of training
_GRACE = 3.0  # seconds for a worker to finish its batch
_iterators: dict[Any, tuple[int, int]] = {}  # iterators of loaders with workers → process and thread of the caller


@dataclass
class _IndexedSample:
    """A sample of the view (None if no image was readable), its image index and RNG, and the broken images tried."""

    content: Any
    index: int
    rng: SampleRNG
    is_readable: bool
    broken: Broken


class Stream(Dataset):
    """A dataset that maps sample numbers to samples, as a pure function of the seed.

    Args:
        images: image set to read.
        view: converts records to samples.
        seed: seed of the order and the random numbers in training. The stream is then shuffled and endless, and broken
            images are replaced. None for evaluation: sample c is view c mod V of image c div V, for V views per
            image, with the same random numbers in every run.
    """

    def __init__(self, images: ImageSet, view: View, seed: int | None = None):
        self.images, self.view, self.seed = images, view, seed
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def reads(self) -> bool:
        """Whether the view reads images."""
        return getattr(self.view, "reads", True)

    @property
    def count(self) -> int:
        """Number of samples in one pass over the images."""
        return len(self.images) * self.view.views

    def __getitem__(self, number: int) -> _IndexedSample:
        return self._sample(number, self._read(self.image_index(number, 0)))

    def __getitems__(self, numbers: list[int]) -> list[_IndexedSample] | UserError:
        """Return several samples, or a UserError if the images are not available.

        The error is returned because an exception in a worker would arrive as a traceback.
        """
        try:
            if not self.reads:
                return [
                    _IndexedSample(None, self.image_index(number, 0), self.rng(number, 0), True, [])
                    for number in numbers
                ]
            if not self.images.remote:
                return [self[number] for number in numbers]
            records = self.images.records([self.image_index(number, 0) for number in numbers])
            return [self._sample(number, record) for number, record in zip(numbers, records, strict=True)]
        except UserError as error:
            return error

    def collate(self, samples: list[_IndexedSample] | UserError) -> Batch | UserError:
        """Collate samples into a batch of the view; return errors unchanged."""
        if isinstance(samples, UserError):
            return samples
        readable = [sample for sample in samples if sample.is_readable]
        indices = np.array([sample.index for sample in readable], np.int64)
        seeds = np.array([mix(*sample.rng.keys) for sample in readable], np.uint64).view(np.int64)
        broken = [entry for sample in samples for entry in sample.broken]
        labels = torch.from_numpy(np.asarray(self.images.labels)[indices])
        base = Batch(torch.from_numpy(indices), labels, torch.from_numpy(seeds), broken)
        return self.view.collate([sample.content for sample in readable], base)

    def _sample(self, number: int, first_record: Record | str) -> _IndexedSample:
        """Make a sample from the first readable image; ``first_record`` is the result of the first read."""
        broken: Broken = []
        for attempt in range(1 if self.seed is None else _MAX_ATTEMPTS):
            index, rng = self.image_index(number, attempt), self.rng(number, attempt)
            record = self._read(index) if attempt else first_record
            if isinstance(record, str):
                broken.append((index, record))
                continue
            try:
                return _IndexedSample(self.view(record, rng), index, rng, True, broken)
            except BrokenImage as error:
                broken.append((index, str(error)))
        return _IndexedSample(None, index, rng, False, broken)

    def _read(self, index: int) -> Record | str:
        """Return a record, or the reason if the image cannot be read."""
        try:
            return self.images.record(index)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # a failure of the machine, not of the image
                raise UserError(f"could not read images: {error}") from None
            return str(error)

    def image_index(self, number: int, attempt: int) -> int:
        """Return the image index of a sample, after ``attempt`` broken images."""
        if self.seed is None:
            return number // self.view.views
        epoch, position = divmod(number, len(self.images))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.images), self.seed, epoch))
        if attempt:
            position = mix(self.seed, epoch, position, attempt) % len(self.images)
        return int(self._order[1][position])

    def rng(self, number: int, attempt: int) -> SampleRNG:
        """Return the RNG of a sample, after ``attempt`` broken images."""
        if self.seed is None:
            index, view = divmod(number, self.view.views)
            return SampleRNG(view, (0, index, view, _EVALUATION_KEY))
        epoch, position = divmod(number, len(self.images))
        return SampleRNG(0, (self.seed, epoch, position, attempt, 1))


class BrokenImages:
    """Counter of broken images, which raises an error if there are too many.

    Args:
        limit: maximum fraction of broken images.
        after: number of images before the limit applies.
    """

    def __init__(self, limit: float = 0.01, after: int = 1000):
        self.limit, self.after = limit, after
        self.seen = self.broken = 0

    def count(self, seen: int, broken: list[str]) -> None:
        """Add images to the counts, unless the new total exceeds the limit.

        Args:
            seen: number of readable images.
            broken: names of the broken images.

        Raises:
            UserError: the fraction of broken images exceeds the limit.
        """
        total_seen, total_broken = self.seen + seen + len(broken), self.broken + len(broken)
        if total_seen > self.after and total_broken > self.limit * total_seen:
            raise UserError(
                f"{total_broken} of {total_seen} images read so far are broken, which exceeds the limit of "
                f"{self.limit:.3g} (last broken image: {broken[-1] if broken else 'see the log'})"
            )
        self.seen, self.broken = total_seen, total_broken


class _RankBatchSampler:
    """Batch sampler for one rank: the slice ``rank_slice`` of every batch of range(start, stop).

    The last slice may be empty, so that all ranks have the same number of batches.
    """

    def __init__(self, start: int, stop: int, batch: int, rank_slice: slice):
        self.start, self.stop, self.batch, self.rank_slice = start, stop, batch, rank_slice

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch):
            yield list(range(first, min(first + self.batch, self.stop))[self.rank_slice])

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch)


def load_batches(
    stream: Stream,
    start: int,
    stop: int,
    batch: int,
    rank_slice: slice = slice(None),
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Any]:
    """Load the samples with numbers in range(start, stop) in batches.

    Args:
        stream: stream of the samples.
        start, stop: half-open range of sample numbers.
        batch: batch size over all ranks.
        rank_slice: slice of every batch that this rank loads.
        workers: number of processes for decoding; 0 decodes in this process.
        pin: whether to place batches in page-locked memory, for copies to a GPU.

    Yields:
        Batches of the view.

    Raises:
        UserError: the images are not available.
        RuntimeError: a worker exited unexpectedly.
    """
    loader = DataLoader(
        stream,
        batch_sampler=_RankBatchSampler(start, stop, batch, rank_slice),
        collate_fn=stream.collate,
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    iterator = None
    try:
        iterator = iter(loader)
        if workers:
            _iterators[iterator] = _caller()
        for loaded_batch in iterator:
            if isinstance(loaded_batch, UserError):
                raise loaded_batch
            yield loaded_batch
    except (ConnectionError, EOFError) as error:  # a worker died while it was sending data
        raise RuntimeError(f"{WORKER_ERROR_PREFIX} exited unexpectedly: {error}") from error
    finally:
        _end_workers(iterator)


@contextlib.contextmanager
def workers_ended() -> Iterator[None]:
    """End, on exit, the workers of all loaders that this thread started in the block.

    Otherwise an abandoned loader runs as long as something refers to it, such as the traceback of an error.
    """
    before = set(_iterators)
    try:
        yield
    finally:
        for iterator, caller in list(_iterators.items()):
            if iterator not in before and caller == _caller():
                _end_workers(iterator)


def _caller() -> tuple[int, int]:
    """Return the IDs of this process and thread."""
    return os.getpid(), threading.get_ident()


def _end_workers(iterator: Any) -> None:
    """End the workers of a loader, if any. Those still busy after ``_GRACE`` seconds are killed."""
    if _iterators.pop(iterator, None) is None:
        return
    killer = threading.Timer(_GRACE, _kill, [iterator])
    killer.start()
    try:
        iterator._shutdown_workers()
    except RuntimeError as error:
        if not is_worker_loss(error):
            raise
    finally:
        killer.cancel()
        _kill(iterator)


def _kill(iterator: Any) -> None:
    for worker in iterator._workers:
        worker.kill()


@atexit.register
def _kill_all() -> None:
    """Kill all workers at exit, because Python waits for its child processes, which ignore signals."""
    # A forked process also has the iterators of its parent.
    iterators = [iterator for iterator, (process, _) in _iterators.items() if process == os.getpid()]
    if iterators:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each worker
    for iterator in iterators:
        del _iterators[iterator]  # its generator is closed later, when no thread can be started
        _kill(iterator)


def _start_worker(worker: int) -> None:
    """Initialise a worker, which ignores signals, uses one thread and dies with the main process."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != multiprocessing.parent_process().pid:  # already dead, which torch would not notice
        os._exit(1)
