"""Convex classifiers on few images of many numbers, in the few directions that matter.

The weights of an L2-regularised linear model lie in the span of its training images. Rotated onto that span, n images
of d > n numbers are n images of n numbers with the same inner products, and so the same classifier.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from crosschannel.errors import UserError


def project_onto_span(train: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Training images by their coordinates in the directions that they span.

    Args:
        train: (n, d) float.

    Returns:
        (n, r) float64, r = min(n, d), with the same inner products; and the directions (d, r), by which other images
        are to be multiplied, None where n images span everything.
    """
    train = train.astype(np.float64)
    if len(train) >= train.shape[1]:
        return train, None
    directions = np.linalg.qr(train.T)[0]
    return train @ directions, directions


class Processes:
    """Processes of one thread each, to fit classifiers in (liblinear draws from one generator a process).

    A context. The processes do not import the caller's main module, so a script from stdin, or without the usual guard
    (``if __name__ == "__main__"``), can use them.

    Args:
        jobs: how many; 0 takes one a core of this rank's, 1 none but this process.
    """

    def __init__(self, jobs: int):
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        self.count = jobs or max(1, len(os.sched_getaffinity(0)) // here)
        self._pool: ProcessPoolExecutor | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._kept = 0

    def __enter__(self) -> "Processes":
        if self.count > 1:
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), _begin)
        return self

    def __exit__(self, kind: type | None, *_exc: Any) -> None:
        if self._pool:
            workers = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            for worker in workers if kind else ():
                worker.kill()
        self._folder.cleanup()

    def share(self, array: np.ndarray) -> "np.ndarray | Path":
        """An array as all of them can read it: a file, until the context ends."""
        if not self._pool:
            return array
        self._kept += 1
        path = Path(self._folder.name, f"{self._kept}.npy")
        np.save(path, array)
        return path

    def run(self, call: Callable[..., Any], shared: Sequence["np.ndarray | Path"], tasks: Sequence[tuple]) -> list:
        """``call(*arrays, *task)`` of every task, in order.

        Args:
            call: it stands at the top of a module, one without torch for a quick start.
            shared: what :meth:`share` gave.
            tasks: the other arguments.

        Raises:
            UserError: one of the processes was killed.
        """
        if not self._pool:
            return [call(*shared, *task) for task in tasks]
        with _hidden_main():  # submit() starts processes
            waiting = [self._pool.submit(_call, call, shared, task) for task in tasks]
        try:
            return [one.result() for one in waiting]
        except BrokenProcessPool:
            raise UserError(
                "a process that fits classifiers was killed (for its memory, most often): give --jobs 1"
            ) from None


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Replace the main module by an empty one, since `multiprocessing` makes new processes import it."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _call(call: Callable[..., Any], shared: Sequence[Path], task: tuple) -> Any:
    return call(*(np.load(path, mmap_mode="r") for path in shared), *task)


def _begin() -> None:
    """One thread; signals are left to the main process, and its end is this one's."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
