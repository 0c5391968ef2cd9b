"""Pass over held-out images that is divided among ranks, can be interrupted, and collects broken images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from crosschannel.data import Batch, Stream, load_batches
from crosschannel.errors import UserError
from crosschannel.runs.interrupts import Interrupted
from crosschannel.training.ranks import World

T = TypeVar("T")


@dataclass
class HeldOut(Generic[T]):
    """A pass over held-out images. Iteration yields each batch of this rank with its result; the number of batches is
    the same on all ranks.

    Args:
        stream: evaluation stream.
        compute: function that returns the result for a batch. A UserError on one rank is raised on all ranks.
        world: ranks that divide the images among them. All views of an image are in the same batch.
        batch: samples per rank and batch, rounded up to whole images.
        workers: loader workers; 0 decodes in this process.
        should_stop: called for every batch, on all ranks; the pass stops if it returns True.
        may_be_empty: accept a pass in which no image is readable.

    Attributes:
        broken: reasons why images could not be read, by image name, from all ranks; filled in after the pass.

    Raises:
        Interrupted: ``should_stop`` returned True.
        UserError: the images are no longer available, or none is readable.
    """

    stream: Stream
    compute: Callable[[Batch], T]
    world: World
    batch: int
    workers: int = 0
    should_stop: Callable[[], bool] = lambda: False
    may_be_empty: bool = False
    broken: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def steps(self) -> int:
        """Number of batches in the pass."""
        return -(-self.stream.count // (self._rank_batch * self.world.size))

    @property
    def _rank_batch(self) -> int:
        views = self.stream.view.views
        return -(-self.batch // views) * views

    def __iter__(self) -> Iterator[tuple[Batch, T]]:
        world, names = self.world, self.stream.images.names
        loader = load_batches(
            self.stream,
            0,
            self.stream.count,
            self._rank_batch * world.size,
            world.shard(self._rank_batch),
            self.workers,
            pin=world.device.type == "cuda",
        )
        broken: list[tuple[int, str]] = []
        samples = 0
        for batch, result in world.zip_ranks((batch, self.compute(batch)) for batch in loader):
            if self.should_stop():
                raise Interrupted
            broken += batch.broken
            samples += len(batch)
            yield batch, result
        self.broken = {names[index]: reason for entries in world.gather(broken) for index, reason in entries}
        if not world.any(samples > 0) and not self.may_be_empty:
            name, reason = next(iter(self.broken.items()), ("", ""))
            raise UserError(f"none of the held-out images is readable; the first is {name}: {reason}")


def in_order(world: World, indices: list[Tensor], columns: dict[str, list[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Gather per-image results from all ranks and sort them by image index.

    Args:
        world: ranks whose results are gathered.
        indices: image indices of this rank, one tensor (N,) per batch.
        columns: results for these images by name, one tensor (N, …) per batch; at least one tensor each, which may be
            empty.

    Returns:
        The sorted indices (n,) and the columns in that order, on the CPU of every rank.
    """
    gathered_indices = world.concatenate(
        torch.cat([torch.empty(0, dtype=torch.int64), *indices]).to(world.device)
    ).cpu()
    order = gathered_indices.argsort()
    gathered = {name: world.concatenate(torch.cat(batches).to(world.device)).cpu() for name, batches in columns.items()}
    return gathered_indices[order], {name: column[order] for name, column in gathered.items()}
