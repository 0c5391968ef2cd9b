"""Evaluator, which colours batches with every method and scores the results, all on the device."""

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
from crosschannel.evaluation.scores import auc_weights, colourfulness, error_levels, squared_error, to_8_bit


@dataclass
class Evaluator:
    """Colorization and scoring of batches.

    Args:
        config: config of the evaluation.
        methods: loaded colorization methods.
        interpretability: classifier for semantic interpretability; None if not requested.
        lpips: LPIPS net; None if not requested.
        device: device of all nets.
    """

    config: EvaluateConfig
    methods: list[ColorizationMethod]
    interpretability: Interpretability | None
    lpips: LPIPS | None
    device: torch.device

    def __post_init__(self) -> None:
        self.quantizer = ABQuantizer(neighbours=1).to(self.device)
        self.auc_weights = auc_weights(self.device)
        self.bin_weights: Tensor | None = None
        if self.config.prior != OWN:
            prior = load_prior(self.config.prior).check_lam(0).smoothed
            self.bin_weights = rebalancing_weights(prior, 0).to(self.device)

    def pictures(self, batch: PairBatch) -> Pictures:
        """Move a batch to the device, and compute its true ab."""
        images = batch.images.to(self.device, non_blocking=True)
        donors = None if batch.donors is None else batch.donors.to(self.device, non_blocking=True)
        return Pictures(images.float() / 255, rgb_to_lab(images)[:, 1:], donors)

    @staticmethod
    def lightness(pictures: Pictures) -> Tensor:
        """Return L of a batch, which all methods preserve."""
        return rgb_to_lightness(pictures.rgb)

    def coloured(self, lightness: Tensor, ab: Tensor) -> Tensor:
        """Convert lightness and predicted ab to RGB within the gamut, rounded to 8 bits."""
        lab = torch.cat((lightness, ab), 1)
        return to_8_bit(lab_to_rgb(fit_gamut(lab) if self.config.gamut == "map" else lab))

    @torch.inference_mode()
    def score(self, batch: PairBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Score a batch.

        Returns:
            columns with one row per image (see :func:`crosschannel.evaluation.metrics.metrics`), and pixel counts by
            true bin and error level, (313, 152), for every method.
        """
        if not len(batch):
            return {}, {}
        pictures = self.pictures(batch)
        lightness = self.lightness(pictures)
        bins = self.quantizer.encode(pictures.ab)[0][:, 0]
        rows: dict[str, Tensor] = {}
        level_counts: dict[str, Tensor] = {}
        for method in self.methods:
            name = method.method.name
            ab = method(pictures)
            levels = error_levels(ab, pictures.ab, bins)
            pixels, auc = levels.sum(2), levels.double() @ self.auc_weights
            rows["pixels"] = pixels.int()
            rows[f"{name}/auc"] = auc.float()
            if self.bin_weights is not None:
                rows["pixels_weighted"] = pixels.double() @ self.bin_weights
                rows[f"{name}/auc_weighted"] = auc @ self.bin_weights
            level_counts[name] = levels.sum(0)
            rgb = self.coloured(lightness, ab)
            rows[f"{name}/mse"] = squared_error(rgb, pictures.rgb)
            rows[f"{name}/colourfulness"] = colourfulness(rgb)
            if self.lpips is not None:
                rows[f"{name}/lpips"] = self.lpips(rgb, pictures.rgb)
            if self.interpretability is not None:
                rows[f"{name}/top1"] = self.interpretability.correct(rgb, batch.labels.to(self.device))
        return rows, level_counts
