"""What a batch of pictures is given to: every method colours it on the device, and all of that is scored there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosschannel.color import (
    ABQuantizer,
    fit_gamut,
    lab_to_rgb,
    load_prior,
    rebalancing_weights,
    rgb_to_lab,
    rgb_to_lightness,
)
from crosschannel.evaluation.config import OWN, EvaluateConfig
from crosschannel.evaluation.judges import LPIPS, Interpretability
from crosschannel.evaluation.methods import ColorizationMethod, PairBatch, Pictures
from crosschannel.evaluation.scores import auc_shares, colourfulness, error_levels, squared_error, to_8_bit


@dataclass
class Evaluator:
    """What a batch is given to.

    Args:
        config: its keys.
        painters: the methods.
        interpretability, lpips: where they are asked for.
        device: where everything runs.
    """

    config: EvaluateConfig
    methods: list[ColorizationMethod]
    interpretability: Interpretability | None
    lpips: LPIPS | None
    device: torch.device

    def __post_init__(self) -> None:
        self.quantizer = ABQuantizer(neighbours=1).to(self.device)
        self.shares = auc_shares(self.device)
        self.weights: Tensor | None = None
        if self.config.prior != OWN:
            prior = load_prior(self.config.prior).check_lam(0).smoothed
            self.weights = rebalancing_weights(prior, 0).to(self.device)

    def pictures(self, batch: PairBatch) -> Pictures:
        """A batch on the device."""
        images = batch.images.to(self.device, non_blocking=True)
        donors = None if batch.donors is None else batch.donors.to(self.device, non_blocking=True)
        return Pictures(images.float() / 255, rgb_to_lab(images)[:, 1:], donors)

    @staticmethod
    def lightness(pictures: Pictures) -> Tensor:
        """L of a batch, which every method keeps."""
        return rgb_to_lightness(pictures.rgb)

    def coloured(self, lightness: Tensor, ab: Tensor) -> Tensor:
        """RGB as a file has it: the picture's own lightness with some ab."""
        lab = torch.cat((lightness, ab), 1)
        return to_8_bit(lab_to_rgb(fit_gamut(lab) if self.config.gamut == "map" else lab))

    @torch.inference_mode()
    def score(self, batch: PairBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Columns of rows, a row an image; and by method how often each true bin had each error, (313, 152)."""
        if not len(batch):
            return {}, {}
        pictures = self.pictures(batch)
        lightness = self.lightness(pictures)
        bins = self.quantizer.encode(pictures.ab)[0][:, 0]
        rows: dict[str, Tensor] = {}
        curves: dict[str, Tensor] = {}
        for painter in self.methods:
            name = painter.method.name
            ab = painter(pictures)
            levels = error_levels(ab, pictures.ab, bins)
            pixels, within = levels.sum(2), levels.double() @ self.shares
            rows["pixels"] = pixels.int()
            rows[f"{name}/auc"] = within.float()
            if self.weights is not None:
                rows["pixels_weighted"] = pixels.double() @ self.weights
                rows[f"{name}/auc_weighted"] = within @ self.weights
            curves[name] = levels.sum(0)
            rgb = self.coloured(lightness, ab)
            rows[f"{name}/mse"] = squared_error(rgb, pictures.rgb)
            rows[f"{name}/colourfulness"] = colourfulness(rgb)
            if self.lpips is not None:
                rows[f"{name}/lpips"] = self.lpips(rgb, pictures.rgb)
            if self.interpretability is not None:
                rows[f"{name}/top1"] = self.interpretability.right(rgb, batch.labels.to(self.device))
        return rows, curves
