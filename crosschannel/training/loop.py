"""The training loop. It reads from top to bottom: set up, resume, then step, log, evaluate, save, stop."""

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from crosschannel.data import Batch, BrokenImages, CropStream, crop_loader
from crosschannel.data.order import mix
from crosschannel.errors import UserError, file_problem
from crosschannel.training import checkpoints
from crosschannel.training.config import (
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
    check_ranks,
    total_steps,
)
from crosschannel.training.device import autocast
from crosschannel.training.interrupts import Interrupted
from crosschannel.training.log import TrainingLog
from crosschannel.training.optim import build_optimizer, rate, set_rate
from crosschannel.training.ranks import World
from crosschannel.training.run_folder import RunFolder


class Task(Protocol):
    """What a command trains. ``net`` holds the weights; the loop hands back the same net, wrapped or averaged.

    ``rate_factors`` are factors of the learning rate by parameter name (empty: 1 for all).
    """

    net: nn.Module
    rate_factors: Mapping[str, float]

    def initialise(self, stream: CropStream) -> bool:
        """Set the initial weights; whether that took so long that they should be saved at once."""
        ...

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch and the count that it is to be divided by (both scalars)."""
        ...

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Figures on held-out images, the same on all ranks. Raises Interrupted when told to stop, and a UserError (on
        all ranks) where there is nothing to evaluate on."""
        ...

    def report(self, net: nn.Module, step: int, figures: dict[str, float], log: TrainingLog) -> str:
        """Called on rank 0 after an evaluation: write pictures; return the line to show."""
        ...


@dataclass
class Settings:
    """The loop's part of a command's config."""

    seed: int
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    runtime: RuntimeConfig


