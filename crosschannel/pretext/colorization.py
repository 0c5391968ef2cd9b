"""Colorization: predict the ab channels of an image from its lightness (Zhang, Isola, Efros, ECCV 2016).

The variants of the paper: "full" is rebalanced classification (λ = ½), "class" is classification with λ = 1, "L2" is
regression, and "L2, ft" is regression fine-tuned from "full".
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from crosschannel.color import load_prior, rgb_to_lab
from crosschannel.models import NetSpec
from crosschannel.pretext.classification import Classification
from crosschannel.pretext.config import ColorizationConfig
from crosschannel.pretext.nets import PretextNet, build_pretext
from crosschannel.pretext.regression import Regression
from crosschannel.pretext.task import PairTask, PrimaryMetric


def _classification(config: ColorizationConfig) -> Classification:
    prior = load_prior(config.prior).check_lam(config.lam).smoothed
    return Classification(prior, config.lam, config.neighbours, config.sigma, config.grey_threshold, config.uniform)


_OBJECTIVES = {"class": _classification, "l2": lambda config: Regression(config.grey_threshold)}
_OUTPUTS = {"class": Classification.outputs, "l2": Regression.outputs}


class Colorization(PairTask):
    """Predict logits of 313 ab bins, or ab itself, at every ``stride``-th pixel from L - 50.

    Attributes:
        objective: loss and metrics of the outputs.
    """

    name = "colorization"
    decoder: ClassVar[str] = "crosschannel.colorize.decoders:colorization_decoder"

    def __init__(self, config: ColorizationConfig, stride: int, classes: Sequence[str] = ()):
        super().__init__(config, stride, classes)
        self.objective: Classification | Regression = _OBJECTIVES[config.kind](config)

    @staticmethod
    def build(config: ColorizationConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> PretextNet:
        return build_pretext(spec, _OUTPUTS[config.kind], size)

    @staticmethod
    def inference_config(config: ColorizationConfig) -> ColorizationConfig:
        return replace(config, prior="imagenet-256", lam=config.lam or 0.5)  # packaged priors do not support λ = 0

    @property
    def primary_metric(self) -> PrimaryMetric:
        return self.objective.primary_metric

    @property
    def score_length(self) -> int:
        return self.objective.score_length

    def targets(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """Return ab of every ``stride``-th pixel: subsampled, not averaged, as in the release."""
        return rgb_to_lab(rgb[:, :, :: self.stride, :: self.stride])[:, 1:]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.objective(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.objective.score(outputs, targets)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return self.objective.metrics(sums)

    def details(self) -> dict[str, Any]:
        return {"pretext": self.name, "objective": self.config.kind, "lam": self.config.lam}
