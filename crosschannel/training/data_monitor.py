"""The supply of training images: broken ones are named and counted on all ranks, and a run stops where there are too
many of them or no images at all."""

from crosschannel.data import Batch, BrokenImages, Stream
from crosschannel.errors import UserError
from crosschannel.training.log import TrainingLog
from crosschannel.training.ranks import World


class DataMonitor:
    """Watches what the loader gives.

    Args:
        stream: of training.
        micro_batch: samples that a part must have.
        world: all ranks hear of what one of them meets.
        limit: greatest share of broken images.
        log: names them.
    """

    def __init__(self, stream: Stream, micro_batch: int, world: World, limit: float, log: TrainingLog):
        self.names, self.micro_batch, self.world, self.log = stream.images.names, micro_batch, world, log
        self.tally = BrokenImages(limit)
        self.ended = ""  # why there are no more images
        self._named: set[str] = set()

    def end(self, why: str) -> None:
        """There are no more images."""
        self.ended = why

    def has_updates(self, parts: list[Batch] | None) -> bool:
        """Whether there is something to say of this rank's next images: some are broken, or there are no more."""
        if parts and any(len(part) < self.micro_batch for part in parts):
            self.end("no readable image was found in twenty attempts; check --data")
        return bool(self.ended) or any(part.broken for part in parts or ())

    def check(self, parts: list[Batch], news: bool, count: int) -> None:
        """Name (once), count and limit the broken images of all ranks.

        Args:
            parts: this rank's images.
            news: whether any rank has something to say.
            count: images of the step, over all ranks.

        Raises:
            UserError: there are no more images, or too many are broken.
        """
        found: list[tuple[str, str]] = []
        if news:
            own = [(self.names[index], why) for part in parts for index, why in part.broken]
            ranks = self.world.gather((own, self.ended))
            found = [entry for entries, _ in ranks for entry in entries]
            self.ended = next((ended for _, ended in ranks if ended), "")
        for name, why in found:
            if name not in self._named:
                self._named.add(name)
                self.log.message(f"broken image {name}: {why}")
        if self.ended:
            raise UserError(self.ended)
        self.tally.count(count, [name for name, _ in found])
