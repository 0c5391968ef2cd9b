"""Fully convolutional network on any backbone (Long, Shelhamer and Darrell, CVPR 2015).

One or more layers are scored by 1×1 convolutions, initialised with zeros. The scores are added from coarse to fine, and
upsampled to the pixels of the image by fixed bilinear weights.
"""

import fnmatch
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.errors import UserError
from crosschannel.models import Backbone
from crosschannel.models.module_net import eval_mode
from transfer.finetuning import FineTuned
from transfer.interpolation import line_weights, resample, resampled_argmax, resized_positions

Upsampling = Literal["deconvolution", "bilinear"]


class Segmenter(FineTuned):
    """Fully convolutional segmentation network.

    On an AlexNet with fc6 and fc7, with a padding of 100, this is FCN-32s: scores are upsampled with the weights of a
    63×63 deconvolution of stride 32 whose output is cropped at offset 18. For other backbones, each score is placed at
    the pixel that its point of the feature map is centred on.

    Args:
        backbone: copy of a backbone to train.
        classes: number of classes.
        dropout: dropout probability after fc6 and fc7, in training mode.
        stride: output stride of the finest score map; 0: scores of the last layer only.
        skips: layers with finer scores; default: the last layer of each stride.
        pad: zero padding around the preprocessed image, including that of the first convolution; only for backbones
            with fc6.
        upsampling: scores beyond the outermost points of the map fade to zero ("deconvolution") or are constant
            ("bilinear").

    Shape:
        list of preprocessed images (N, C, H, W), grouped by size → list of scores (N, classes, H, W). All groups of a
        batch are passed in one call, so that every rank makes the same number of calls.

    Raises:
        UserError: there is no layer with this stride or name.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        dropout: float = 0.5,
        stride: int = 0,
        skips: Sequence[str] = (),
        pad: int = 100,
        upsampling: Upsampling = "deconvolution",
    ):
        layers = (last_map(backbone), *choose_skips(backbone, stride, skips))
        score = nn.ModuleList(nn.Conv2d(backbone.channels[layer], classes, 1) for layer in layers)
        super().__init__(backbone, score, dropout)
        self.layers, self.upsampling = layers, upsampling
        self.strides = [backbone.strides[layer] for layer in layers]
        self.pad = max(0, pad - _first_pad(backbone)) if "fc6" in backbone.layers else 0
        self.origins = [backbone.origin(layer) - self.pad for layer in layers]
        self.step = max(self.strides[0], *backbone.patch)
        # Without fc6, inputs are padded to multiples of the step, so only such sides are tried.
        self.min_side = _min_side(backbone, layers[0], 1 if "fc6" in backbone.layers else self.step)
        self.rounds_up = any(getattr(module, "ceil_mode", False) for module in backbone.modules())
        self.zero_scores()

    def zero_scores(self) -> None:
        """Set the weights and biases of the score layers to zero."""
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, groups: Sequence[Tensor]) -> list[Tensor]:
        return [self._logits(x) for x in groups]

    def labels(self, x: Tensor, height: int = 0, width: int = 0) -> Tensor:
        """Predict the class of every pixel.

        Args:
            x: (N, C, h, w) preprocessed images of one size.
            height, width: size of the images before they were resized; 0: they were not resized.

        Returns:
            (N, H, W) class indices at the original size.
        """
        scores = self._scores(x)
        positions = [
            resized_positions(length or side, side) for length, side in zip((height, width), x.shape[2:], strict=True)
        ]
        return resampled_argmax(scores, *self._weights(scores, len(self.layers) - 1, positions))

    def _logits(self, x: Tensor) -> Tensor:
        scores = self._scores(x)
        positions = [torch.arange(side) for side in x.shape[2:]]
        return resample(scores, *self._weights(scores, len(self.layers) - 1, positions))

    def _scores(self, x: Tensor) -> Tensor:
        """Return the scores of the finest layer, plus the upsampled scores of coarser layers: (N, K, h, w)."""
        has_fc = "fc6" in self.backbone.layers
        maps = self.backbone.features(
            self._pad_input(x), [self.backbone.trunk_layer if has_fc else self.layers[0], *self.layers[1:]]
        )
        if has_fc:
            maps[self.layers[0]] = self.backbone.fully_connected(maps[self.backbone.trunk_layer], self.dropout)
        scores: Tensor | None = None
        for level, (layer, score) in enumerate(zip(self.layers, self.score, strict=True)):
            finer = score(maps[layer])
            if scores is not None:
                positions = [self.origins[level] + self.strides[level] * torch.arange(side) for side in finer.shape[2:]]
                finer = finer.float() + resample(scores, *self._weights(scores, level - 1, positions))
            scores = finer
        return scores

    def _pad_input(self, x: Tensor) -> Tensor:
        """Pad images with zeros, up to the minimum size of the backbone.

        Unless the backbone's pooling layers round up, also pad to a multiple of the step, so that no pixels are lost.
        """
        sides = [length + 2 * self.pad for length in x.shape[2:]]
        after = [max(self.min_side - side, 0 if self.rounds_up else -side % self.step) for side in sides]
        return F.pad(x, (self.pad, self.pad + after[1], self.pad, self.pad + after[0]))

    def _weights(self, scores: Tensor, level: int, positions: Sequence[Tensor]) -> list[Tensor]:
        """Return the row and column weights that resample scores.

        Args:
            scores: (N, K, h, w) scores of a level.
            level: index of the scored layer.
            positions: row and column coordinates to resample to, in pixels of the image.
        """
        fade = self.strides[level] if self.upsampling == "deconvolution" else 0
        return [
            line_weights(self.origins[level] + self.strides[level] * torch.arange(points), axis_positions, fade)
            for points, axis_positions in zip(scores.shape[2:], positions, strict=True)
        ]


def last_map(backbone: Backbone) -> str:
    """Return the coarsest layer to score: fc7, or the last layer with more than one position."""
    if "fc6" in backbone.layers:
        return backbone.top_layer
    return backbone.map_layers[-1]


def choose_skips(backbone: Backbone, stride: int, skips: Sequence[str] = ()) -> list[str]:
    """Return the skip layers, whose scores are added to those of the last layer, from coarse to fine.

    Args:
        backbone: backbone of the layers.
        stride: output stride of the finest score map; 0: that of the finest layer in ``skips``, or no skips.
        skips: names or patterns of layers; default: the last layer of each stride.

    Raises:
        UserError: there is no layer with this stride or name.
    """
    strides = {layer: backbone.strides[layer] for layer in backbone.body_layers if layer in backbone.strides}
    coarsest = strides[last_map(backbone)]
    if skips:
        skips = [layer for name in skips for layer in fnmatch.filter(strides, name) or [name]]
        invalid = [layer for layer in skips if strides.get(layer, coarsest) >= coarsest]
        if invalid:
            finer = ", ".join(layer for layer, step in strides.items() if step < coarsest) or "none"
            raise UserError(f"skips {invalid[0]!r}: expected layers with a stride below {coarsest}; available: {finer}")
        by_stride = sorted(dict.fromkeys(skips), key=lambda layer: -strides[layer])
        if stride and stride != strides[by_stride[-1]]:
            raise UserError(
                f"stride {stride}: {by_stride[-1]}, the finest of skips, has stride {strides[by_stride[-1]]}; set only "
                "one of stride and skips"
            )
        return by_stride
    if stride and stride not in strides.values():
        available = ", ".join(str(step) for step in sorted(set(strides.values())) if step <= coarsest)
        raise UserError(
            f"stride {stride}: the layers of this backbone have strides {available}; 0 uses only the last one"
        )
    last = {step: layer for layer, step in strides.items()}  # the last layer of each stride
    return [last[step] for step in sorted(last, reverse=True) if stride and stride <= step < coarsest]


@torch.no_grad()
def _min_side(backbone: Backbone, layer: str, step: int) -> int:
    """Return the smallest side of a square input, a multiple of ``step``, for which a layer can be computed.

    Sides up to the backbone's input size are tried.
    """

    def is_valid(side: int) -> bool:
        x = torch.zeros(1, backbone.input.channels, side, side).to(next(backbone.parameters()))
        try:
            backbone.features(x, [layer])
        except Exception:  # users' modules may raise any exception
            return False
        return True

    sides = range(step, backbone.input.size, step)
    with eval_mode(backbone):
        return step * (1 + bisect_left(sides, True, key=is_valid))


def _first_pad(backbone: Backbone) -> int:
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    return int(first.padding[0]) if backbone.is_sequential and first is not None else 0
