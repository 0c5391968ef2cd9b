"""The training loop: set up and resume, then step, log, evaluate, save checkpoints and stop."""

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
    """Training of a task on a stream of images, resumable from the checkpoints in its run folder.

    Args:
        task: model, loss and evaluation.
        stream: training samples.
        config: training config. It is written into the run folder only after the run is loaded or initialised, so
            that a command that fails to start leaves nothing to resume.
        run: run folder, to which rank 0 writes.
        world: ranks that train together.
        quiet: print nothing.

    Attributes:
        net: net being trained.
        steps: optimiser steps of the complete run.
        steps_done: optimiser steps completed so far.
    """

    def __init__(
        self, task: Task, stream: Stream, config: TrainedConfig, run: RunFolder, world: World, quiet: bool = False
    ):
        train, device = config.train, world.device
        check_ranks(train, world.size)
        if train.batch > len(stream.images):
            raise UserError(f"train.batch ({train.batch}) exceeds the number of training images, {len(stream.images)}")
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.task, self.stream, self.config, self.run, self.world = task, stream, config, run, world
        self.micro_batch_size = train.batch // (world.size * train.accumulate)
        self.steps = total_steps(train, len(stream.images))
        self.net = task.net.to(device)
        if train.channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.phases = getattr(task, "phases", ())
        self.phase_modules = self._resolve_phases() if self.phases else [self.net]
        self.optimizers = [build_optimizer(module, config.optim, task.rate_factors) for module in self.phase_modules]
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
        self.average = WeightAverage(self.net, train.ema) if train.ema else None
        self.log = TrainingLog(run.path, self.steps, config.runtime.tensorboard, not world.is_main, quiet)
        self.monitor = DataMonitor(stream, self.micro_batch_size, world, config.runtime.broken_limit, self.log)
        self.steps_done = 0
        self.losses: list[Tensor] = []  # since the last log line
        self.is_evaluated = True  # False while an evaluation is due at `steps_done`
        self.evaluation: Evaluation | None = None  # latest evaluation in this process
        self.reported_broken: set[str] = set()  # names of held-out images
        self.metrics_complete = True  # False after a failed write to metrics.jsonl

    @property
    def evaluated_net(self) -> nn.Module:
        """Net that is evaluated and saved as the result: the weight average if there is one, else ``net``."""
        return self.net if self.average is None else self.average.net

    def fit(self) -> Evaluation:
        """Train until the last step and return the final evaluation.

        Raises:
            Interrupted: a signal stopped the run, after its state was saved.
            UserError: there are too many broken images; the state was saved.
        """
        warnings: list[str] = []
        checkpoint = self.world.broadcast_from_main(
            lambda: checkpoints.load_latest(self.run.checkpoints, warnings.append, accept=self._load)
        )
        if checkpoint is not None:
            if not self.world.is_main:
                self._load(checkpoints.load(checkpoint))
            keep = self.config.runtime.keep
            # A killed run may have saved a checkpoint without pruning older ones.
            self.world.broadcast_from_main(lambda: checkpoints.prune(checkpoint, keep))
        if self.world.broadcast_from_main(lambda: self.run.resuming):
            self.world.broadcast_from_main(lambda: self.run.forget_metrics_after(self.steps_done, self.is_evaluated))
        with self.log.progress(self.steps_done):
            self._start(checkpoint is not None, warnings)
            self._train()
            if self.evaluation is None:  # the run was killed after its final evaluation, before writing its result
                self.evaluation = self._compute_evaluation()
        return self.evaluation

    def _start(self, resumed: bool, warnings: list[str]) -> None:
        """Log the step at which a run resumes, or set the initial weights of a new run; write the config."""
        for warning in warnings:
            self.log.message(warning)
        if resumed:
            self.log.message(f"resuming {self.run.path} at step {self.steps_done} of {self.steps}")
        save_now = not resumed and self.task.initialise(self.stream)
        self.world.broadcast_from_main(lambda: self.run.write_config(self.config))
        if not resumed and self.average is not None:
            self.average.restart(self.net)
        if save_now:
            self._save()

    def _train(self) -> None:
        model, runtime = self.wrap(), self.config.runtime
        if not self.is_evaluated:
            self._evaluate()
        loader = self._load_micro_batches()
        micro_batches = next(loader, None)
        stop, has_updates = self._should_stop(), self.world.any(self.monitor.has_updates(micro_batches))
        start_time, images = time.monotonic(), 0  # since the last log line
        while micro_batches is not None:
            if stop:
                self._save()
                raise Interrupted
            self._check_images(micro_batches, has_updates)
            loss, last_phase = 0.0, len(self.optimizers) - 1
            for phase in range(last_phase):
                loss = loss + self.update(self.world.sum(self.gradients(model, micro_batches, phase)), phase)
            sums = self.gradients(model, micro_batches, last_phase)
            # Load the next step now: one all-reduce then sums this step's loss and shares stop signals and data errors.
            next_micro_batches = next(loader, None)
            stop, has_updates = self.world.sum_and_any(
                sums, self.run.flag.is_set, self.monitor.has_updates(next_micro_batches)
            )
            self.losses.append(loss + self.update(sums, last_phase))
            if self.average is not None:
                self.average.update(self.net, self.steps_done)
            self.steps_done += 1
            images += self.config.train.batch
            is_last = self.steps_done == self.steps
            if is_last or self.steps_done % runtime.log_every == 0:
                images_per_s = images / (time.monotonic() - start_time)
                self._check_losses()
                self._log_step(torch.stack(self.losses).mean().item(), images_per_s)
                start_time, images, self.losses = time.monotonic(), 0, []
            self.log.advance(self.steps_done)
            if is_last or self.steps_done % runtime.eval_every == 0:
                eval_start = time.monotonic()
                self._evaluate()
                start_time += time.monotonic() - eval_start  # training throughput excludes evaluations
            if (is_last or self.steps_done % runtime.checkpoint_every == 0) and not stop:
                self._save()
            micro_batches = next_micro_batches

    def _resolve_phases(self) -> list[nn.ModuleList]:
        """Return the modules that each phase updates.

        Raises:
            UserError: the net lacks one of these modules, or no phase updates one of its trainable parameters.
        """
        modules_by_name = dict(self.net.named_modules())
        for name in itertools.chain(*self.phases):
            if name not in modules_by_name:
                raise UserError(f"the net has no module {name!r}, which is listed in the task's phases")
        modules = [nn.ModuleList(modules_by_name[name] for name in names) for names in self.phases]
        updated = {id(parameter) for module in modules for parameter in module.parameters()}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad and id(parameter) not in updated:
                raise UserError(f"no phase of the task updates {name}")
        return modules

    @property
    def uses_ddp(self) -> bool:
        return self.world.size > 1 and not self.phases

    def wrap(self) -> nn.Module:
        """Wrap the net for training steps: in DDP if there are several ranks, and in ``torch.compile`` if configured.

        A task with phases calls submodules of the net directly, which bypasses DDP. For such a task
        :meth:`gradients` averages over ranks instead.
        """
        model: nn.Module = self.net
        if self.uses_ddp:
            model = nn.parallel.DistributedDataParallel(model)
        return torch.compile(model) if self.config.train.compile else model

    def _load_micro_batches(self) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches for each remaining step.

        If the images become unavailable, yield an empty list: the monitor then stops all ranks before the next step.
        """
        batch, accumulate = self.config.train.batch, self.config.train.accumulate
        loader = load_batches(
            self.stream,
            self.steps_done * batch,
            self.steps * batch,
            self.micro_batch_size * self.world.size,
            self.world.shard(self.micro_batch_size),
            self.config.runtime.workers if self.stream.reads else 0,
            pin=self.world.device.type == "cuda",
        )
        micro_batches: list[Batch] = []
        try:
            for micro_batch in loader:
                micro_batches.append(micro_batch)
                if len(micro_batches) == accumulate:
                    yield micro_batches
                    micro_batches = []
        except UserError as error:
            self.monitor.end(str(error))
            yield []

    def _check_images(self, micro_batches: list[Batch], has_updates: bool) -> None:
        """Check a step's images before training on them. If too many are broken, save the state and raise."""
        try:
            self.monitor.check(micro_batches, has_updates, self.config.train.batch)
        except UserError:
            self._save()
            raise

    def gradients(self, model: nn.Module, micro_batches: list[Batch], phase: int = 0) -> Tensor:
        """Accumulate the gradients of this rank's micro-batches.

        Returns:
            (2,) float64: this rank's summed loss and count; :meth:`update` divides by the count of all ranks.
        """
        config = self.config
        keys = (config.seed, self.steps_done, self.world.rank, *([phase] if phase else []))
        torch.manual_seed(mix(*keys) >> 1)  # for dropout
        set_rate(self.optimizers[phase], rate(self.steps_done, self.steps, config.optim.lr, config.schedule))
        model.train()
        self.net.zero_grad(set_to_none=True)
        step = partial(self.task.step, phase=phase) if self.phases else self.task.step
        sums = torch.zeros(2, device=self.world.device, dtype=torch.float64)
        for index, micro_batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            sync_context = model.no_sync() if self.uses_ddp and not is_last else contextlib.nullcontext()
            with sync_context:
                with self.autocast():
                    loss, count = step(model, micro_batch)
                # Dividing by the batch size keeps float16 gradients in range; `update` divides by the count instead.
                self.scaler.scale(loss / config.train.batch).backward()
            sums += torch.stack((loss.detach().double(), count.double()))
        if self.phases and self.world.size > 1:
            self._all_reduce_gradients(self._parameters_with_grad(phase))
        return sums

    def _parameters_with_grad(self, phase: int) -> list[nn.Parameter]:
        """List the parameters of a phase that have a gradient."""
        return [parameter for parameter in self.phase_modules[phase].parameters() if parameter.grad is not None]

    def _all_reduce_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over ranks and broadcast rank 0's BatchNorm buffers, as DDP does."""
        averaged = self.world.sum(torch.cat([parameter.grad.flatten() for parameter in parameters])) / self.world.size
        for parameter, gradient in zip(parameters, averaged.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(gradient.view_as(parameter))
        self.world.broadcast(self.net.buffers())

    def update(self, sums: Tensor, phase: int = 0) -> Tensor:
        """Take an optimiser step with gradients divided by the total count; return the mean loss.

        Args:
            sums: (2,) loss and count from :meth:`gradients`, summed over all ranks.
            phase: index of the optimiser.
        """
        optimizer, parameters = self.optimizers[phase], self._parameters_with_grad(phase)
        # Undo DDP's average over ranks and the division by the batch size, then divide by the count.
        factor = self.world.size * self.config.train.batch / sums[1].clamp(min=1e-30)
        self.scaler.unscale_(optimizer)
        if self.world.device.type != "cpu" or factor != 1:  # comparing on a GPU would force a synchronisation
            torch._foreach_mul_([parameter.grad for parameter in parameters], factor.float())
        if self.config.optim.clip:
            nn.utils.clip_grad_norm_(parameters, self.config.optim.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        return sums[0] / sums[1].clamp(min=1e-30)

    def autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.config.train.precision)

    def _check_losses(self) -> None:
        """Raise a UserError if a loss is not finite, so that a diverged run is neither logged nor saved."""
        for loss in torch.stack(self.losses).tolist() if self.losses else ():
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss became {loss} before step {self.steps_done}; lower optim.lr or set optim.clip"
                )

    def _log_step(self, loss: float, images_per_s: float) -> None:
        lr = self.optimizers[0].param_groups[0]["lr"]
        epoch = self.steps_done * self.config.train.batch / len(self.stream.images)
        values = {"train/loss": loss, "train/lr": lr, "train/images_per_s": images_per_s, "train/epoch": epoch}
        text = f"loss {loss:.4f}  {images_per_s:.0f} images/s"
        if self.world.is_main:
            self._log_metrics({**{k: round(v, 8) for k, v in values.items()}, "broken": self.monitor.tally.broken})
        self.log.scalars(self.steps_done, values, text)

    def _log_metrics(self, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl. Write errors do not stop the run, and only the first is reported."""
        try:
            self.run.log_metrics(self.steps_done, **values)
        except OSError as error:
            if self.metrics_complete:
                self.log.message(f"metrics.jsonl has gaps from step {self.steps_done} on: {file_problem(error)}")
            self.metrics_complete = False

    def _evaluate(self) -> None:
        """Evaluate after the current step. If interrupted, save first: the resumed run repeats the evaluation."""
        self.is_evaluated = False
        # BatchNorm statistics differ between ranks; checkpoints contain those of rank 0.
        self.world.copy_module_from_main(self.evaluated_net)
        try:
            self.evaluation = self._compute_evaluation()
        except (Interrupted, UserError):
            self._save()
            raise
        self.is_evaluated = True
        self.world.broadcast_from_main(lambda: self._report(self.evaluation))

    def _compute_evaluation(self) -> Evaluation:
        with self.autocast(), torch.inference_mode():
            return self.task.evaluate(self.evaluated_net.eval(), self._should_stop)

    def _report(self, evaluation: Evaluation) -> None:
        """Log the metrics, pictures and newly broken images of an evaluation (on rank 0)."""
        for name in evaluation.broken.keys() - self.reported_broken:
            self.log.message(f"broken held-out image {name}: {evaluation.broken[name]}")
        self.reported_broken |= evaluation.broken.keys()
        values = {f"val/{name}": value for name, value in evaluation.metrics.items()}
        self._log_metrics(values)
        with torch.inference_mode():
            pictures = evaluation.pictures()
        for name, pixels in pictures.items():
            self.log.picture(self.steps_done, name, pixels)
            try:
                (self.run.path / "samples").mkdir(exist_ok=True)
                with atomic_write(self.run.path / "samples" / f"{name}-{self.steps_done:09d}.png") as partial_file:
                    Image.fromarray(pixels).save(partial_file, "PNG")
            except (UserError, OSError) as error:  # not worth stopping the run
                self.log.message(
                    f"could not save the picture of step {self.steps_done}: {file_problem(error) or error}"
                )
        self.log.scalars(self.steps_done, values, evaluation.line)

    def _should_stop(self) -> bool:
        """Return whether any rank received a signal to stop."""
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
        """Save a checkpoint on rank 0; the other ranks wait until it is written."""
        self._check_losses()
        keep = self.config.runtime.keep
        self.world.broadcast_from_main(
            lambda: checkpoints.save(self.run.checkpoints, self.steps_done, self._state(), keep)
        )

    def _load(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            UserError: the checkpoint belongs to other training images.
            KeyError, TypeError, ValueError, RuntimeError: the checkpoint does not fit this run, but an earlier one may.
        """
        if state["images"] != self.stream.images.names.fingerprint():  # older runs have no images.json to check
            raise UserError(
                f"{self.run.path} was started on other images than those of --data; pass the original --data or "
                "another --out"
            )
        if not (0 <= state["step"] <= self.steps and isinstance(state["evaluated"], bool)):
            raise ValueError(f"it is at step {state['step']} of a run with {self.steps} steps")
        self.net.load_state_dict(state["net"])
        if self.average is not None:
            self.average.net.load_state_dict(state["average"])
        optimizer_states = [state["optimizer"], *state.get("phases", [])]
        for optimizer, optimizer_state in zip(self.optimizers, optimizer_states, strict=True):
            optimizer.load_state_dict(optimizer_state)
            for parameter, moments in optimizer.state.items():
                for name, moment in moments.items():
                    if isinstance(moment, Tensor) and moment.shape not in (parameter.shape, torch.Size()):
                        raise ValueError(f"the optimiser's {name} has an unexpected shape, {tuple(moment.shape)}")
        self.scaler.load_state_dict(dict(state["scaler"]))
        self.losses = [loss.reshape(()).to(self.world.device) for loss in state["losses"]]
        self.monitor.tally.seen, self.monitor.tally.broken = map(int, state["broken"])
        self.steps_done, self.is_evaluated = state["step"], state["evaluated"]
