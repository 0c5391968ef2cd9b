"""A pretext task: it chooses its view of the data, and owns the forward pass, the loss and the score.

Most tasks are a :class:`PairTask`: RGB → ``inputs`` → net → ``loss`` against ``targets``. A task that predicts
colours names the ``decoder`` that turns its outputs into pictures (:mod:`crosschannel.colorize.decoders`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.config.training import CropConfig
from crosschannel.data import Batch, CentreCrop, ImageBatch, TrainingCrops, View
from crosschannel.errors import UserError
from crosschannel.models import InputSpec, NetSpec


@dataclass(frozen=True)
class PrimaryMetric:
    """Primary metric of a task, by which runs are compared.

    Attributes:
        name: its key among the metrics.
        description: text that follows its value.
        baseline: value at chance level; None if unknown.
        baseline_name: name of the baseline in plots.
        is_share: whether the value is a fraction of the baseline's loss (1: nothing learned, 0: perfect).
    """

    name: str
    description: str
    baseline: float | None = None
    baseline_name: str = ""
    is_ratio: bool = False

    @classmethod
    def ratio(cls, name: str, baseline_name: str) -> "PrimaryMetric":
        """A loss as a share of that of the best constant prediction."""
        description = "× the loss of the best constant prediction (1 = nothing learned)"
        return cls(name, description, 1.0, baseline_name, is_ratio=True)

    def sentence(self, value: float) -> str:
        """Describe a value in words."""
        text = f"{value:.3g} {self.description}"
        return f"{text}: no better than a constant" if self.is_ratio and value >= self.baseline else text


class Pretext(nn.Module):
    """A pretext task: what its net sees, what it predicts, its loss and its score.

    Args:
        config: its keys.
        stride: of its net: input pixels per step of what it predicts.
        classes: of the images, by label.

    Attributes:
        name: accepted by :func:`crosschannel.pretext.find_task`.
        keys: the dataclass of its keys, for a user-defined task.
        primary_metric: the metric by which runs are judged.
        decoder: module:class of the decoder of a task that predicts colours; empty for other tasks.
        uses_fc: whether a net that pretraining leaves fc6 and fc7 out of (VGG-16) has them here.
        tells_classes: whether the outputs are logits of ``classes``.
        input: preprocessing of any image; its sizes are not used.
        rows: what the rows of its pictures show.
        phases: names of the modules that each phase of a step updates, with an optimiser of its own, such as a
            generator and a discriminator; empty: one phase updates the whole net.
        score_length: numbers of a score.
    """

    name: str
    primary_metric: PrimaryMetric
    decoder: ClassVar[str] = ""
    needs_fc: ClassVar[bool] = False
    is_classifier: ClassVar[bool] = False
    rows: ClassVar[tuple[str, ...]] = ("lightness", "predicted colours", "truth")
    phases: ClassVar[tuple[tuple[str, ...], ...]] = ()
    score_length: int

    def __init__(self, config: Any, stride: int, classes: Sequence[str] = ()):
        super().__init__()
        self.config, self.stride, self.classes = config, stride, tuple(classes)
        self.input = self.input_of(config, CropConfig())

    @staticmethod
    def input_of(config: Any, crop: CropConfig) -> InputSpec:
        """The input of its backbone, which transfer uses too."""
        return InputSpec("grey", crop.size, crop.resize)

    @staticmethod
    def build(config: Any, spec: NetSpec, size: int | None, classes: Sequence[str]) -> nn.Module:
        """The untrained net: has ``net`` (the backbone) and ``stride``; inputs → outputs.

        Raises:
            UserError: a backbone that the task cannot stand on.
        """
        raise NotImplementedError

    @staticmethod
    def inference_config(config: Any) -> Any:
        """The keys as a trained net needs them: files that only training reads are not asked for."""
        return config

    def view(self, crop: CropConfig, train: bool) -> View:
        """The samples of training or of held-out images; default training crops and the centre crop."""
        return TrainingCrops(crop) if train else CentreCrop(crop.size, crop.resize)

    def example_input(self, size: int) -> Tensor:
        """A tensor of zeros, shaped like the net's input for crops of ``size`` pixels."""
        return torch.zeros(1, self.input.channels, size, size)

    def net_inputs(self, batch: Batch) -> Tensor:
        """The net's input for a batch; data-dependent initialisation uses it."""
        raise NotImplementedError

    def losses(self, net: nn.Module, batch: Batch, phase: int = 0) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch and the count that it is divided by, both scalars.

        Args:
            net: inputs → outputs; DDP may wrap it, unless the task has phases.
            batch: of the view, on the task's device. Random numbers come from :meth:`Batch.uniforms`, so that they
                depend on the sample alone; dropout may use torch's own.
            phase: index of the phase.
        """
        raise NotImplementedError

    def scores(self, net: nn.Module, batch: Batch) -> Tensor:
        """Sums for :meth:`metrics`, float64 (``score_length``,)."""
        raise NotImplementedError

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Figures of summed scores, ``loss`` among them."""
        raise NotImplementedError

    def pictures(self, net: nn.Module, batch: Batch) -> np.ndarray | None:
        """Rows of pictures, (H, W, 3) uint8, that show a held-out batch and what is predicted of it; None: there is
        nothing to see."""
        return None

    def details(self) -> dict[str, Any]:
        """What a net's provenance says of it."""
        return {"pretext": self.name}


