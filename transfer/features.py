"""Pooled features of a frozen backbone, for several layers in one forward pass."""

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
    """Replace a size or resize of 0 in a crop config by the backbone's values.

    Raises:
        UserError: the size is larger than the resize.
    """
    size = crop.size or input.size
    resize = crop.resize or max(size, round(size * input.resize / input.size))
    if size > resize:
        raise UserError(f"crop.size ({size}) must not be above crop.resize ({resize})")
    return replace(crop, size=size, resize=resize)


def centre_crop(input: InputSpec, size: int = 0) -> CentreCrop:
    """Return a centre crop for a backbone; a size of 0 is replaced by the backbone's input size."""
    crop = resolve_crop(CropConfig(size, 0), input)
    return CentreCrop(crop.size, crop.resize, interpolation_of(input))


def interpolation_of(input: InputSpec) -> str:
    """Return the closest match to a backbone's interpolation among torch's antialiased modes."""
    return input.interpolation if input.interpolation == "bilinear" else "bicubic"


def with_input_size(backbone: Backbone, size: int) -> Backbone:
    """Return the backbone or, for a ViT with another input size, a copy with interpolated position embeddings."""
    if size == backbone.input.size or not hasattr(backbone.net, "take_any_size"):
        return backbone
    resized = copy.deepcopy(backbone)
    resized.take_any_size()
    return resized


class FrozenFeatures:
    """Extractor of pooled features of uint8 RGB crops, without gradients.

    Args:
        backbone: backbone in eval mode; layers above the last of ``layers`` are not computed.
        layers: names of the layers.
        pooling: kind of pooling; see :func:`transfer.pooling.pool`.
        device: device of the backbone.
        size: side of the crops in pixels; 0: the backbone's input size.
    """

    def __init__(
        self, backbone: Backbone, layers: Sequence[str], pooling: Pooling | int, device: torch.device, size: int = 0
    ):
        self.backbone, self.layers, self.pooling, self.device = backbone, tuple(layers), pooling, device
        self.size = size or backbone.input.size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return features (N, C, g, g), float32, by layer.

        Args:
            images: (N, 3, S, S) uint8.

        Raises:
            UserError: the forward pass does not reach a layer, its output is not a feature map, or its features are not
                finite.
        """
        if self.backbone.runs_user_code:
            with wrap_external_errors("the backbone's forward pass failed"):
                return self._pooled_features(images)
        return self._pooled_features(images)

    def _pooled_features(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(images.to(self.device, non_blocking=True), self.layers)
        unreached = [layer for layer in self.layers if layer not in maps]
        if unreached:
            raise UserError(f"layer {unreached[0]!r} was not reached in this backbone's forward pass")
        for layer in self.layers:
            output = maps[layer]
            if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != len(images) or not output.numel():
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise UserError(
                    f"the output of layer {layer!r} for {len(images)} images must be a map (N, C, h, w), got {shape}"
                )
        pooled = {layer: pool(maps[layer].float(), layer, self.pooling) for layer in self.layers}
        finite = torch.stack([torch.isfinite(feature).all() for feature in pooled.values()]).tolist()
        if not all(finite):
            layer = self.layers[finite.index(False)]
            raise UserError(f"the features of layer {layer!r} are not finite (NaN or infinite)")
        return pooled

    def fingerprint(self) -> list[str]:
        """Return mean and standard deviation (4 digits) of each layer's features on a noise image.

        Part of the cache key, to detect changed implementations under the same name.
        """
        noise = torch.randint(256, (1, 3, self.size, self.size), generator=torch.Generator().manual_seed(0))
        with eval_mode(self.backbone):
            features = self(noise.byte())
        return [f"{layer} {feature.mean():.4g} {feature.std():.4g}" for layer, feature in features.items()]

    @torch.no_grad()
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape (C, g, g) of each layer's features, from a forward pass on a blank image.

        Raises:
            UserError: the backbone does not accept crops of this size.
        """
        blank = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
        with explain_size_errors(self.size), eval_mode(self.backbone):
            return {layer: tuple(feature.shape[1:]) for layer, feature in self._pooled_features(blank).items()}
