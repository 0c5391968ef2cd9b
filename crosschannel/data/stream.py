"""Samples in an order that depends on (seed, epoch, position) alone.

A training stream is endless: sample number c is position c mod N of epoch c div N. A rank asks for the numbers it
is to see; who else runs, how many workers decode and whether the run was restarted changes nothing.
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

_ATTEMPTS = 20
_EVALUATION = 2  # sets the draws of an evaluation apart from those of training
_GRACE = 3.0  # seconds that a worker has to finish its batch
_running: dict[Any, tuple[int, int]] = {}  # iterators of loaders with workers, and the caller of each


@dataclass
class _IndexedSample:
    """A sample of the view (None if no image was readable), its index, its RNG, and the broken images before it."""

    content: Any
    index: int
    rng: SampleRNG
    is_whole: bool
    broken: Broken


class Stream(Dataset):
    """Sample number → sample, a pure function of the seed.

    Args:
        images: where the pixels come from.
        view: what is made of them.
        seed: of order and draws, for training: shuffled, without an end, and a broken image is replaced by another.
            None for evaluations: sample c is view c mod V of image c div V, and its draws are the same in every run.
    """

    def __init__(self, images: ImageSet, view: View, seed: int | None = None):
        self.images, self.view, self.seed = images, view, seed
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def reads(self) -> bool:
        """Whether images are read at all."""
        return getattr(self.view, "reads", True)

    @property
    def count(self) -> int:
        """Samples of one pass over the images."""
        return len(self.images) * self.view.views

    def __getitem__(self, number: int) -> _IndexedSample:
        return self._sample(number, self._read(self.image_index(number, 0)))

    def __getitems__(self, numbers: list[int]) -> list[_IndexedSample] | UserError:
        """Several samples; where the images are gone, why (a worker's exception would arrive as a traceback)."""
        try:
            if not self.reads:
                return [
                    _IndexedSample(None, self.image_index(number, 0), self.rng(number, 0), True, [])
                    for number in numbers
                ]
            if not self.images.remote:
                return [self[number] for number in numbers]
            first = self.images.records([self.image_index(number, 0) for number in numbers])
            return [self._sample(number, record) for number, record in zip(numbers, first, strict=True)]
        except UserError as error:
            return error

    def collate(self, samples: list[_IndexedSample] | UserError) -> Batch | UserError:
        """Samples as the view's batch."""
        if isinstance(samples, UserError):
            return samples
        whole = [sample for sample in samples if sample.is_whole]
        indices = np.array([sample.index for sample in whole], np.int64)
        seeds = np.array([mix(*sample.rng.keys) for sample in whole], np.uint64).view(np.int64)
        broken = [entry for sample in samples for entry in sample.broken]
        labels = torch.from_numpy(np.asarray(self.images.labels)[indices])
        base = Batch(torch.from_numpy(indices), labels, torch.from_numpy(seeds), broken)
        return self.view.collate([sample.content for sample in whole], base)

    def _sample(self, number: int, first: Record | str) -> _IndexedSample:
        broken: Broken = []
        for attempt in range(1 if self.seed is None else _ATTEMPTS):
            index, rng = self.image_index(number, attempt), self.rng(number, attempt)
            record = self._read(index) if attempt else first
            if isinstance(record, str):
                broken.append((index, record))
                continue
            try:
                return _IndexedSample(self.view(record, rng), index, rng, True, broken)
            except BrokenImage as error:
                broken.append((index, str(error)))
        return _IndexedSample(None, index, rng, False, broken)

    def _read(self, index: int) -> Record | str:
        """A record, or the reason why this one image cannot be read."""
        try:
            return self.images.record(index)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # this machine's fault, not the image's
                raise UserError(f"cannot read images: {error}") from None
            return str(error)

    def image_index(self, number: int, attempt: int) -> int:
        """The index of the image that a sample shows, after so many broken ones."""
        if self.seed is None:
            return number // self.view.views
        epoch, position = divmod(number, len(self.images))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.images), self.seed, epoch))
        if attempt:
            position = mix(self.seed, epoch, position, attempt) % len(self.images)
        return int(self._order[1][position])

    def rng(self, number: int, attempt: int) -> SampleRNG:
        """The draws of a sample."""
        if self.seed is None:
            index, view = divmod(number, self.view.views)
            return SampleRNG(view, (0, index, view, _EVALUATION))
        epoch, position = divmod(number, len(self.images))
        return SampleRNG(0, (self.seed, epoch, position, attempt, 1))


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


def load_batches(
    stream: Stream,
    start: int,
    stop: int,
    batch: int,
    take: slice = slice(None),
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Any]:
    """Batches over sample numbers ``start`` … ``stop``.

    Args:
        stream: number → sample.
        start, stop: the sample numbers, half open.
        batch: numbers a batch over all ranks.
        take: the part of every batch that this rank loads.
        workers: processes that decode; 0 decodes in this one.
        pin: page-lock the batches, for copies to a GPU.

    Yields:
        the view's batches.

    Raises:
        UserError: the place that holds the images is gone.
    """
    loader = DataLoader(
        stream,
        batch_sampler=_Numbers(start, stop, batch, take),
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
            _running[iterator] = _caller()
        for loaded in iterator:
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded
    except (ConnectionError, EOFError) as error:  # a worker was gone while it handed something over
        raise RuntimeError(f"{WORKER_ERROR_PREFIX} exited unexpectedly: {error}") from error
    finally:
        _end_workers(iterator)


@contextlib.contextmanager
def workers_ended() -> Iterator[None]:
    """On exit, end the workers of all loaders that this thread started in the block.

    Otherwise an abandoned loader runs as long as anything refers to it, such as the traceback of an error.
    """
    before = set(_running)
    try:
        yield
    finally:
        for iterator, caller in list(_running.items()):
            if iterator not in before and caller == _caller():
                _end_workers(iterator)


def _caller() -> tuple[int, int]:
    """IDs of this process and thread."""
    return os.getpid(), threading.get_ident()


def _end_workers(iterator: Any) -> None:
    """End the workers of a loader, if any; kill those that are still busy after ``_GRACE``, as they ignore SIGTERM."""
    if _running.pop(iterator, None) is None:
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
    """Kill all workers at exit: Python waits for its children, and workers ignore its signals."""
    iterators = [iterator for iterator, (process, _) in _running.items() if process == os.getpid()]  # not a parent's
    if iterators:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each
    for iterator in iterators:
        del _running[iterator]  # its generator closes later, when no thread can start
        _kill(iterator)


def _start_worker(worker: int) -> None:
    """Workers leave signals to the main process, use one thread, and die with the main process."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != multiprocessing.parent_process().pid:  # already dead; torch would not notice
        os._exit(1)
