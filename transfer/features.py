"""A frozen backbone → pooled features per layer, in one pass for all layers."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from crosschannel.errors import UserError, foreign
from crosschannel.hub import load_backbone
from crosschannel.models import Backbone, InputSpec, LayeredNet
from crosschannel.models.backbone import Provenance, at_rest
from crosschannel.models.wrapped import ModuleNet, TimmNet
from transfer.pooling import Pooling, pool


def as_backbone(backbone: Backbone | nn.Module | str, device: torch.device | None = None, data: str | None = None):
    """A backbone from a source string, or any ``nn.Module`` with named layers (taken for an RGB net at 224 px).

    Args:
        backbone: a source, a Backbone, or a module.
        device: where a source is loaded to; others stay where they are.
        data: images for the statistics of fresh nets.
    """
    if isinstance(backbone, str):
        return load_backbone(backbone, device=device or "cpu", data=data)
    if isinstance(backbone, Backbone):
        return backbone
    return Backbone(ModuleNet(backbone), InputSpec("rgb", 224, 256), provenance=Provenance(type(backbone).__name__))


def choose_layers(backbone: Backbone, wanted: str | Sequence[str]) -> tuple[str, ...]:
    """The layers that a user names, in the net's order; deeper ones than the net lists come last.

    Args:
        backbone: has them.
        wanted: "all", names, or patterns such as ``conv*``; in one string they are separated by commas.

    Raises:
        UserError: a name that fits no layer; the message lists those there are.
    """
    patterns = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    patterns = ["*" if pattern == "all" else pattern for pattern in patterns]
    deeper = []
    for pattern in dict.fromkeys(patterns):
        if not any(fnmatchcase(layer, pattern) for layer in backbone.layers):
            if not backbone.has_layer(pattern):
                raise UserError(f"no layer {pattern!r}; this backbone has {', '.join(backbone.layers)}")
            deeper.append(pattern)
    listed = (layer for layer in backbone.layers if any(fnmatchcase(layer, pattern) for pattern in patterns))
    return (*listed, *deeper)


class FrozenFeatures:
    """uint8 RGB crops → pooled features of some layers of a backbone, without gradients.

    Args:
        backbone: in eval mode; nothing past the last layer asked for is computed.
        layers: names.
        pooling: how maps become small.
        device: where the backbone is.
        size: side of the crops; default what the backbone was trained on.
    """

    def __init__(
        self, backbone: Backbone, layers: Sequence[str], pooling: Pooling, device: torch.device, size: int = 0
    ):
        self.backbone, self.layers, self.pooling, self.device = backbone, tuple(layers), pooling, device
        self.size = size or backbone.input.size
        self._is_ours = isinstance(backbone.net, LayeredNet | TimmNet)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features (N, C, g, g) float32 by layer.

        Args:
            images: (N, 3, S, S) uint8.

        Raises:
            UserError: a layer gives numbers that are not finite, or nothing at all.
        """
        if self._is_ours:
            return self._pooled(images)
        with foreign("the backbone's forward pass failed"):
            return self._pooled(images)

    def _pooled(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(images.to(self.device, non_blocking=True), self.layers)
        lacking = [layer for layer in self.layers if layer not in maps]
        if lacking:
            raise UserError(f"layer {lacking[0]!r} was not reached in this backbone's forward pass")
        for layer in self.layers:
            found = maps[layer]
            if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(images) or not found.numel():
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UserError(f"layer {layer!r} gives no map (N, C, h, w) for each of {len(images)} images: {shape}")
        pooled = {layer: pool(maps[layer].float(), layer, self.pooling) for layer in self.layers}
        finite = torch.stack([torch.isfinite(feature).all() for feature in pooled.values()]).tolist()
        if not all(finite):
            layer = self.layers[finite.index(False)]
            raise UserError(f"layer {layer!r} gives features that are not finite (NaN or infinite)")
        return pooled

    def sketch(self) -> list[str]:
        """Mean and deviation of every layer's features of one image of noise, in four digits: nets that are written
        otherwise give others, whatever they are called."""
        noise = torch.randint(256, (1, 3, self.size, self.size), generator=torch.Generator().manual_seed(0))
        with at_rest(self.backbone):
            found = self(noise.byte())
        return [f"{layer} {feature.mean():.4g} {feature.std():.4g}" for layer, feature in found.items()]

    @torch.no_grad()
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """(C, g, g) by layer, from one blank image.

        Raises:
            UserError: the backbone cannot take crops of that size.
        """
        blank = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
        with foreign(f"the backbone cannot take crops of {self.size} px"), at_rest(self.backbone):
            return {layer: tuple(feature.shape[1:]) for layer, feature in self._pooled(blank).items()}
