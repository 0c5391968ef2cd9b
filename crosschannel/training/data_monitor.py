"""Monitoring of training images: broken images are logged and counted over all ranks, and the run stops if there are
too many of them or if no images are left."""

from crosschannel.data import Batch, BrokenImages, Stream
from crosschannel.errors import UserError
from crosschannel.training.log import TrainingLog
from crosschannel.training.ranks import World


class DataMonitor:
    """Checks loaded micro-batches for broken and missing images.

    Args:
        stream: training stream.
        micro_batch_size: samples per micro-batch.
        world: ranks that exchange their reports.
        limit: maximum fraction of broken images.
        log: log to which broken images are written.
    """

    def __init__(self, stream: Stream, micro_batch_size: int, world: World, limit: float, log: TrainingLog):
        self.names, self.micro_batch_size, self.world, self.log = stream.images.names, micro_batch_size, world, log
        self.tally = BrokenImages(limit)
        self.end_reason = ""  # why there are no more images
        self._reported: set[str] = set()

    def end(self, reason: str) -> None:
        """Record why no more images can be loaded."""
        self.end_reason = reason

    def has_updates(self, micro_batches: list[Batch] | None) -> bool:
        """Whether this rank has something to report: broken images in its next micro-batches, or no more images."""
        if micro_batches and any(len(micro_batch) < self.micro_batch_size for micro_batch in micro_batches):
            self.end("no readable image was found in twenty attempts; check --data")
        return bool(self.end_reason) or any(micro_batch.broken for micro_batch in micro_batches or ())

    def check(self, micro_batches: list[Batch], has_updates: bool, count: int) -> None:
        """Log and count the broken images of all ranks, and raise an error if there are too many.

        Each image is logged only once.

        Args:
            micro_batches: this rank's micro-batches of the step.
            has_updates: whether any rank has something to report.
            count: images in the step, over all ranks.

        Raises:
            UserError: there are no more images, or too many are broken.
        """
        broken: list[tuple[str, str]] = []
        if has_updates:
            local_broken = [
                (self.names[index], reason) for micro_batch in micro_batches for index, reason in micro_batch.broken
            ]
            reports = self.world.gather((local_broken, self.end_reason))
            broken = [entry for entries, _ in reports for entry in entries]
            self.end_reason = next((end_reason for _, end_reason in reports if end_reason), "")
        for name, reason in broken:
            if name not in self._reported:
                self._reported.add(name)
                self.log.message(f"broken image {name}: {reason}")
        if self.end_reason:
            raise UserError(self.end_reason)
        self.tally.count(count, [name for name, _ in broken])
