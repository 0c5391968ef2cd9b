"""Predictions of finished runs for new images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crosschannel import load_backbone
from crosschannel.data import MemoryImages, Stream, View
from crosschannel.data.decode import BrokenImage
from crosschannel.errors import UserError
from crosschannel.hub.sources import KINDS, input_files, parse_source
from crosschannel.models import Backbone
from crosschannel.runs.folder import RunFolder


@dataclass
class Prediction:
    """Prediction for one image.

    Attributes:
        scores: score per class in [0, 1]: a probability, or a fraction of the mask's pixels; empty without classes.
        pictures: output pictures by kind, such as "mask", in the size of the image; contact sheets show the last one.
        colours: RGB colours of the classes in the pictures.
        boxes: detections (class, score, x₁, y₁, x₂, y₂) in descending order of score, in 0-based pixels with exclusive
            ends; None if the run is not a detector.
    """

    scores: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    boxes: list[tuple[str, float, float, float, float, float]] | None = None


Predictor = Callable[[bytes], Prediction]  # encoded image → prediction; raises BrokenImage if it cannot be decoded


@dataclass(frozen=True)
class FinishedRun:
    """A finished run to predict with.

    Attributes:
        path: run folder.
        config: config of the run.
        metrics: metrics of the run.
        device: device for predictions.
        layer: name or pattern of the layer, for runs on frozen layers; empty: the layer with the best metric.
        size: short side to which segmentation resizes larger pictures, in pixels; 0: no resizing.
        backbone: measured backbone, if it cannot be loaded from its source.
    """

    path: Path
    config: Any
    metrics: Mapping[str, float]
    device: torch.device
    layer: str = ""
    size: int = 0
    backbone: Backbone | None = None

    def reject_layer(self) -> None:
        """Raise a UserError if a layer was requested; for runs with a single output."""
        if self.layer:
            raise UserError(
                f"layer {self.layer!r}: {self.path} has only one output; --layer is for runs on frozen layers"
            )

    def tensors(
        self, name: str, keys: Sequence[str], optional: Sequence[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Load a weights file of the run folder.

        Args:
            name: file name.
            keys: required metadata keys; their values are JSON.
            optional: optional metadata keys.

        Returns:
            tensors by name, and the decoded metadata.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / name
        try:
            with safe_open(path, "pt") as file:
                raw_metadata = file.metadata() or {}
                missing = [key for key in keys if key not in raw_metadata]
                if missing:
                    raise ValueError(f"its metadata has no {missing[0]!r}")
                metadata = {key: json.loads(raw_metadata[key]) for key in (*keys, *optional) if key in raw_metadata}
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}") from None

    def load_backbone(self, open_data: Callable[[Any, Any], Any]) -> Backbone:
        """Load the backbone that a run on frozen layers measured.

        Args:
            open_data: (``--data``, config) → split; called only if the source computes statistics from the training
                images.

        Raises:
            UserError: the backbone or the images are not available, or input files have changed since the run.
        """
        if self.backbone is not None:
            return self.backbone
        self._check_unchanged()
        source, data = parse_source(self.config.backbone), None
        if "data" in KINDS[source.kind].options - source.options.keys():  # needs images, but does not specify any
            data = open_data(self.config.data, self.config).train
        return load_backbone(self.config.backbone, device=self.device, data=data)

    def _check_unchanged(self) -> None:
        """Raise a UserError if an input file has changed since the start of the run."""
        with RunFolder(self.path, self.config.protocol, hold=False) as run:
            run.check_files(input_files(self.config))


def load_views(data: bytes, view: View) -> Any:
    """Return the batch of all views of an encoded image, as in an evaluation.

    Raises:
        BrokenImage: the image cannot be decoded.
    """
    stream = Stream(MemoryImages(["the image"], [-1], [data]), view)
    batch = stream.collate(stream.__getitems__(list(range(view.views))))
    for _, reason in batch.broken:
        raise BrokenImage(reason)
    return batch


def class_scores(probabilities: Tensor, classes: Sequence[str]) -> Prediction:
    """Convert the probabilities (K,) of K classes to a prediction."""
    return Prediction(dict(zip(classes, probabilities.tolist(), strict=True)))
