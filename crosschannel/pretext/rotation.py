"""Rotation: predict the angle by which an image is rotated (Gidaris, Singh, Komodakis, "Unsupervised
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
    """Predict the rotation of an image: 0°, 90°, 180° or 270°. A batch contains every image at all four angles."""

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
        """Return sums over rotated images: count, cross-entropy, correct predictions."""
        logits = net(self.net_inputs(batch)).double()
        labels = rotation_labels(logits)
        loss = cross_entropy(logits, labels, reduction="sum")
        return torch.stack((loss.new_tensor(len(labels)), loss, (logits.argmax(1) == labels).sum().double()))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute ``loss`` and ``top1``."""
        count, loss, correct = sums.tolist()
        return {"loss": loss / count, "top1": correct / count}

    @torch.inference_mode()
    def pictures(self, net: nn.Module, batch: ImageBatch) -> np.ndarray:
        """Draw each image at one of the four angles, and rotated back by the predicted angle."""
        rotations = [index % _ROTATIONS for index in range(len(batch))]
        rotated = torch.stack([image.rot90(k, (1, 2)) for image, k in zip(batch.images, rotations, strict=True)])
        predicted = net(self.input.preprocess(rotated)).argmax(1).tolist()
        restored = torch.stack([image.rot90(-k, (1, 2)) for image, k in zip(rotated, predicted, strict=True)])
        return stack_rows(as_arrays(rotated), as_arrays(restored))


def rotate_all(x: Tensor) -> Tensor:
    """Rotate a batch (N, C, S, S) by 0°, 90°, 180° and 270° counter-clockwise and concatenate: (4N, C, S, S)."""
    return torch.cat([x.rot90(k, (2, 3)) for k in range(_ROTATIONS)])


def rotation_labels(logits: Tensor) -> Tensor:
    """Return the labels of a batch from :func:`rotate_all`, (4N,), given its logits."""
    return torch.arange(_ROTATIONS, device=logits.device).repeat_interleave(len(logits) // _ROTATIONS)
