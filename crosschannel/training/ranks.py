"""Distributed training: joining the process group that torchrun or SLURM describes, and collective operations."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crosschannel.errors import UserError, file_problem

T = TypeVar("T")
PATIENCE = 60.0  # seconds that a call from Python waits for the other ranks to make the same call
_STORE_TIMEOUT = timedelta(minutes=30)  # torch's default, for all operations after all ranks have joined


@dataclass
class World:
    """The process group, as seen from one rank.

    Attributes:
        rank: index of this process.
        size: number of processes.
        device: device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, batch: int) -> slice:
        """Return this rank's slice of a global batch with ``batch`` samples per rank."""
        return slice(self.rank * batch, (self.rank + 1) * batch)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_and_any(self, sums: Tensor, *flags: bool) -> list[bool]:
        """Sum a 1-D float tensor over all ranks, in place, and return for each flag whether any rank has set it.

        This needs only one collective operation.
        """
        if self.size == 1:
            return list(flags)
        packed = torch.cat((sums, torch.tensor(flags, device=sums.device).to(sums)))
        sums.copy_(self.sum(packed)[: len(sums)])
        return (packed[len(sums) :] > 0).tolist()

    def any(self, flag: bool) -> bool:
        """Return whether any rank has set its flag."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)))

    def copy_module_from_main(self, module: nn.Module) -> None:
        """Copy rank 0's parameters and buffers to all ranks, in place."""
        self.broadcast(module.state_dict().values())

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values to all ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_from_main(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 and return its result on all ranks.

        Raises:
            UserError: the function failed with a UserError or could not read or write a file; raised on all ranks.
        """
        result, problem = None, None
        if self.is_main:
            try:
                result = function()
            except UserError as error:
                problem = str(error)
            except OSError as error:
                problem = file_problem(error)
                if not problem:
                    raise
        result, problem = self.gather((result, problem))[0]
        if problem:
            raise UserError(problem)
        return result

    def gather_results(self, function: Callable[[], Any]) -> list[Any]:
        """Call a function on every rank and return all results, in rank order.

        Raises:
            UserError: the function failed with a UserError on any rank; raised on all ranks.
        """
        return self.gather(next(self.zip_ranks(function() for _ in range(1))))

    def zip_ranks(self, batches: Iterable[T]) -> Iterator[T]:
        """Iterate over this rank's batches in step with all other ranks, which have the same number of batches.

        Raises:
            UserError: the iterable failed with a UserError on any rank; raised on all ranks.
        """
        iterator = iter(batches)
        while True:
            batch, problem = None, ""
            try:
                batch = next(iterator, None)
            except UserError as error:
                problem = str(error)
            if self.any(bool(problem)):
                raise UserError(next(message for message in self.gather(problem) if message))
            if batch is None:
                return
            yield batch

    def concatenate(self, rows: Tensor) -> Tensor:
        """Concatenate tensors (N, …) of all ranks, in rank order; N may differ between ranks."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(rows)
        max_count = int(self.sum(counts).max())
        padded = rows.new_zeros(max_count, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return torch.cat([tensor[:count] for tensor, count in zip(gathered, counts.tolist(), strict=True)])

    def gather(self, value: object) -> list:
        """Gather a picklable value from every rank; return the values in rank order."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def joined_world(device: torch.device, timeout_s: float | None = None) -> Iterator[World]:
    """Call :func:`join_world`; on exit, leave the process group unless it existed before."""
    was_initialized = dist.is_available() and dist.is_initialized()
    world = join_world(device, timeout_s)
    try:
        yield world
    finally:
        if not was_initialized:
            leave_world()


def join_world(device: torch.device, timeout_s: float | None = None) -> World:
    """Join the existing process group, or the one described by the environment variables that torchrun sets
    (WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    ``CROSSCHANNEL_BACKEND`` selects the backend of a new group, nccl or gloo. Default: nccl on GPUs, gloo on CPUs.

    Args:
        device: device of this rank.
        timeout_s: seconds to wait for the other ranks. Default: ``PATIENCE`` in an existing process group, torch's
            timeout in a new one.

    Raises:
        UserError: the environment variables are invalid, or other ranks do not join.
    """
    if dist.is_available() and dist.is_initialized():
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        world = World(dist.get_rank(), dist.get_world_size(), device)
        _wait_for_ranks(dist.distributed_c10d._get_default_store(), world.rank, world.size, timeout_s or PATIENCE)
        return world
    size = _environment_int("WORLD_SIZE", "1")
    if size == 1:
        return World(0, 1, device)
    rank, backend = _environment_int("RANK"), os.environ.get("CROSSCHANNEL_BACKEND")
    _environment_int("MASTER_PORT")
    if rank >= size or not os.environ.get("MASTER_ADDR") or backend not in (None, "", "nccl", "gloo"):
        raise UserError(
            "invalid environment variables for distributed training: RANK must be below WORLD_SIZE, MASTER_ADDR must "
            "be the address of rank 0 (torchrun sets all three), and CROSSCHANNEL_BACKEND may only be nccl or gloo"
        )
    if device.type == "cuda" and device.index is None:
        # Some launchers expose a single GPU to each rank.
        device = torch.device("cuda", _environment_int("LOCAL_RANK", "0") % torch.cuda.device_count())
        torch.cuda.set_device(device)
    _wait_before_forks()
    try:
        _start_group(rank, size, backend or ("nccl" if device.type == "cuda" else "gloo"), timeout_s)
    except (RuntimeError, ValueError) as error:  # torch's DistNetworkError is a RuntimeError
        raise UserError(
            f"rank {rank} of {size} could not join the process group: {str(error).splitlines()[0]}"
        ) from error
    return World(rank, size, device)


def _start_group(rank: int, size: int, backend: str, timeout_s: float | None) -> None:
    if timeout_s is None:
        dist.init_process_group(backend)
        return
    store, *_ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout_s)))
    _wait_for_ranks(store, rank, size, timeout_s)
    store.set_timeout(_STORE_TIMEOUT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _wait_for_ranks(store: dist.Store, rank: int, size: int, timeout_s: float) -> None:
    """Wait until all ranks have made this call.

    Without this check, a collective operation that some rank does not join would block forever and leave the group
    unusable. The last rank to arrive, or the first to time out, decides the outcome for all.

    Raises:
        UserError: some ranks did not make the call in time.
    """
    if size == 1:
        return
    call = f"crosschannel/{store.add(f'crosschannel/calls/{rank}', 1)}"
    if store.add(f"{call}/arrivals", 1) == size:
        _decide(store, call, "met")
    try:
        store.wait([f"{call}/outcome"], timedelta(seconds=timeout_s))
    except RuntimeError:  # torch's DistStoreError
        _decide(store, call, "missed")
    if store.get(f"{call}/outcome") != b"met":
        raise UserError(
            f"not all of {size} ranks made this call within {timeout_s:g} s of each other (this is rank {rank}): in a "
            "process group every rank must make the same calls"
        )


def _decide(store: dist.Store, call: str, outcome: str) -> None:
    """Store the outcome of a call, unless another rank has stored one."""
    if store.add(f"{call}/decisions", 1) == 1:
        store.set(f"{call}/outcome", outcome)


@cache
def _wait_before_forks() -> None:
    """Make every fork (of a loader worker) wait until the threads of collective operations have freed their tensors.

    A thread that frees the last reference to a tensor creates a Python thread state while it holds a lock of the
    interpreter. A fork at that moment copies the lock in its locked state, and on Python 3.11 the child waits for it
    forever. Python 3.12 re-initialises the lock in the child.
    """

    def wait() -> None:
        if dist.is_initialized():
            time.sleep(0.01)
            sys._current_frames()  # waits for the lock, since it acquires it

    if sys.version_info < (3, 12):
        os.register_at_fork(before=wait)


def _environment_int(variable: str, default: str = "") -> int:
    value = os.environ.get(variable, default)
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UserError(f"the environment variable {variable} must be a whole number, got {value!r}")
    return int(value)


def leave_world() -> None:
    """Leave the process group. Unless an exception is being handled, wait for all ranks first."""
    if dist.is_available() and dist.is_initialized():
        if sys.exc_info()[0] is None:  # gloo's threads may abort a rank that leaves before the others
            dist.barrier()
        dist.destroy_process_group()
