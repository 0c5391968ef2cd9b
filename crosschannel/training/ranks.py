"""One process or many: torchrun's (or SLURM's) environment, and the few collectives that the loop needs."""

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
PATIENCE = 60.0  # seconds that a call from Python waits for the other ranks to make it
_STORE_TIMEOUT = timedelta(minutes=30)  # torch's default, for later operations


@dataclass
class World:
    """This process among all.

    Attributes:
        rank, size: number of this process and of all.
        device: where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, batch: int) -> slice:
        """This rank's part of what all ranks take at once, ``batch`` each."""
        return slice(self.rank * batch, (self.rank + 1) * batch)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_and_any(self, sums: Tensor, *flags: bool) -> list[bool]:
        """Sum over all ranks, in place, and say of each flag whether any rank has set it: one collective for both."""
        if self.size == 1:
            return list(flags)
        row = torch.cat((sums, torch.tensor(flags, device=sums.device).to(sums)))
        sums.copy_(self.sum(row)[: len(sums)])
        return (row[len(sums) :] > 0).tolist()

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes; all ranks get the same answer."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)))

    def copy_module_from_main(self, module: nn.Module) -> None:
        """Rank 0's parameters and buffers for all."""
        self.broadcast(module.state_dict().values())

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values for all, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_from_main(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, for all ranks.

        Raises:
            UserError: rank 0's, on all ranks; so is a file that it cannot read or write.
        """
        made, problem = None, None
        if self.is_main:
            try:
                made = make()
            except UserError as error:
                problem = str(error)
            except OSError as error:
                problem = file_problem(error)
                if not problem:
                    raise
        made, problem = self.gather((made, problem))[0]
        if problem:
            raise UserError(problem)
        return made

    def gather_results(self, make: Callable[[], Any]) -> list[Any]:
        """What every rank makes, in order of rank; where one of them cannot, all hear why.

        Raises:
            UserError: any rank's, on all ranks.
        """
        return self.gather(next(self.zip_ranks(make() for _ in range(1))))

    def zip_ranks(self, batches: Iterable[T]) -> Iterator[T]:
        """Batches, as many on every rank; where one rank's fail, all ranks hear why.

        Raises:
            UserError: any rank's, on all ranks.
        """
        iterator = iter(batches)
        while True:
            batch, problem = None, ""
            try:
                batch = next(iterator, None)
            except UserError as error:
                problem = str(error)
            if self.any(bool(problem)):
                raise UserError(next(words for words in self.gather(problem) if words))
            if batch is None:
                return
            yield batch

    def concatenate(self, rows: Tensor) -> Tensor:
        """The rows (N of any shape) of all ranks, in order of rank; N may differ between ranks."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(rows)
        most = int(self.sum(counts).max())
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts.tolist(), strict=True)])

    def gather(self, value: object) -> list:
        """Every rank's value, in order of rank."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def joined_world(device: torch.device, patience: float | None = None) -> Iterator[World]:
    """Join with :func:`join_world`; on exit, leave the process group unless it existed before."""
    existed = dist.is_available() and dist.is_initialized()
    world = join_world(device, patience)
    try:
        yield world
    finally:
        if not existed:
            leave_world()


def join_world(device: torch.device, patience: float | None = None) -> World:
    """Join the existing process group, or the one that the environment describes (WORLD_SIZE, RANK, LOCAL_RANK, as
    torchrun sets them). ``CROSSCHANNEL_BACKEND`` chooses nccl or gloo; default by device.

    Args:
        device: device of this rank.
        patience: seconds to wait for the other ranks; default: ``PATIENCE`` in an existing process group, torch's
            timeout in a new one.

    Raises:
        UserError: the environment describes no valid group, or other ranks do not join.
    """
    if dist.is_available() and dist.is_initialized():
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        world = World(dist.get_rank(), dist.get_world_size(), device)
        _meet(dist.distributed_c10d._get_default_store(), world.rank, world.size, patience or PATIENCE)
        return world
    size = _number("WORLD_SIZE", "1")
    if size == 1:
        return World(0, 1, device)
    rank, backend = _number("RANK"), os.environ.get("CROSSCHANNEL_BACKEND")
    _number("MASTER_PORT")
    if rank >= size or not os.environ.get("MASTER_ADDR") or backend not in (None, "", "nccl", "gloo"):
        raise UserError(
            "the environment describes no group of ranks: RANK must be below WORLD_SIZE, MASTER_ADDR must name the "
            "first rank's machine, and CROSSCHANNEL_BACKEND may be nccl or gloo; torchrun sets them"
        )
    if device.type == "cuda" and device.index is None:
        # Some launchers show every rank one GPU only.
        device = torch.device("cuda", _number("LOCAL_RANK", "0") % torch.cuda.device_count())
        torch.cuda.set_device(device)
    _forks_wait()
    try:
        _start_group(rank, size, backend or ("nccl" if device.type == "cuda" else "gloo"), patience)
    except (RuntimeError, ValueError) as error:  # torch's DistNetworkError is a RuntimeError
        raise UserError(f"rank {rank} of {size} could not join the others: {str(error).splitlines()[0]}") from error
    return World(rank, size, device)


def _start_group(rank: int, size: int, backend: str, patience: float | None) -> None:
    if patience is None:
        dist.init_process_group(backend)
        return
    store, *_ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=patience)))
    _meet(store, rank, size, patience)
    store.set_timeout(_STORE_TIMEOUT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _meet(store: dist.Store, rank: int, size: int, patience: float) -> None:
    """Wait until all ranks have made this call. A collective would wait forever and leave the group unusable.

    The last rank to arrive, or the first to time out, decides the outcome for all.

    Raises:
        UserError: some ranks did not make the call in time.
    """
    if size == 1:
        return
    call = f"crosschannel/{store.add(f'crosschannel/calls/{rank}', 1)}"
    if store.add(f"{call}/arrivals", 1) == size:
        _decide(store, call, "met")
    try:
        store.wait([f"{call}/outcome"], timedelta(seconds=patience))
    except RuntimeError:  # torch's DistStoreError
        _decide(store, call, "missed")
    if store.get(f"{call}/outcome") != b"met":
        raise UserError(
            f"not all of {size} ranks made this call within {patience:g} s of each other (this is rank {rank}): in a "
            "process group every rank must make it"
        )


def _decide(store: dist.Store, call: str, outcome: str) -> None:
    if store.add(f"{call}/decisions", 1) == 1:
        store.set(f"{call}/outcome", outcome)


@cache
def _forks_wait() -> None:
    """Let the collectives' threads free their tensors before a loader's workers are forked.

    A thread that is the last to hold a tensor asks Python for a thread state, under a lock of the interpreter. A fork
    at that moment copies the lock as taken, and on Python 3.11 the child waits for it forever; 3.12 makes it anew.
    """

    def wait() -> None:
        if dist.is_initialized():
            time.sleep(0.01)
            sys._current_frames()  # takes the lock, and so waits for who has it

    if sys.version_info < (3, 12):
        os.register_at_fork(before=wait)


def _number(variable: str, default: str = "") -> int:
    value = os.environ.get(variable, default)
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UserError(f"the environment's {variable} must be a whole number, got {value!r}")
    return int(value)


def leave_world() -> None:
    """Leave the process group, all ranks together unless one of them failed."""
    if dist.is_available() and dist.is_initialized():
        if sys.exc_info()[0] is None:  # a rank that left early could abort in gloo's threads
            dist.barrier()
        dist.destroy_process_group()
