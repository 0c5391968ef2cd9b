"""What a finished run says of images it has not seen."""

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
    """A prediction for an image.

    Attributes:
        scores: score per class in 0..1: a probability, or the fraction of pixels in a mask; empty without classes.
        pictures: of the image's own size, by what they are; the last one is to be shown.
        colours: RGB that stand for classes in them.
        boxes: (class, score, x₁, y₁, x₂, y₂) of what is found, in pixels from 0, the ends outside; the best first. None
            of what finds no boxes.
    """

    scores: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    boxes: list[tuple[str, float, float, float, float, float]] | None = None


Predictor = Callable[[bytes], Prediction]  # of an encoded image; raises BrokenImage for one that cannot be read


@dataclass(frozen=True)
class FinishedRun:
    """A finished run that is to predict.

    Attributes:
        path: its folder.
        config: its keys.
        metrics: its figures.
        device: where to compute.
        layer: of a run on frozen layers; empty: its best one.
        size: short side at which larger pictures are looked at, where their masks are wanted; 0: their own.
        backbone: that it measured, where it cannot be loaded by its source.
    """

    path: Path
    config: Any
    metrics: Mapping[str, float]
    device: torch.device
    layer: str = ""
    size: int = 0
    backbone: Backbone | None = None

    def refuse_layer(self) -> None:
        """Raise a UserError for a layer that was asked of a run which has one output."""
        if self.layer:
            raise UserError(f"layer {self.layer!r}: {self.path} has one output; layers are for runs on frozen layers")

    def tensors(
        self, name: str, keys: Sequence[str], optional: Sequence[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file of weights in the run's folder holds.

        Args:
            name: of the file.
            keys: of its metadata, each JSON.
            optional: more of them, which it may lack.

        Returns:
            tensors by name, and the metadata asked for.

        Raises:
            UserError: it is damaged.
        """
        path = self.path / name
        try:
            with safe_open(path, "pt") as file:
                texts = file.metadata() or {}
                lacking = [key for key in keys if key not in texts]
                if lacking:
                    raise ValueError(f"it does not say {lacking[0]!r}")
                told = {key: json.loads(texts[key]) for key in (*keys, *optional) if key in texts}
                return {one: file.get_tensor(one) for one in file.keys()}, told  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}") from None

    def measured(self, open_data: Callable[[Any, Any], Any]) -> Backbone:
        """The backbone that a run on frozen layers measured; the images are opened where a fresh net's statistics are
        theirs.

        Raises:
            UserError: it, or they, cannot be had any more, or it is not what it was.
        """
        if self.backbone is not None:
            return self.backbone
        self._check_unchanged()
        source, data = parse_source(self.config.backbone), None
        if "data" in KINDS[source.kind].options - source.options.keys():  # it looks at images, and names none
            data = open_data(self.config.data, self.config).train
        return load_backbone(self.config.backbone, device=self.device, data=data)

    def _check_unchanged(self) -> None:
        """Raise a UserError for files that have changed since the run was begun."""
        with RunFolder(self.path, self.config.protocol, hold=False) as run:
            run.check_files(input_files(self.config))


def views_of(data: bytes, view: View) -> Any:
    """A batch of all views of an encoded image, as an evaluation makes them.

    Raises:
        BrokenImage: it cannot be read.
    """
    stream = Stream(MemoryImages(["the image"], [-1], [data]), view)
    batch = stream.collate(stream.__getitems__(list(range(view.views))))
    for _, reason in batch.broken:
        raise BrokenImage(reason)
    return batch


def scores_of(probabilities: Tensor, classes: Sequence[str]) -> Prediction:
    """Probabilities (K,) of K classes as a prediction."""
    return Prediction(dict(zip(classes, probabilities.tolist(), strict=True)))
