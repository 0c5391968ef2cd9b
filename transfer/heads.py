"""Heads on frozen layers, one per layer, with one classifier per learning rate; and their file format."""

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
    """Heads on the features of several layers; the output for a layer is a list with one tensor per learning rate.

    Args:
        heads: heads by layer; a head has ``classifiers``, one per learning rate, and returns the list of their outputs.
        rates: learning rates of the classifiers.
    """

    def __init__(self, heads: Mapping[str, nn.Module], rates: Sequence[float]):
        super().__init__()
        self.layers, self.rates = tuple(heads), tuple(rates)
        self.probes = nn.ModuleList(heads.values())

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return {layer: head(features[layer]) for layer, head in zip(self.layers, self.probes, strict=True)}

    def select_rates(self, rates: Mapping[str, float | None]) -> "LayerHeads":
        """Return a copy with one classifier per layer.

        Args:
            rates: learning rate of the classifier to keep for each layer; None keeps the first.
        """
        selected = copy.deepcopy(self)
        for layer, head in zip(self.layers, selected.probes, strict=True):
            rate = rates[layer]
            head.classifiers = head.classifiers[0 if rate is None else self.rates.index(rate) :][:1]
        return selected

    def rate_factors(self, base: float) -> dict[str, float]:
        """Return the factor of the base learning rate for each parameter, by name."""
        return {
            f"probes.{i}.classifiers.{j}.{kind}": rate / base
            for i in range(len(self.layers))
            for j, rate in enumerate(self.rates)
            for kind in ("weight", "bias")
        }


@dataclass(frozen=True)
class Head:
    """Trained head of one frozen layer.

    Attributes:
        layer: name of the layer.
        tensors: state dict of the head.
        classes: class names of the outputs.
    """

    layer: str
    tensors: dict[str, Tensor]
    classes: list[str]


def save_heads(run: Path, heads: LayerHeads, classes: Sequence[str]) -> Path:
    """Write ``heads.safetensors``: the weights of the heads, with layer and class names."""
    with atomic_write(run / HEADS) as partial:
        metadata = {"layers": json.dumps(heads.layers), "classes": json.dumps(list(classes))}
        write_tensors(partial, heads.state_dict(), metadata)
    return run / HEADS


def load_head(run: FinishedRun, kind: str) -> Head:
    """Load the head with the highest metric ``LAYER/kind`` among the requested layers, as :func:`save_heads` wrote it.

    Args:
        run: finished run; its ``layer`` is a name or a pattern, or empty for all layers.
        kind: kind of metric, such as "top1".

    Raises:
        UserError: the file is missing or damaged, or has no matching layer.
    """
    if not (run.path / HEADS).is_file():
        raise UserError(f"no {HEADS} in {run.path}, which an earlier version wrote; run the protocol again")
    tensors, metadata = run.tensors(HEADS, ("layers", "classes"))
    layers, classes = metadata["layers"], metadata["classes"]
    matches = [run.layer] if run.layer in layers else fnmatch.filter(layers, run.layer or "*")
    if not matches:
        raise UserError(f"unknown layer {run.layer!r}; available: {', '.join(layers)}")
    layer = max(matches, key=lambda name: run.metrics.get(f"{name}/{kind}", 0.0))
    prefix = f"probes.{layers.index(layer)}."
    return Head(layer, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, classes)
