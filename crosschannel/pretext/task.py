"""Base classes of pretext tasks.

A task selects its view of the data and defines the forward pass, the loss and the metrics. Most tasks are a
:class:`PairTask`: RGB → ``inputs`` → net → ``loss`` against ``targets``. A task that predicts colours also has a
``decoder``, which converts the net's outputs to ab (:mod:`crosschannel.colorize.decoders`).
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
    """The metric by which the runs of a task are compared.

    Attributes:
        name: key among the task's metrics.
        description: text printed after the value.
        baseline: value at chance level; None if unknown.
        baseline_name: label of the baseline in plots.
        is_ratio: whether the value is a loss divided by the baseline's loss (1: nothing learned, 0: perfect).
        label: axis label in plots; default: the name.
    """

    name: str
    description: str
    baseline: float | None = None
    baseline_name: str = ""
    is_ratio: bool = False
    label: str = ""

    @classmethod
    def ratio(cls, name: str, baseline_name: str, quantity: str = "loss") -> "PrimaryMetric":
        """Create the metric that divides a quantity, such as the loss, by that of the best constant prediction."""
        description = f"× the {quantity} of the best constant prediction (1 = nothing learned)"
        label = f"{quantity[0].upper()}{quantity[1:]} relative to a constant"
        return cls(name, description, 1.0, baseline_name, is_ratio=True, label=label)

    def describe(self, value: float) -> str:
        """Format a value with its description."""
        text = f"{value:.3g} {self.description}"
        return f"{text}: no better than a constant" if self.is_ratio and value >= self.baseline else text


class Pretext(nn.Module):
    """Base class of pretext tasks.

    Args:
        config: config of the task.
        stride: output stride of the net, in input pixels.
        classes: class names of the images, by label.

    Attributes:
        name: name under which :func:`crosschannel.pretext.find_task` looks up the task.
        keys: config dataclass of a user-defined task.
        primary_metric: the metric by which runs are compared.
        decoder: ``module:class`` of the decoder of a task that predicts colours; empty for other tasks.
        needs_fc: whether the task uses fc6 and fc7 of a net that is otherwise pretrained without them (VGG-16).
        is_classifier: whether the outputs are logits of ``classes``.
        input: preprocessing of the backbone's input; its ``size`` and ``resize`` are not used.
        rows: captions of the rows that :meth:`pictures` draws.
        phases: names of the modules that each phase of a step updates, such as a generator and a discriminator; every
            phase has its own optimiser. Empty: a single phase that updates the whole net.
        score_length: length of the vector that :meth:`scores` returns.
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
        """Return the input spec of the backbone, for pretraining and transfer."""
        return InputSpec("grey", crop.size, crop.resize)

    @staticmethod
    def build(config: Any, spec: NetSpec, size: int | None, classes: Sequence[str]) -> nn.Module:
        """Build the untrained net: inputs → outputs, with the attributes ``net`` (the backbone) and ``stride``.

        Args:
            config: config of the task.
            spec: architecture of the backbone.
            size: side of the input, in pixels, for nets with a fixed input size.
            classes: class names of the images, by label.

        Raises:
            UserError: the task does not support this backbone.
        """
        raise NotImplementedError

    @staticmethod
    def inference_config(config: Any) -> Any:
        """Return the config for inference, without references to files that are only needed for training."""
        return config

    def view(self, crop: CropConfig, train: bool) -> View:
        """Return the view for training or for held-out images; default: training crops, or the centre crop."""
        return TrainingCrops(crop) if train else CentreCrop(crop.size, crop.resize)

    def example_input(self, size: int) -> Tensor:
        """Return zeros in the shape of the net's input for crops of ``size`` pixels."""
        return torch.zeros(1, self.input.channels, size, size)

    def net_inputs(self, batch: Batch) -> Tensor:
        """Return the net's input for a batch; data-dependent initialisation also uses it."""
        raise NotImplementedError

    def losses(self, net: nn.Module, batch: Batch, phase: int = 0) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a batch and the count by which to divide it, both scalars.

        Args:
            net: net that :meth:`build` returned; DDP may wrap it, unless the task has phases.
            batch: batch of the view, on the task's device. Draw random numbers with :meth:`Batch.uniforms`, so that
                they depend only on the sample; dropout may use torch's global RNG.
            phase: index of the phase.
        """
        raise NotImplementedError

    def scores(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return sums over a held-out batch for :meth:`metrics`, float64 (``score_length``,)."""
        raise NotImplementedError

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute the metrics, including ``loss`` and the primary metric, from summed scores."""
        raise NotImplementedError

    def pictures(self, net: nn.Module, batch: Batch) -> np.ndarray | None:
        """Draw a held-out batch and its predictions in rows, (H, W, 3) uint8; None if there is nothing to draw."""
        return None

    def details(self) -> dict[str, Any]:
        """Return the provenance entries of nets trained on this task."""
        return {"pretext": self.name}


class PairTask(Pretext):
    """Base class of tasks that compare the net's outputs for ``inputs`` of a crop with the crop's ``targets``."""

    def inputs(self, rgb: Tensor) -> Tensor:
        """Convert RGB (N, 3, H, W), uint8 or float in [0, 1], to the net's input."""
        return self.input.preprocess(rgb)

    def targets(self, rgb: Tensor, labels: Tensor) -> Any:
        """Compute the targets from RGB (N, 3, H, W) uint8 and class labels (N,)."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Compute the loss per prediction, (N, …)."""
        raise NotImplementedError

    def count(self, loss: Tensor, targets: Any) -> Tensor:
        """Return the scalar by which the summed loss of a batch is divided."""
        return loss.new_full((), loss.numel() if self.config.normalise == "pixels" else len(loss))

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """Return sums over a held-out batch for :meth:`metrics`, float64 (``score_length``,)."""
        raise NotImplementedError

    def net_inputs(self, batch: ImageBatch) -> Tensor:
        return self.inputs(batch.images)

    def losses(self, net: nn.Module, batch: ImageBatch, phase: int = 0) -> tuple[Tensor, Tensor]:
        outputs, targets = self._outputs_and_targets(net, batch)
        loss = self.loss(outputs, targets)
        return loss.sum(), self.count(loss, targets)

    def scores(self, net: nn.Module, batch: ImageBatch) -> Tensor:
        return self.score(*self._outputs_and_targets(net, batch))

    def _outputs_and_targets(self, net: nn.Module, batch: ImageBatch) -> tuple[Any, Any]:
        return net(self.inputs(batch.images)), self.targets(batch.images, batch.labels)


