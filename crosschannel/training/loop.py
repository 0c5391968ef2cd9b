"""The training loop. It reads from top to bottom: set up, resume, then step, log, evaluate, save, stop."""

import contextlib
import itertools
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from crosschannel.config.training import TrainedConfig, check_ranks, total_steps
from crosschannel.data import Batch, Stream, load_batches
from crosschannel.data.order import mix
from crosschannel.errors import UserError, file_problem
from crosschannel.files import atomic_write
from crosschannel.runs.folder import RunFolder
from crosschannel.runs.interrupts import Interrupted
from crosschannel.training import checkpoints
from crosschannel.training.average import WeightAverage
from crosschannel.training.data_monitor import DataMonitor
from crosschannel.training.device import autocast
from crosschannel.training.log import TrainingLog
from crosschannel.training.optim import build_optimizer, rate, set_rate
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation, Task


class Loop:
    """Train a task on a stream inside a run folder, resuming where it stopped.

    Args:
        task: what is trained.
        stream: the training samples.
        config: how; written into the run folder once the run is loaded or initialised, so that a command that could
            not start leaves nothing to resume.
        run: where it is kept (rank 0 writes).
        world: this process among all.
        quiet: say nothing.

    Attributes:
        net: what is trained.
        steps, steps_done: where the run ends and where it stands.
    """

    def __init__(
        self, task: Task, stream: Stream, config: TrainedConfig, run: RunFolder, world: World, quiet: bool = False
    ):
        train, device = config.train, world.device
        check_ranks(train, world.size)
        if train.batch > len(stream.images):
            raise UserError(f"train.batch ({train.batch}) is more than the {len(stream.images)} training images")
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.task, self.stream, self.config, self.run, self.world = task, stream, config, run, world
        self.micro_batch = train.batch // (world.size * train.accumulate)
        self.steps = total_steps(train, len(stream.images))
        self.net = task.net.to(device)
        if train.channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.phases = getattr(task, "phases", ())
        self.phase_modules = self._modules_of_phases() if self.phases else [self.net]
        self.optimizers = [build_optimizer(module, config.optim, task.rate_factors) for module in self.phase_modules]
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
        self.average = WeightAverage(self.net, train.ema) if train.ema else None
        self.log = TrainingLog(run.path, self.steps, config.runtime.tensorboard, not world.is_main, quiet)
        self.monitor = DataMonitor(stream, self.micro_batch, world, config.runtime.broken_limit, self.log)
        self.steps_done = 0
        self.losses: list[Tensor] = []  # since the last line of the log
        self.is_evaluated = True  # whether the evaluation that is due at `steps_done` has been done
        self.evaluation: Evaluation | None = None  # the last one of this process
        self.named_broken: set[str] = set()  # held-out images
        self.log_is_whole = True

    @property
    def evaluated_net(self) -> nn.Module:
        """What is evaluated and saved as the result: the running average, where there is one."""
        return self.net if self.average is None else self.average.net

    def fit(self) -> Evaluation:
        """Train to the end; returns the last evaluation.

        Raises:
            Interrupted: told to stop; everything is saved.
            UserError: too many broken images; everything is saved.
        """
        notes: list[str] = []
        newest = self.world.broadcast_from_main(
            lambda: checkpoints.load_latest(self.run.checkpoints, notes.append, accept=self._load)
        )
        if newest is not None:
            if not self.world.is_main:
                self._load(checkpoints.load(newest))
            keep = self.config.runtime.keep
            self.world.broadcast_from_main(
                lambda: checkpoints.prune(newest, keep)
            )  # a killed run may not have done that
        if self.world.broadcast_from_main(lambda: self.run.resuming):
            self.world.broadcast_from_main(lambda: self.run.forget_metrics_after(self.steps_done, self.is_evaluated))
        with self.log.started(self.steps_done):
            self._begin(newest is not None, notes)
            self._train()
            if self.evaluation is None:  # the run was stopped between its last evaluation and its result
                self.evaluation = self._evaluation()
        return self.evaluation

    def _begin(self, resumed: bool, notes: list[str]) -> None:
        """Say where the run stands, and set the initial weights of a new one."""
        for note in notes:
            self.log.message(note)
        if resumed:
            self.log.message(f"resuming {self.run.path} at step {self.steps_done} of {self.steps}")
        costly = not resumed and self.task.initialise(self.stream)
        self.world.broadcast_from_main(lambda: self.run.write_config(self.config))
        if not resumed and self.average is not None:
            self.average.restart(self.net)
        if costly:
            self._save()

    def _train(self) -> None:
        model, runtime = self.wrap(), self.config.runtime
        if not self.is_evaluated:
            self._evaluate()
        batches = self._batches()
        parts = next(batches, None)  # always one ahead: what is wrong with it is heard with the sums of the step before
        told, news = self._told_to_stop(), self.world.any(self.monitor.has_updates(parts))
        begun, images = time.monotonic(), 0
        while parts is not None:
            if told:
                self._save()
                raise Interrupted
            self._take(parts, news)
            loss, last_phase = 0.0, len(self.optimizers) - 1
            for phase in range(last_phase):
                loss = loss + self.update(self.world.sum(self.gradients(model, parts, phase)), phase)
            sums = self.gradients(model, parts, last_phase)
            ahead = next(batches, None)
            told, news = self.world.sum_and_any(sums, self.run.flag.is_set, self.monitor.has_updates(ahead))
            self.losses.append(loss + self.update(sums, last_phase))
            if self.average is not None:
                self.average.update(self.net, self.steps_done)
            self.steps_done += 1
            images += self.config.train.batch
            last = self.steps_done == self.steps
            if last or self.steps_done % runtime.log_every == 0:
                speed = images / (time.monotonic() - begun)
                self._check_losses()
                self._log_step(torch.stack(self.losses).mean().item(), speed)
                begun, images, self.losses = time.monotonic(), 0, []
            self.log.advance(self.steps_done)
            if last or self.steps_done % runtime.eval_every == 0:
                paused = time.monotonic()
                self._evaluate()
                begun += time.monotonic() - paused
            if (last or self.steps_done % runtime.checkpoint_every == 0) and not told:
                self._save()
            parts = ahead

    def _modules_of_phases(self) -> list[nn.ModuleList]:
        """The modules that each phase updates.

        Raises:
            UserError: the net has no such module, or a parameter that no phase updates.
        """
        known = dict(self.net.named_modules())
        for name in itertools.chain(*self.phases):
            if name not in known:
                raise UserError(f"the net has no module {name!r}, which the task's phases name")
        modules = [nn.ModuleList(known[name] for name in names) for names in self.phases]
        updated = {id(parameter) for module in modules for parameter in module.parameters()}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad and id(parameter) not in updated:
                raise UserError(f"no phase of the task updates {name}")
        return modules

    @property
    def uses_ddp(self) -> bool:
        return self.world.size > 1 and not self.phases

    def wrap(self) -> nn.Module:
        """The net as steps call it: its gradients averaged over ranks, compiled.

        A task with phases calls parts of its net, which DDP does not know; :meth:`gradients` averages theirs.
        """
        model: nn.Module = self.net
        if self.uses_ddp:
            model = nn.parallel.DistributedDataParallel(model)
        return torch.compile(model) if self.config.train.compile else model

    def _batches(self) -> Iterator[list[Batch]]:
        """The rest of the run: for every step this rank's micro-batches; an empty list once there are no more images,
        which all ranks hear of before any of them steps."""
        batch, accumulate = self.config.train.batch, self.config.train.accumulate
        loader = load_batches(
            self.stream,
            self.steps_done * batch,
            self.steps * batch,
            self.micro_batch * self.world.size,
            self.world.shard(self.micro_batch),
            self.config.runtime.workers if self.stream.reads else 0,
            pin=self.world.device.type == "cuda",
        )
        parts: list[Batch] = []
        try:
            for part in loader:
                parts.append(part)
                if len(parts) == accumulate:
                    yield parts
                    parts = []
        except UserError as error:
            self.monitor.end(str(error))
            yield []

    def _take(self, parts: list[Batch], news: bool) -> None:
        """Look at the images of a step before they are learned from; where they are not good enough, save and stop."""
        try:
            self.monitor.check(parts, news, self.config.train.batch)
        except UserError:
            self._save()
            raise

    def gradients(self, model: nn.Module, parts: list[Batch], phase: int = 0) -> Tensor:
        """Gradients of this rank's parts; returns their summed loss and the count that it is to be divided by, (2,)."""
        config = self.config
        keys = (config.seed, self.steps_done, self.world.rank, *([phase] if phase else []))
        torch.manual_seed(mix(*keys) >> 1)  # dropout and the like
        set_rate(self.optimizers[phase], rate(self.steps_done, self.steps, config.optim.lr, config.schedule))
        model.train()
        self.net.zero_grad(set_to_none=True)
        step = partial(self.task.step, phase=phase) if self.phases else self.task.step
        sums = torch.zeros(2, device=self.world.device, dtype=torch.float64)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            sync_context = model.no_sync() if self.uses_ddp and not last else contextlib.nullcontext()
            with sync_context:
                with self.autocast():
                    loss, count = step(model, part)
                # Any constant would do here; images keep float16's gradients in range.
                self.scaler.scale(loss / config.train.batch).backward()
            sums += torch.stack((loss.detach().double(), count.double()))
        if self.phases and self.world.size > 1:
            self._all_reduce_gradients(self._parameters_with_grad(phase))
        return sums

    def _parameters_with_grad(self, phase: int) -> list[nn.Parameter]:
        """The parameters of a phase that have a gradient."""
        return [parameter for parameter in self.phase_modules[phase].parameters() if parameter.grad is not None]

    def _all_reduce_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over ranks and broadcast rank 0's BatchNorm buffers, as DDP does."""
        averaged = self.world.sum(torch.cat([parameter.grad.flatten() for parameter in parameters])) / self.world.size
        for parameter, part in zip(parameters, averaged.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))
        self.world.broadcast(self.net.buffers())

    def update(self, sums: Tensor, phase: int = 0) -> Tensor:
        """Move the weights: summed losses, divided once by the count over all ranks and parts; returns the loss.

        Args:
            sums: those of :meth:`gradients`, over all ranks.
            phase: whose optimiser steps.
        """
        optimizer, parameters = self.optimizers[phase], self._parameters_with_grad(phase)
        # DDP has averaged over ranks; the loss was divided by the batch.
        factor = self.world.size * self.config.train.batch / sums[1].clamp(min=1e-30)
        self.scaler.unscale_(optimizer)
        if self.world.device.type != "cpu" or factor != 1:  # to ask a GPU would be to wait for it
            torch._foreach_mul_([parameter.grad for parameter in parameters], factor.float())
        if self.config.optim.clip:
            nn.utils.clip_grad_norm_(parameters, self.config.optim.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        return sums[0] / sums[1].clamp(min=1e-30)

    def autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.config.train.precision)

    def _check_losses(self) -> None:
        """Weights that led nowhere are neither logged nor saved."""
        for loss in torch.stack(self.losses).tolist() if self.losses else ():
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss became {loss} before step {self.steps_done}; lower optim.lr or set optim.clip"
                )

    def _log_step(self, loss: float, speed: float) -> None:
        lr = self.optimizers[0].param_groups[0]["lr"]
        epoch = self.steps_done * self.config.train.batch / len(self.stream.images)
        values = {"train/loss": loss, "train/lr": lr, "train/images_per_s": speed, "train/epoch": epoch}
        shown = f"loss {loss:.4f}  {speed:.0f} images/s"
        if self.world.is_main:
            self._record({**{k: round(v, 8) for k, v in values.items()}, "broken": self.monitor.tally.broken})
        self.log.scalars(self.steps_done, values, shown)

    def _record(self, values: dict[str, float]) -> None:
        """A line of the metrics; what cannot be written now is said once, and ends nothing."""
        try:
            self.run.log_metrics(self.steps_done, **values)
        except OSError as error:
            if self.log_is_whole:
                self.log.message(f"metrics.jsonl has gaps from step {self.steps_done} on: {file_problem(error)}")
            self.log_is_whole = False

    def _evaluate(self) -> None:
        """Evaluate where the run stands; told to stop, it is saved first, and does so when it goes on."""
        self.is_evaluated = False
        self.world.copy_module_from_main(
            self.evaluated_net
        )  # BatchNorm's statistics differ between ranks; rank 0's are saved
        try:
            self.evaluation = self._evaluation()
        except (Interrupted, UserError):
            self._save()
            raise
        self.is_evaluated = True
        self.world.broadcast_from_main(lambda: self._report(self.evaluation))

    def _evaluation(self) -> Evaluation:
        with self.autocast(), torch.inference_mode():
            return self.task.evaluate(self.evaluated_net.eval(), self._told_to_stop)

    def _report(self, evaluation: Evaluation) -> None:
        """Rank 0's words and pictures after an evaluation; broken images are named once."""
        for name in evaluation.broken.keys() - self.named_broken:
            self.log.message(f"broken held-out image {name}: {evaluation.broken[name]}")
        self.named_broken |= evaluation.broken.keys()
        values = {f"val/{name}": value for name, value in evaluation.metrics.items()}
        self._record(values)
        with torch.inference_mode():
            pictures = evaluation.pictures()
        for name, pixels in pictures.items():
            self.log.picture(self.steps_done, name, pixels)
            try:
                (self.run.path / "samples").mkdir(exist_ok=True)
                with atomic_write(self.run.path / "samples" / f"{name}-{self.steps_done:09d}.png") as part:
                    Image.fromarray(pixels).save(part, "PNG")
            except (UserError, OSError) as error:  # a picture is no reason to stop
                self.log.message(f"no picture of step {self.steps_done}: {file_problem(error) or error}")
        self.log.scalars(self.steps_done, values, evaluation.line)

    def _told_to_stop(self) -> bool:
        return self.world.any(self.run.flag.is_set)

    def _state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "average": None if self.average is None else self.average.net.state_dict(),
            "optimizer": self.optimizers[0].state_dict(),
            **({"phases": [optimizer.state_dict() for optimizer in self.optimizers[1:]]} if self.phases else {}),
            "scaler": self.scaler.state_dict(),
            "evaluated": self.is_evaluated,
            "losses": [loss.cpu() for loss in self.losses],
            "broken": [self.monitor.tally.seen, self.monitor.tally.broken],
            "images": self.stream.images.names.fingerprint(),
        }

    def _save(self) -> None:
        self._check_losses()
        # Nobody leaves before the checkpoint is there.
        keep = self.config.runtime.keep
        self.world.broadcast_from_main(
            lambda: checkpoints.save(self.run.checkpoints, self.steps_done, self._state(), keep)
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
            self.average.net.load_state_dict(state["average"])
        stored = [state["optimizer"], *state.get("phases", [])]
        for optimizer, optimizer_state in zip(self.optimizers, stored, strict=True):
            optimizer.load_state_dict(optimizer_state)
            for parameter, moments in optimizer.state.items():
                for name, moment in moments.items():
                    if isinstance(moment, Tensor) and moment.shape not in (parameter.shape, torch.Size()):
                        raise ValueError(f"{name} of the optimiser is of shape {tuple(moment.shape)}")
        self.scaler.load_state_dict(dict(state["scaler"]))
        self.losses = [loss.reshape(()).to(self.world.device) for loss in state["losses"]]
        self.monitor.tally.seen, self.monitor.tally.broken = map(int, state["broken"])
        self.steps_done, self.is_evaluated = state["step"], state["evaluated"]
