"""A fully convolutional net on any backbone (Long, Shelhamer, Darrell, CVPR 2015): scores of one or more layers, each a
1×1 convolution from zero, added from coarse to fine and brought to the image's own pixels by fixed bilinear weights.
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
from transfer.interpolation import greatest, line_weights, resample, squashed_places

Upsampling = Literal["deconvolution", "bilinear"]


class Segmenter(FineTuned):
    """A score for every class and pixel.

    On an AlexNet with fc6 and fc7, padded by 100, this is FCN-32s: the weights by which scores are upsampled are those
    of a 63×63 deconvolution of stride 32 whose output is cropped at 18. For other nets the same is done with the pixels
    that their maps' points are centred on.

    Args:
        backbone: a copy to be trained.
        classes: how many.
        dropout: after fc6 and fc7, in training mode.
        stride: of the finest scores; 0: of the last layer alone.
        skips: layers that finer scores come from; default the last one of each stride.
        pad: zeros around the preprocessed image where there is an fc6, what the first convolution pads counted in.
        upsampling: whether scores fade beyond the outermost points of the map ("deconvolution"), or go on.

    Shape:
        preprocessed images in groups of one size, (N, C, H, W) each → (N, classes, H, W) each. They are one call,
        whatever their number, so that all ranks make as many.

    Raises:
        UserError: no layer of that stride or name.
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
        # What is padded to whole steps anyway is only known to fit at whole steps.
        self.least = _least_side(backbone, layers[0], 1 if "fc6" in backbone.layers else self.step)
        self.rounds_up = any(getattr(module, "ceil_mode", False) for module in backbone.modules())
        self.zero_scores()

    def zero_scores(self) -> None:
        """Let the new layers score nothing."""
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, groups: Sequence[Tensor]) -> list[Tensor]:
        return [self._logits(x) for x in groups]

    def labels(self, x: Tensor, height: int = 0, width: int = 0) -> Tensor:
        """The class of every pixel, (N, H, W), of preprocessed images of one size (N, C, h, w).

        Args:
            x: the images.
            height, width: where they were resized from; 0: they were not.
        """
        scores = self._scores(x)
        places = [
            squashed_places(length or side, side) for length, side in zip((height, width), x.shape[2:], strict=True)
        ]
        return greatest(scores, *self._weights(scores, len(self.layers) - 1, places))

    def _logits(self, x: Tensor) -> Tensor:
        scores = self._scores(x)
        places = [torch.arange(side) for side in x.shape[2:]]
        return resample(scores, *self._weights(scores, len(self.layers) - 1, places))

    def _scores(self, x: Tensor) -> Tensor:
        """Of the finest layer, those of the coarser ones added: (N, K, h, w)."""
        has_fc = "fc6" in self.backbone.layers
        maps = self.backbone.features(
            self._padded(x), [self.backbone.trunk_layer if has_fc else self.layers[0], *self.layers[1:]]
        )
        if has_fc:
            maps[self.layers[0]] = self.backbone.fully_connected(maps[self.backbone.trunk_layer], self.dropout)
        scores: Tensor | None = None
        for number, (layer, score) in enumerate(zip(self.layers, self.score, strict=True)):
            own = score(maps[layer])
            if scores is not None:
                places = [self.origins[number] + self.strides[number] * torch.arange(side) for side in own.shape[2:]]
                own = own.float() + resample(scores, *self._weights(scores, number - 1, places))
            scores = own
        return scores

    def _padded(self, x: Tensor) -> Tensor:
        """Zeros around it and, unless the net's pools round up, after it: up to whole steps of the last map, and up to
        what the net takes at all."""
        sides = [length + 2 * self.pad for length in x.shape[2:]]
        after = [max(self.least - side, 0 if self.rounds_up else -side % self.step) for side in sides]
        return F.pad(x, (self.pad, self.pad + after[1], self.pad, self.pad + after[0]))

    def _weights(self, scores: Tensor, level: int, places: Sequence[Tensor]) -> list[Tensor]:
        """Row and column weights that bring scores of a level to places, in pixels of the image."""
        fade = self.strides[level] if self.upsampling == "deconvolution" else 0
        return [
            line_weights(self.origins[level] + self.strides[level] * torch.arange(points), where, fade)
            for points, where in zip(scores.shape[2:], places, strict=True)
        ]


def last_map(backbone: Backbone) -> str:
    """The layer that is scored first: fc7, else the last one that has more than one position."""
    if "fc6" in backbone.layers:
        return backbone.top_layer
    return backbone.map_layers[-1]


def choose_skips(backbone: Backbone, stride: int, skips: Sequence[str] = ()) -> list[str]:
    """The layers whose scores are added to those of the last one, from coarse to fine.

    Raises:
        UserError: no layer of that stride or name.
    """
    strides = {layer: backbone.strides[layer] for layer in backbone.body_layers if layer in backbone.strides}
    coarsest = strides[last_map(backbone)]
    if skips:
        skips = [layer for name in skips for layer in fnmatch.filter(strides, name) or [name]]
        lacking = [layer for layer in skips if strides.get(layer, coarsest) >= coarsest]
        if lacking:
            finer = ", ".join(layer for layer, step in strides.items() if step < coarsest) or "none"
            raise UserError(f"skips {lacking[0]!r}: give layers of a stride below {coarsest}; there are {finer}")
        found = sorted(dict.fromkeys(skips), key=lambda layer: -strides[layer])
        if stride and stride != strides[found[-1]]:
            raise UserError(
                f"stride {stride}: {found[-1]}, the finest of skips, has {strides[found[-1]]}; leave one out"
            )
        return found
    if stride and stride not in strides.values():
        known = ", ".join(str(step) for step in sorted(set(strides.values())) if step <= coarsest)
        raise UserError(f"stride {stride}: this backbone has layers of {known}; 0 takes the last one alone")
    last = {step: layer for layer, step in strides.items()}  # of each stride the last one
    return [last[step] for step in sorted(last, reverse=True) if stride and stride <= step < coarsest]


@torch.no_grad()
def _least_side(backbone: Backbone, layer: str, step: int) -> int:
    """The least side of a square, a multiple of ``step``, of which a net makes a layer's map; its own size at most."""

    def fits(side: int) -> bool:
        x = torch.zeros(1, backbone.input.channels, side, side).to(next(backbone.parameters()))
        try:
            backbone.features(x, [layer])
        except Exception:  # a user's module may raise anything
            return False
        return True

    sides = range(step, backbone.input.size, step)
    with eval_mode(backbone):
        return step * (1 + bisect_left(sides, True, key=fits))


def _first_pad(backbone: Backbone) -> int:
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    return int(first.padding[0]) if backbone.is_sequential and first is not None else 0