class Loop:
    """Train a task on a stream of crops inside a run folder, resuming where it stopped.

    Args:
        task: what is trained.
        stream: the training crops.
        settings: how.
        run: where it is kept (rank 0 writes).
        world: this process among all.
        started: called once the run is loaded or initialised, before anything is written.
        quiet: say nothing.
    """

    def __init__(
        self,
        task: Task,
        stream: CropStream,
        settings: Settings,
        run: RunFolder,
        world: World,
        started: Callable[[], None] = lambda: None,
        quiet: bool = False,
    ):
        self.started, self.quiet = started, quiet
        self.task, self.stream, self.run, self.world = task, stream, run, world
        self.settings, self.train, self.runtime = settings, settings.train, settings.runtime
        share = world.size * self.train.accumulate
        check_ranks(self.train, world.size)
        if self.train.batch > len(stream.images):
            raise UserError(f"train.batch ({self.train.batch}) is more than the {len(stream.images)} training images")
        if self.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.micro_batch = self.train.batch // share
        self.steps = total_steps(self.train, len(stream.images))
        self.broken = BrokenImages(self.runtime.broken_limit)
        self._named_broken: set[str] = set()
        self.lost = ""  # why there are no more images
        self.log_is_whole = True
        self.done = 0
        self.losses: list[Tensor] = []  # since the last line of the log
        self.evaluated = True  # whether the evaluation that is due at `done` has been done
        self.figures: dict[str, float] = {}

    def fit(self) -> dict[str, float]:
        """Train to the end.

        Returns:
            the figures of the last evaluation.

        Raises:
            Interrupted: told to stop; everything is saved.
            UserError: too many broken images; everything is saved.
        """
        self.set_up()
        notes: list[str] = []
        newest = self.world.from_main(lambda: checkpoints.newest(self.run.checkpoints, notes.append, accept=self._load))
        main = self.world.is_main
        if newest is not None and not main:
            self._load(checkpoints.load(newest))
        if main and self.run.resuming:
            self.run.forget_metrics_after(self.done, self.evaluated)
        self.log = TrainingLog(self.run.path, self.done, self.steps, self.runtime.tensorboard, not main, self.quiet)
        try:
            self._begin(newest is not None, notes)
            self._train()
        finally:
            self.log.close()
        return self.figures

    def set_up(self) -> None:
        device, train = self.world.device, self.train
        self.net = self.task.net.to(device)
        if train.channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.net, self.settings.optim, self.task.rate_factors)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
        self.autocast = lambda: autocast(device, train.precision)
        self.average = copy.deepcopy(self.net).requires_grad_(False) if train.ema else None

    def _begin(self, resumed: bool, notes: list[str]) -> None:
        """Say where the run stands, and set the initial weights of a new one."""
        for note in notes:
            self.log.say(note)
        if resumed:
            self.log.say(f"resuming {self.run.path} at step {self.done} of {self.steps}")
            self.started()
            return
        costly = self.task.initialise(self.stream)
        self.started()
        if self.average is not None:
            self.average.load_state_dict(self.net.state_dict())
        if costly:
            self._save()

    def _train(self) -> None:
        model = self.wrap()
        if not self.evaluated:
            self._evaluate()
        batches = self._batches()
        parts = next(batches, None)  # always one ahead: what is wrong with it is heard with the sums of the step before
        told, news = self._told_to_stop(), self.world.any(self._has_news(parts))
        begun, images = time.monotonic(), 0
        while parts is not None:
            if told:
                self._save()
                raise Interrupted(self._by_whom)
            self._watch_broken(parts, news)
            sums = self.gradients(model, parts)
            ahead = next(batches, None)
            told, news = self.world.sum_and_any(sums, self.run.flag.is_set, self._has_news(ahead))
            self.losses.append(self.update(sums))
            self.done += 1
            images += self.train.batch
            if self.done % self.runtime.log_every == 0 or self.done == self.steps:
                speed = images / (time.monotonic() - begun)
                self._check_losses()
                self._log_step(torch.stack(self.losses).mean().item(), speed)
                begun, images, self.losses = time.monotonic(), 0, []
            self.log.advance(self.done)
            last = self.done == self.steps
            if last or self.done % self.runtime.eval_every == 0:
                paused = time.monotonic()
                self._evaluate()
                begun += time.monotonic() - paused
            if (last or self.done % self.runtime.checkpoint_every == 0) and not told:
                self._save()
            parts = ahead

    def wrap(self) -> nn.Module:
        model: nn.Module = self.net
        if self.world.size > 1:
            model = nn.parallel.DistributedDataParallel(model)
        return torch.compile(model) if self.train.compile else model

    def _batches(self) -> Iterator[list[Batch]]:
        """The rest of the run: for every step this rank's micro-batches."""
        loader = crop_loader(
            self.stream,
            self.done * self.train.batch,
            self.steps * self.train.batch,
            self.micro_batch * self.world.size,
            self.world.share(self.micro_batch),
            self.runtime.workers,
            pin=self.world.device.type == "cuda",
        )
        parts: list[Batch] = []
        try:
            for batch in loader:
                parts.append(batch)
                if len(parts) == self.train.accumulate:
                    yield parts
                    parts = []
        except UserError as error:  # the images are gone: for all ranks to hear before any of them steps
            self.lost = str(error)
            yield []

    def gradients(self, model: nn.Module, parts: list[Batch]) -> Tensor:
        """Gradients of this rank's parts; returns their summed loss and the count that it is to be divided by, (2,)."""
        torch.manual_seed(mix(self.settings.seed, self.done, self.world.rank) >> 1)  # dropout and the like
        set_rate(self.optimizer, rate(self.done, self.steps, self.settings.optim.lr, self.settings.schedule))
        model.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.world.device, dtype=torch.float64)
        for number, batch in enumerate(parts):
            last = number == len(parts) - 1
            waits = model.no_sync() if self.world.size > 1 and not last else contextlib.nullcontext()
            with waits:
                with self.autocast():
                    loss, count = self.task.step(model, batch)
                # Any constant would do here; images keep float16's gradients in range.
                self.scaler.scale(loss / self.train.batch).backward()
            sums += torch.stack((loss.detach().double(), count.double()))
        return sums

    def update(self, sums: Tensor) -> Tensor:
        """Move the weights: summed losses, divided once by the count over all ranks and parts; returns the loss.

        Args:
            sums: those of :meth:`gradients`, over all ranks.
        """
        # DDP has averaged over ranks; the loss was divided by the batch.
        factor = self.world.size * self.train.batch / sums[1].clamp(min=1e-30)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, factor.float())
        if self.settings.optim.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.optim.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self._update_average()
        return sums[0] / sums[1].clamp(min=1e-30)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Weights and BatchNorm statistics; the first steps are averaged faster, so that the start is forgotten."""
        decay = min(self.train.ema, (1 + self.done) / (10 + self.done))
        for mean, new in zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - decay)
            else:
                mean.copy_(new)

    @property
    def best_net(self) -> nn.Module:
        """What is evaluated and saved as the result: the running average, where there is one."""
        return self.net if self.average is None else self.average

    def _has_news(self, parts: list[Batch] | None) -> bool:
        """Whether there is something to say of this rank's next images: some are broken, or there are no more."""
        if parts and any(len(part.images) < self.micro_batch for part in parts):
            self.lost = "no readable image was found in twenty attempts; check --data"
        return bool(self.lost) or any(part.broken for part in parts or ())

    def _watch_broken(self, parts: list[Batch], news: bool) -> None:
        """Name (once), count and limit the broken images of all ranks, before they are learned from.

        Args:
            parts: this rank's images.
            news: whether any rank has something to say.
        """
        found: list[tuple[str, str]] = []
        if news:
            own = [(self.stream.images.names[i], why) for part in parts for i, why in part.broken]
            ranks = self.world.gather((own, self.lost))
            found = [entry for entries, _ in ranks for entry in entries]
            self.lost = next((lost for _, lost in ranks if lost), "")
        for name, why in found:
            if name not in self._named_broken:
                self._named_broken.add(name)
                self.log.say(f"broken image {name}: {why}")
        try:
            if self.lost:
                raise UserError(self.lost)
            self.broken.count(self.train.batch, [name for name, _ in found])
        except UserError:
            self._save()
            raise

    def _check_losses(self) -> None:
        """Weights that led nowhere are neither logged nor saved."""
        for loss in torch.stack(self.losses).tolist() if self.losses else ():
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} before step {self.done}; lower optim.lr or set optim.clip")

    def _log_step(self, loss: float, speed: float) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        epoch = self.done * self.train.batch / len(self.stream.images)
        values = {"train/loss": loss, "train/lr": lr, "train/images_per_s": speed, "train/epoch": epoch}
        shown = f"loss {loss:.4f}  {speed:.0f} images/s"
        if self.world.is_main:
            self._record({**{k: round(v, 8) for k, v in values.items()}, "broken": self.broken.broken})
        self.log.scalars(self.done, values, shown)

    def _record(self, values: dict[str, float]) -> None:
        """A line of the metrics; what cannot be written now is said once, and ends nothing."""
        try:
            self.run.log_metrics(self.done, **values)
        except OSError as error:
            if self.log_is_whole:
                self.log.say(f"metrics.jsonl has gaps from step {self.done} on: {file_problem(error)}")
            self.log_is_whole = False

    def _evaluate(self) -> None:
        self.evaluated = False
        self.world.copy_from_main(self.best_net)  # BatchNorm's statistics differ between ranks; rank 0's are saved
        try:
            with self.autocast(), torch.inference_mode():
                self.figures = self.task.evaluate(self.best_net.eval(), self._told_to_stop)
        except Interrupted:
            self._save()
            raise Interrupted(self._by_whom) from None
        except UserError:
            self._save()
            raise
        self.evaluated = True
        self.world.from_main(self._report)

    def _report(self) -> None:
        """Rank 0's words and pictures after an evaluation."""
        values = {f"val/{name}": value for name, value in self.figures.items()}
        self._record(values)
        with torch.inference_mode():
            shown = self.task.report(self.best_net.eval(), self.done, self.figures, self.log)
        self.log.scalars(self.done, values, shown)

    def _told_to_stop(self) -> bool:
        return self.world.any(self.run.flag.is_set)

    @property
    def _by_whom(self) -> str:
        return self.run.flag.name or "another rank"

    def _state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "evaluated": self.evaluated,
            "figures": self.figures,
            "losses": [loss.cpu() for loss in self.losses],
            "broken": [self.broken.seen, self.broken.broken],
            "images": self.stream.images.names.fingerprint(),
        }

    def _save(self) -> None:
        self._check_losses()
        # Nobody leaves before the checkpoint is there.
        self.world.from_main(
            lambda: checkpoints.save(self.run.checkpoints, self.done, self._state(), self.runtime.keep)
        )

    def _load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it is of other images.
            KeyError, TypeError, ValueError, RuntimeError: it is not one of this loop's; another one may be loaded then.
        """
        if state["images"] != self.stream.images.names.fingerprint():  # as far as they could be read
            raise UserError(f"{self.run.path} was begun on other images than those that --data now gives")
        if not (0 <= state["step"] <= self.steps and isinstance(state["evaluated"], bool)):
            raise ValueError(f"it is of step {state['step']}, and the run has {self.steps}")
        self.net.load_state_dict(state["net"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if isinstance(moment, Tensor) and moment.shape not in (parameter.shape, torch.Size()):
                    raise ValueError(f"{name} of the optimiser is of shape {tuple(moment.shape)}")
        self.scaler.load_state_dict(dict(state["scaler"]))
        self.losses = [loss.reshape(()).to(self.world.device) for loss in state["losses"]]
        self.broken.seen, self.broken.broken = map(int, state["broken"])
        self.figures = dict(state["figures"])
        if not all(isinstance(value, int | float) for value in self.figures.values()):
            raise ValueError("its figures are no numbers")
        self.done, self.evaluated = state["step"], state["evaluated"]
