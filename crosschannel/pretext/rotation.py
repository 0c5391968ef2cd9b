"""Rotation: by how many quarter turns a picture is turned (Gidaris, Singh, Komodakis, "Unsupervised Representation
Learning by Predicting Image Rotations", ICLR 2018).
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crosschannel.data import ImageBatch
from crosschannel.models import InputSpec, NetSpec
from crosschannel.pretext.config import RotationConfig
from crosschannel.pretext.labels import Classifier, build_classifier
from crosschannel.pretext.task import Headline, Pretext, as_arrays, row_of_pictures
from crosschannel.runs.config import CropConfig

_TURNS = 4


class Rotation(Pretext):
    """RGB, turned by 0, 90, 180 and 270° → which of the four; all four of each image are in a batch."""

    name = "rotation"
    uses_fc: ClassVar[bool] = True
    rows: ClassVar[tuple[str, ...]] = ("input", "turned back by the prediction")
    headline = Headline("top1", "of the rotations are right (chance: 0.25)", 1 / _TURNS, "chance")
    score_length = 3

    @staticmethod
    def input_of(config: RotationConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("rgb", crop.size, crop.resize)

    @staticmethod
    def build(config: RotationConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> Classifier:
        return build_classifier(spec, size, _TURNS, config.dropout)

    def net_inputs(self, batch: ImageBatch) -> Tensor:
        return all_turns(self.input.preprocess(batch.images))

    def losses(self, net: nn.Module, batch: ImageBatch, phase: int = 0) -> tuple[Tensor, Tensor]:
        logits = net(self.net_inputs(batch)).float()
        return cross_entropy(logits, turns_of(logits), reduction="sum"), logits.new_full((), len(logits))

    @torch.no_grad()
    def scores(self, net: nn.Module, batch: ImageBatch) -> Tensor:
        """Rotated images, cross-entropy, how many are right."""
        logits = net(self.net_inputs(batch)).double()
        turns = turns_of(logits)
        loss = cross_entropy(logits, turns, reduction="sum")
        return torch.stack((loss.new_tensor(len(turns)), loss, (logits.argmax(1) == turns).sum().double()))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """``loss`` and ``top1``."""
        count, loss, right = sums.tolist()
        return {"loss": loss / count, "top1": right / count}

    @torch.inference_mode()
    def pictures(self, net: nn.Module, batch: ImageBatch) -> np.ndarray:
        """Each image at one of the four rotations, and turned back by what is predicted of it."""
        turns = [number % _TURNS for number in range(len(batch))]
        seen = torch.stack([image.rot90(turn, (1, 2)) for image, turn in zip(batch.images, turns, strict=True)])
        predicted = net(self.input.preprocess(seen)).argmax(1).tolist()
        back = torch.stack([image.rot90(-turn, (1, 2)) for image, turn in zip(seen, predicted, strict=True)])
        return row_of_pictures(as_arrays(seen), as_arrays(back))


def all_turns(x: Tensor) -> Tensor:
    """(N, C, S, S) → (4N, C, S, S): all images as they are, then all by 90° counter-clockwise, and so on."""
    return torch.cat([x.rot90(turn, (2, 3)) for turn in range(_TURNS)])


def turns_of(logits: Tensor) -> Tensor:
    """The quarter turns of a batch of :func:`all_turns`, (4N,)."""
    return torch.arange(_TURNS, device=logits.device).repeat_interleave(len(logits) // _TURNS)