def check_contrast(constant_loss: float) -> None:
    """Raise a UserError if the best constant prediction is perfect, as for images that are all grey."""
    if constant_loss < 1e-6:
        raise UserError(
            "the held-out images are all of one colour (perhaps grey) and cannot be scored; use colour images"
        )


def moments(x: Tensor) -> Tensor:
    """Return pixel count, Σ ‖x‖² and Σ x of maps (N, C, h, w) for :func:`constant_error`, float64 (2 + C,)."""
    x = x.double()
    count = torch.tensor(float(x[:, 0].numel())).to(x)
    return torch.stack((count, x.square().sum(), *x.sum((0, 2, 3))))


def constant_error(count: float, squares: float, *sums: float) -> float:
    """Return half the summed squared distance of pixels to their mean, given their :func:`moments`."""
    return (squares - sum(total * total for total in sums) / count) / 2


def constant_cross_entropy(histogram: Tensor) -> float:
    """Return the summed cross-entropy, in nats, of targets under their mean distribution, given their sum (Q,)."""
    total = histogram.sum().clamp(min=1e-30)
    return -torch.special.xlogy(histogram, histogram / total).sum().item()


def require_family(spec: NetSpec, name: str, task: str) -> None:
    """Raise a UserError unless the backbone has the architecture for which a task is defined."""
    if spec.name != name:
        raise UserError(f"the task {task} requires model.name {name}, got {spec.name}")


def as_arrays(images: Tensor) -> np.ndarray:
    """Convert images (N, 3, H, W) to an array (N, H, W, 3) on the CPU."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def stack_rows(*rows: Sequence[np.ndarray]) -> np.ndarray:
    """Join rows of pictures of the same size into one picture."""
    return np.concatenate([np.concatenate(row, 1) for row in rows])
