"""Colorization: the ab channels of an image from its lightness (Zhang, Isola, Efros, ECCV 2016).

"full" is rebalanced classification (λ = ½), "class" the same with λ = 1, "L2" regression, "L2, ft" a regression that
starts from full.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from crosschannel.color import load_prior, rgb_to_lab
from crosschannel.color.quantizer import Q
from crosschannel.errors import UserError
from crosschannel.models import NetSpec
from crosschannel.pretext.classification import Classification
from crosschannel.pretext.config import ColorizationConfig
from crosschannel.pretext.nets import PretextNet, build_pretext
from crosschannel.pretext.regression import Regression
from crosschannel.pretext.task import Headline, PairTask


def _classification(config: ColorizationConfig) -> Classification:
    prior = load_prior(config.prior).fit_for(config.lam).smoothed
    return Classification(prior, config.lam, config.neighbours, config.sigma, config.grey_threshold, config.uniform)


_OBJECTIVES = {"class": _classification, "l2": lambda config: Regression(config.grey_threshold)}
_OUTPUTS = {"class": Classification.outputs, "l2": Regression.outputs}


class Colorization(PairTask):
    """L - 50 → logits of 313 ab bins, or ab, at every ``stride``-th pixel.

    Attributes:
        objective: what the outputs are scored and decoded by.
        native: (2, 313) ab of every bin, where a net has a decode of its own: the expectation of these under plain
            softmax is what it gives without a temperature.
    """

    name = "colorization"
    colours: ClassVar[bool] = True

    def __init__(self, config: ColorizationConfig, stride: int, classes: Sequence[str] = ()):
        super().__init__(config, stride, classes)
        self.objective: Classification | Regression = _OBJECTIVES[config.kind](config)
        self.temperature = self.objective.temperature
        self.register_buffer("native", None)

    @staticmethod
    def build(config: ColorizationConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> PretextNet:
        return build_pretext(spec, _OUTPUTS[config.kind], size)

    @staticmethod
    def for_use(config: ColorizationConfig) -> ColorizationConfig:
        return replace(config, prior="imagenet-256", lam=config.lam or 0.5)  # a packaged prior has no λ = 0

    @property
    def headline(self) -> Headline:
        return self.objective.headline

    @property
    def score_length(self) -> int:
        return self.objective.score_length

    def targets(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """ab of every ``stride``-th pixel: subsampled, not averaged, as in the release."""
        return rgb_to_lab(rgb[:, :, :: self.stride, :: self.stride])[:, 1:]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.objective(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.objective.score(outputs, targets)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return self.objective.metrics(sums)

    def details(self) -> dict[str, Any]:
        return {"pretext": self.name, "objective": self.config.kind, "lam": self.config.lam}

    def own_decode(self) -> dict[str, Tensor]:
        return {} if self.native is None else {"native": self.native}

    def take_decode(self, tensors: dict[str, Tensor], temperature: float | None, source: str) -> None:
        native = tensors.pop("native", None)
        super().take_decode(tensors, temperature, source)
        if native is None:
            return
        if native.shape != (2, Q) or not native.is_floating_point() or not native.abs().max() < 1e3:
            raise UserError(f"{source} holds a decode that is none: (2, {Q}) ab values")
        self.native = native

    def distribution(self, outputs: Tensor) -> Tensor | None:
        return None if self.temperature is None else outputs.float().softmax(1)

    def maps(self, outputs: Tensor, temperature: float | None = None) -> Tensor:
        """ab of the grid: the net's own decode, else the annealed mean."""
        if temperature is None and self.native is not None:
            return torch.einsum("cq,nqhw->nchw", self.native, outputs.float().softmax(1))
        return self.objective.decode(outputs, self.temperature if temperature is None else temperature)