class PairTask(Pretext):
    """A task whose net maps ``inputs`` of a crop to outputs, which are compared with ``targets`` of the same crop."""

    def inputs(self, rgb: Tensor) -> Tensor:
        """RGB (N, 3, H, W), uint8 or float in [0, 1] → the net's input."""
        return self.input.preprocess(rgb)

    def targets(self, rgb: Tensor, labels: Tensor) -> Any:
        """RGB (N, 3, H, W) uint8 and the images' labels (N,) → what the outputs are compared with."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of every prediction, (N, …)."""
        raise NotImplementedError

    def count(self, loss: Tensor, targets: Any) -> Tensor:
        """What the summed loss of a batch is divided by: a scalar."""
        return loss.new_full((), loss.numel() if self.config.normalise == "pixels" else len(loss))

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """Sums for :meth:`metrics`, float64 (``score_length``,)."""
        raise NotImplementedError

    def net_inputs(self, batch: ImageBatch) -> Tensor:
        return self.inputs(batch.images)

    def losses(self, net: nn.Module, batch: ImageBatch, phase: int = 0) -> tuple[Tensor, Tensor]:
        outputs, targets = self._pair(net, batch)
        loss = self.loss(outputs, targets)
        return loss.sum(), self.count(loss, targets)

    def scores(self, net: nn.Module, batch: ImageBatch) -> Tensor:
        return self.score(*self._pair(net, batch))

    def _pair(self, net: nn.Module, batch: ImageBatch) -> tuple[Any, Any]:
        return net(self.inputs(batch.images)), self.targets(batch.images, batch.labels)


def check_contrast(of_the_best_constant: float) -> None:
    """Raise a UserError where one answer fits all images, and there is nothing to be told from them."""
    if of_the_best_constant < 1e-6:
        raise UserError("the held-out images are all of one colour (grey, perhaps): there is nothing to score")


def moments(x: Tensor) -> Tensor:
    """Of maps (N, C, h, w): pixels, Σ ‖x‖², Σ x, for :func:`constant_error`: float64 (2 + C,)."""
    x = x.double()
    count = torch.tensor(float(x[:, 0].numel())).to(x)
    return torch.stack((count, x.square().sum(), *x.sum((0, 2, 3))))


def constant_error(count: float, square: float, *sums: float) -> float:
    """Half the summed squared distance of pixels from the constant that fits them best, from their moments."""
    return (square - sum(one * one for one in sums) / count) / 2


def constant_cross_entropy(histogram: Tensor) -> float:
    """Summed nats of targets under the distribution that fits them best, from the sum of these targets (Q,)."""
    total = histogram.sum().clamp(min=1e-30)
    return -torch.special.xlogy(histogram, histogram / total).sum().item()


def require_family(spec: NetSpec, name: str, task: str) -> None:
    """Raise a UserError for a backbone other than the one that a task is defined on."""
    if spec.name != name:
        raise UserError(f"the task {task} stands on {name}, and model.name is {spec.name}")


def as_arrays(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) → (N, H, W, 3), on the CPU."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def stack_rows(*pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size, a row each."""
    return np.concatenate([np.concatenate(row, 1) for row in pictures])
