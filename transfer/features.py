"""A frozen backbone → pooled features per layer, in one pass for all layers."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crosschannel.config.training import CropConfig
from crosschannel.data import CentreCrop
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.models import Backbone, InputSpec
from crosschannel.models.backbone import explain_size_errors
from crosschannel.models.module_net import eval_mode
from transfer.config import Pooling
from transfer.pooling import pool


def resolve_crop(crop: CropConfig, input: InputSpec) -> CropConfig:
    """The crops of a config; a size or resize of 0 is what the backbone was trained on."""
    size = crop.size or input.size
    resize = crop.resize or max(size, round(size * input.resize / input.size))
    if size > resize:
        raise UserError(f"crop.size ({size}) must not be above crop.resize ({resize})")
    return replace(crop, size=size, resize=resize)


def centre_crop(input: InputSpec, size: int = 0) -> CentreCrop:
    """The centre crop that a backbone is given; a size of 0 is what it was trained on."""
    crop = resolve_crop(CropConfig(size, 0), input)
    return CentreCrop(crop.size, crop.resize, interpolation_of(input))


def interpolation_of(input: InputSpec) -> str:
    """The nearest thing to a backbone's interpolation that torch has with antialiasing."""
    return input.interpolation if input.interpolation == "bilinear" else "bicubic"


def with_input_size(backbone: Backbone, size: int) -> Backbone:
    """A backbone that takes squares of a size: itself, or of a ViT a copy that resizes its positions."""
    if size == backbone.input.size or not hasattr(backbone.net, "take_any_size"):
        return backbone
    resized = copy.deepcopy(backbone)
    resized.take_any_size()
    return resized


class FrozenFeatures:
    """uint8 RGB crops → pooled features of some layers of a backbone, without gradients.

    Args:
        backbone: in eval mode; nothing past the last layer asked for is computed.
        layers: names.
        pooling: how maps become small, see :func:`transfer.pooling.pool`.
        device: where the backbone is.
        size: side of the crops; default what the backbone was trained on.
    """

    def __init__(
        self, backbone: Backbone, layers: Sequence[str], pooling: Pooling | int, device: torch.device, size: int = 0
    ):
        self.backbone, self.layers, self.pooling, self.device = backbone, tuple(layers), pooling, device
        self.size = size or backbone.input.size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features (N, C, g, g) float32 by layer.

        Args:
            images: (N, 3, S, S) uint8.

        Raises:
            UserError: a layer gives numbers that are not finite, or nothing at all.
        """
        if self.backbone.runs_user_code:
            with wrap_external_errors("the backbone's forward pass failed"):
                return self._pooled(images)
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

    def fingerprint(self) -> list[str]:
        """Mean and deviation of every layer's features of one image of noise, in four digits: nets that are written
        otherwise give others, whatever they are called."""
        noise = torch.randint(256, (1, 3, self.size, self.size), generator=torch.Generator().manual_seed(0))
        with eval_mode(self.backbone):
            found = self(noise.byte())
        return [f"{layer} {feature.mean():.4g} {feature.std():.4g}" for layer, feature in found.items()]

    @torch.no_grad()
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """(C, g, g) by layer, from one blank image.

        Raises:
            UserError: the backbone cannot take crops of that size.
        """
        blank = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
        with explain_size_errors(self.size), eval_mode(self.backbone):
            return {layer: tuple(feature.shape[1:]) for layer, feature in self._pooled(blank).items()}
