"""What is trained on frozen layers: a head a layer, each with a classifier a learning rate; and its file."""

import copy
import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError
from crosschannel.files import atomic_write
from crosschannel.hub.files import write_tensors
from transfer.prediction import FinishedRun

HEADS = "heads.safetensors"


class LayerHeads(nn.Module):
    """Features by layer → outputs by layer, a list of one a learning rate.

    Args:
        heads: by layer; each has ``classifiers``, one a learning rate, and gives the outputs of each.
        rates: of learning.
    """

    def __init__(self, heads: Mapping[str, nn.Module], rates: Sequence[float]):
        super().__init__()
        self.layers, self.rates = tuple(heads), tuple(rates)
        self.probes = nn.ModuleList(heads.values())

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return {layer: head(features[layer]) for layer, head in zip(self.layers, self.probes, strict=True)}

    def chosen(self, rates: Mapping[str, float | None]) -> "LayerHeads":
        """A copy with one classifier a layer: that of a learning rate, or for None the only one."""
        kept = copy.deepcopy(self)
        for layer, head in zip(self.layers, kept.probes, strict=True):
            rate = rates[layer]
            head.classifiers = head.classifiers[0 if rate is None else self.rates.index(rate) :][:1]
        return kept

    def rate_factors(self, base: float) -> dict[str, float]:
        """Factors of the base learning rate by parameter name."""
        return {
            f"probes.{i}.classifiers.{j}.{kind}": rate / base
            for i in range(len(self.layers))
            for j, rate in enumerate(self.rates)
            for kind in ("weight", "bias")
        }


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


def save_heads(run: Path, heads: LayerHeads, classes: Sequence[str]) -> Path:
    """Write ``heads.safetensors``: what a run learned on frozen layers."""
    with atomic_write(run / HEADS) as part:
        metadata = {"layers": json.dumps(heads.layers), "classes": json.dumps(list(classes))}
        write_tensors(part, heads.state_dict(), metadata)
    return run / HEADS


def load_head(run: FinishedRun, kind: str) -> Head:
    """Load a head that :func:`save_heads` wrote: of the requested layers, the one with the best ``LAYER/kind``.

    Args:
        run: a finished one.
        kind: of figure.

    Raises:
        UserError: there is none, it is damaged, or no such layer.
    """
    if not (run.path / HEADS).is_file():
        raise UserError(f"no {HEADS} in {run.path}: an earlier version made it; run it again")
    tensors, told = run.tensors(HEADS, ("layers", "classes"))
    layers, classes = told["layers"], told["classes"]
    matches = [run.layer] if run.layer in layers else fnmatch.filter(layers, run.layer or "*")
    if not matches:
        raise UserError(f"layer {run.layer!r}: the run has {', '.join(layers)}")
    layer = max(matches, key=lambda name: run.metrics.get(f"{name}/{kind}", 0.0))
    own = f"probes.{layers.index(layer)}."
    return Head(layer, {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}, classes)
