"""Linear classifiers on few images with many features: projection onto the span of the images, and parallel fitting.

The weights of an L2-regularised linear model lie in the span of its training images. Projecting n images with d > n
features onto this span gives n features with the same inner products, and hence the same classifier.
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
    """Project training images onto their span.

    Args:
        train: features (n, d), float.

    Returns:
        features (n, r), float64, with r = min(n, d) and the same inner products; and the projection matrix (d, r) for
        other images, None if n ≥ d (no projection).
    """
    train = train.astype(np.float64)
    if len(train) >= train.shape[1]:
        return train, None
    directions = np.linalg.qr(train.T)[0]
    return train @ directions, directions


class Processes:
    """Pool of single-threaded processes that fit classifiers; a context manager.

    liblinear has one random generator per process, which threads would share. The processes do not import the caller's
    main module, so the pool works in scripts from stdin and in scripts without ``if __name__ == "__main__"``.

    Args:
        jobs: number of processes; 0: one per core of this rank; 1: run in this process.
    """

    def __init__(self, jobs: int):
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        self.count = jobs or max(1, len(os.sched_getaffinity(0)) // local_ranks)
        self._pool: ProcessPoolExecutor | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._shared_count = 0

    def __enter__(self) -> "Processes":
        if self.count > 1:
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), _init_worker)
        return self

    def __exit__(self, exc_type: type | None, *_exc: Any) -> None:
        if self._pool:
            workers = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=exc_type is None, cancel_futures=True)
            for worker in workers if exc_type else ():
                worker.kill()
        self._folder.cleanup()

    def share(self, array: np.ndarray) -> "np.ndarray | Path":
        """Make an array readable by all processes, until the context ends.

        Returns:
            an argument for :meth:`run`: the file of the array, or the array itself if there is no pool.
        """
        if not self._pool:
            return array
        self._shared_count += 1
        path = Path(self._folder.name, f"{self._shared_count}.npy")
        np.save(path, array)
        return path

    def run(self, call: Callable[..., Any], shared: Sequence["np.ndarray | Path"], tasks: Sequence[tuple]) -> list:
        """Return ``call(*arrays, *task)`` for each task, in order.

        Args:
            call: module-level function; its module should not import torch, so that processes start fast.
            shared: return values of :meth:`share`.
            tasks: remaining arguments of each call.

        Raises:
            UserError: a process was killed.
        """
        if not self._pool:
            return [call(*shared, *task) for task in tasks]
        with _hidden_main():  # submit() starts processes
            futures = [self._pool.submit(_call, call, shared, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError("a worker process was killed, probably because memory ran out; try --jobs 1") from None


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Replace the main module by an empty one, because `multiprocessing` makes new processes import it."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _call(call: Callable[..., Any], shared: Sequence[Path], task: tuple) -> Any:
    return call(*(np.load(path, mmap_mode="r") for path in shared), *task)


def _init_worker() -> None:
    """Limit the process to one thread, leave signals to the main process, and make it exit with the main process."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
