"""What a finished run says of images it has not seen, and the heads on frozen layers that runs keep for it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crosschannel import load_backbone
from crosschannel.data import MemoryImages, Stream, View
from crosschannel.data.decode import BrokenImage
from crosschannel.errors import UserError
from crosschannel.files import written_whole
from crosschannel.hub.sources import KINDS, input_files, parse_source
from crosschannel.models import Backbone
from crosschannel.runs.folder import RunFolder

HEADS = "heads.safetensors"


@dataclass
class Prediction:
    """What is said of an image.

    Attributes:
        scores: by class, 0..1: probabilities; of a mask the share of the pixels.
        pictures: of the image's own size, by what they are; the last one is to be shown.
        colours: RGB that stand for classes in them.
    """

    scores: dict[str, float]
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)


Predictor = Callable[[bytes], Prediction]  # of an encoded image; raises BrokenImage for one that cannot be read


@dataclass(frozen=True)
class Finished:
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


@dataclass(frozen=True)
class Head:
    """What a run learned on one frozen layer.

    Attributes:
        layer: its name.
        tensors: by name, of that head alone.
        classes: that it tells apart.
    """

    layer: str
    tensors: dict[str, Tensor]
    classes: list[str]


def save_heads(run: Path, heads: nn.Module, layers: Sequence[str], classes: Sequence[str]) -> Path:
    """Write ``heads.safetensors``: what a run learned on frozen layers, in order of the layers."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.state_dict().items()}
    with written_whole(run / HEADS) as part:
        save_file(tensors, part, {"layers": json.dumps(list(layers)), "classes": json.dumps(list(classes))})
    return run / HEADS


def load_head(run: Finished, prefix: str, kind: str) -> Head:
    """What :func:`save_heads` wrote of the layer asked for, else of the best by ``LAYER/kind``.

    Args:
        run: a finished one.
        prefix: of the heads' names; their places follow.
        kind: of figure.

    Raises:
        UserError: there is none, it is damaged, or no such layer.
    """
    if not (run.path / HEADS).is_file():
        raise UserError(f"no {HEADS} in {run.path}: an earlier version made it; run it again")
    tensors, told = run.tensors(HEADS, ("layers", "classes"))
    layers, classes = told["layers"], told["classes"]
    if run.layer and run.layer not in layers:
        raise UserError(f"layer {run.layer!r}: the run has {', '.join(layers)}")
    layer = run.layer or max(layers, key=lambda one: run.metrics.get(f"{one}/{kind}", 0.0))
    own = f"{prefix}.{layers.index(layer)}."
    return Head(layer, {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}, classes)
