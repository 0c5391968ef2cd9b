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
from crosschannel.hub.sources import parse_source
from crosschannel.models import Backbone

HEADS = "heads.safetensors"


@dataclass
class Prediction:
    """What is said of an image.

    Attributes:
        scores: by class, 0..1; empty where it is not scored as a whole.
        pictures: of the image's own size, by what they are.
    """

    scores: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)


Predictor = Callable[[bytes], Prediction]  # of an encoded image; raises BrokenImage for one that cannot be read


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


def choose_layer(layers: Sequence[str], metrics: Mapping[str, float], kind: str, wanted: str) -> str:
    """The layer whose head is used: the one asked for, else the best by ``LAYER/kind``.

    Raises:
        UserError: no such layer.
    """
    if wanted and wanted not in layers:
        raise UserError(f"layer {wanted!r}: the run has {', '.join(layers)}")
    return wanted or max(layers, key=lambda layer: metrics.get(f"{layer}/{kind}", 0.0))


def save_heads(run: Path, heads: nn.Module, layers: Sequence[str], classes: Sequence[str]) -> Path:
    """Write ``heads.safetensors``: what a run learned on frozen layers, in order of the layers."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.state_dict().items()}
    with written_whole(run / HEADS) as part:
        save_file(tensors, part, {"layers": json.dumps(list(layers)), "classes": json.dumps(list(classes))})
    return run / HEADS


def load_heads(run: Path) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """What :func:`save_heads` wrote: tensors, layers, classes.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = run / HEADS
    if not path.is_file():
        raise UserError(f"no {HEADS} in {run}: it has not finished, or an earlier version made it; run it again")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(told["layers"]), json.loads(told["classes"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def measured_backbone(config: Any, open_data: Callable[[Any, Any], Any], device: torch.device) -> Backbone:
    """The backbone that a run measured, loaded again; the images are opened where a fresh net's statistics are theirs.

    Raises:
        UserError: it, or they, cannot be had any more.
    """
    is_fresh = parse_source(config.backbone).kind in ("random", "gaussian", "kmeans")
    data = open_data(config.data, config).train if is_fresh else None
    return load_backbone(config.backbone, device=device, data=data)
