"""One pass over held-out images: shared out among ranks, told to stop, its broken images gathered and named."""

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
    """Iterate to get every batch of this rank's share with what was computed of it; all ranks get as many batches.

    Args:
        stream: of an evaluation.
        compute: batch → whatever is wanted of it; a UserError of one rank is raised on all.
        world: shares out the images; all views of an image are in one batch.
        batch: samples a rank takes at once.
        workers: that decode.
        should_stop: asked before every batch, on all ranks.
        may_be_empty: not one image that can be read is no error.

    Attributes:
        broken: after the pass, reasons by name of the images that could not be read, of all ranks.

    Raises:
        Interrupted: told to stop.
        UserError: the images are gone, or none could be read.
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
        """Batches of the pass."""
        return -(-self.stream.count // (self._share * self.world.size))

    @property
    def _share(self) -> int:
        views = self.stream.view.views
        return -(-self.batch // views) * views

    def __iter__(self) -> Iterator[tuple[Batch, T]]:
        world, names = self.world, self.stream.images.names
        loader = load_batches(
            self.stream,
            0,
            self.stream.count,
            self._share * world.size,
            world.shard(self._share),
            self.workers,
            pin=world.device.type == "cuda",
        )
        broken: list[tuple[int, str]] = []
        seen = 0
        for batch, computed in world.zip_ranks((batch, self.compute(batch)) for batch in loader):
            if self.should_stop():
                raise Interrupted
            broken += batch.broken
            seen += len(batch)
            yield batch, computed
        self.broken = {names[index]: reason for rank in world.gather(broken) for index, reason in rank}
        if not world.any(seen > 0) and not self.may_be_empty:
            name, reason = next(iter(self.broken.items()), ("", ""))
            raise UserError(f"none of the held-out images can be read; the first is {name}: {reason}")


def in_order(world: World, indices: list[Tensor], columns: dict[str, list[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """What the ranks have found of their images, for all ranks and in order of the images.

    Args:
        world: its ranks.
        indices: of a rank's images, batch by batch.
        columns: (N, …) of the same images, batch by batch; each has a batch at least, which may be empty.

    Returns:
        all indices (n,), and the columns, on the CPU.
    """
    found = world.concatenate(torch.cat([torch.empty(0, dtype=torch.int64), *indices]).to(world.device)).cpu()
    order = found.argsort()
    gathered = {name: world.concatenate(torch.cat(parts).to(world.device)).cpu() for name, parts in columns.items()}
    return found[order], {name: column[order] for name, column in gathered.items()}
