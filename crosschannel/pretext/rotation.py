"""Rotation: predict by which multiple of 90° an image is rotated (Gidaris, Singh, Komodakis, "Unsupervised
Representation Learning by Predicting Image Rotations", ICLR 2018).
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crosschannel.config.training import CropConfig
from crosschannel.data import ImageBatch
from crosschannel.models import InputSpec, NetSpec
from crosschannel.pretext.config import RotationConfig
from crosschannel.pretext.labels import ClassificationNet, build_classifier
from crosschannel.pretext.task import Pretext, PrimaryMetric, as_arrays, stack_rows

_ROTATIONS = 4


class Rotation(Pretext):
    """RGB, rotated by 0°, 90°, 180° and 270° → which of the four; a batch has all four of each image."""

    name = "rotation"
    needs_fc: ClassVar[bool] = True
    rows: ClassVar[tuple[str, ...]] = ("input", "rotated back as predicted")
    primary_metric = PrimaryMetric("top1", "top-1 accuracy (chance: 0.25)", 1 / _ROTATIONS, "chance")
    score_length = 3

    @staticmethod
    def input_of(config: RotationConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("rgb", crop.size, crop.resize)

    @staticmethod
    def build(config: RotationConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> ClassificationNet:
        return build_classifier(spec, size, _ROTATIONS, config.dropout)

    def net_inputs(self, batch: ImageBatch) -> Tensor:
        return rotate_all(self.input.preprocess(batch.images))

    def losses(self, net: nn.Module, batch: ImageBatch, phase: int = 0) -> tuple[Tensor, Tensor]:
        logits = net(self.net_inputs(batch)).float()
        return cross_entropy(logits, rotation_labels(logits), reduction="sum"), logits.new_full((), len(logits))

    @torch.no_grad()
    def scores(self, net: nn.Module, batch: ImageBatch) -> Tensor:
        """Number of rotated images, cross-entropy, number correct."""
        logits = net(self.net_inputs(batch)).double()
        turns = rotation_labels(logits)
        loss = cross_entropy(logits, turns, reduction="sum")
        return torch.stack((loss.new_tensor(len(turns)), loss, (logits.argmax(1) == turns).sum().double()))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """``loss`` and ``top1``."""
        count, loss, right = sums.tolist()
        return {"loss": loss / count, "top1": right / count}

    @torch.inference_mode()
    def pictures(self, net: nn.Module, batch: ImageBatch) -> np.ndarray:
        """Each image at one of the four rotations, and rotated back by the predicted angle."""
        turns = [number % _ROTATIONS for number in range(len(batch))]
        seen = torch.stack([image.rot90(turn, (1, 2)) for image, turn in zip(batch.images, turns, strict=True)])
        predicted = net(self.input.preprocess(seen)).argmax(1).tolist()
        back = torch.stack([image.rot90(-turn, (1, 2)) for image, turn in zip(seen, predicted, strict=True)])
        return stack_rows(as_arrays(seen), as_arrays(back))


def rotate_all(x: Tensor) -> Tensor:
    """(N, C, S, S) → (4N, C, S, S): the batch at 0°, 90°, 180° and 270° counter-clockwise, concatenated."""
    return torch.cat([x.rot90(turn, (2, 3)) for turn in range(_ROTATIONS)])


def rotation_labels(logits: Tensor) -> Tensor:
    """Labels for the logits of :func:`rotate_all`, (4N,)."""
    return torch.arange(_ROTATIONS, device=logits.device).repeat_interleave(len(logits) // _ROTATIONS)
