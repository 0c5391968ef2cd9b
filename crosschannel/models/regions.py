"""Regions of images in a backbone: from which layer boxes are pooled, where on its map, and what stands on top."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision import ops

from crosschannel.errors import UserError
from crosschannel.models.backbone import Backbone
from crosschannel.models.layers import dense
from crosschannel.models.nets import family, find_spec

Head = Literal["auto", "fc", "c4", "mlp"]
Pooling = Literal["max", "align"]
BOX_STDS = (0.1, 0.1, 0.2, 0.2)  # by which R-CNNs divide what moves boxes to objects
_COARSEST = 16  # input pixels per step of a map that boxes are pooled from, where there is any such


@dataclass(frozen=True)
class RegionPlan:
    """How the regions of a backbone are looked at.

    Attributes:
        layer: whose map they are pooled from.
        head: what stands on the pooled map: "fc" (the backbone's fc6 and fc7), "c4" (its last stage, then the mean over
            positions) or "mlp" (nothing of the backbone).
        parts: the layers of the head, of the backbone.
        channels: of what the head gives; for "mlp" of the flattened pooled map.
        resolution: side of the pooled map.
        stride: input pixels per step of the map.
        origin: the pixel that the map's first point is centred on.
        pooling: "max" (Fast R-CNN's, with rounded ends) or "align" (RoIAlign, without).
        aligned: take the map's points where they are centred; False: as if the first one's cell began at the image's
            corner, as detectron2 has it.
        step: images are padded to multiples of it; 1 for nets that lose nothing at the border.
    """

    layer: str
    head: Literal["fc", "c4", "mlp"]
    parts: tuple[str, ...]
    channels: int
    resolution: int
    stride: int
    origin: float
    pooling: Pooling
    aligned: bool
    step: int

    @property
    def top(self) -> str:
        """The last layer that anything depends on."""
        return self.parts[-1] if self.parts else self.layer


def plan_regions(
    backbone: Backbone,
    layer: str = "",
    head: Head = "auto",
    resolution: int = 0,
    pooling: Pooling = "max",
    aligned: bool = True,
) -> RegionPlan:
    """How the regions of a backbone are looked at.

    Args:
        backbone: an AlexNet or a VGG with fc6 and fc7, a ResNet, or any other with maps.
        layer: default the last convolution below the last pool of nets with fc6, the stage below the last one of
            ResNets, and of others the last layer of a stride of 16 or less.
        head: "auto" takes fc6 and fc7 where they are, the last stage of ResNets, else "mlp".
        resolution: 0 takes what fc6 covers; 14 for "c4" and 7 for "mlp".
        pooling, aligned: see :class:`RegionPlan`.

    Raises:
        UserError: no such layer, or a head that the backbone does not have.
    """
    stage = _last_stage(backbone)
    if head == "auto":
        head = "fc" if "fc6" in backbone.layers else "c4" if stage else "mlp"
    if head == "fc":
        if "fc6" not in backbone.layers:
            raise UserError("head fc: this backbone has no fc6; give c4, mlp or auto")
        parts = tuple(name for name in ("fc6", "fc7") if name in backbone.layers)
        below, covers = _before(backbone, backbone.trunk_layer), backbone.get_module("fc6").conv.kernel_size[0]
        if resolution not in (0, covers):
            raise UserError(f"resolution {resolution}: fc6 of this backbone covers {covers} × {covers}")
        resolution = covers
    elif head == "c4":
        if not stage:
            raise UserError("head c4: only ResNets have it; give mlp or auto")
        parts, below, resolution = (stage,), _before(backbone, stage), resolution or 14
    else:
        parts, below, resolution = (), _last_fine(backbone), resolution or 7
    layer = backbone.find_layer(layer) if layer else below
    if head != "mlp" and layer != below:
        raise UserError(f"layer {layer}: the head {head} stands on {below}; leave one of both out, or give head mlp")
    channels = backbone.channels[parts[-1]] if parts else backbone.width(layer) * resolution**2
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    patches = backbone.patch != (1, 1) or (first is not None and first.kernel_size == first.stride)
    is_listed = layer in backbone.layers
    through = backbone.layers[: backbone.layers.index(layer) + 1] if is_listed else ()
    strides = [backbone.strides[name] for name in backbone.map_layers if name in through] or [backbone.stride(layer)]
    return RegionPlan(
        layer,
        head,
        parts,
        channels,
        resolution,
        backbone.stride(layer),
        backbone.origin(layer),
        pooling,
        aligned,
        math.lcm(*backbone.patch, *strides) if patches else 1,
    )


def for_regions(backbone: Backbone, geometry: Literal["padded", "probe"]) -> Backbone:
    """The same backbone, in place, for images of any size: an AlexNet with fc6 as the transfer protocols have it, and
    its trunk padded onto the pixel grid or not; a ViT whose positions are resized."""
    backbone.take_any_size()
    spec = find_spec(backbone.net)
    if spec is not None and family(spec.name).has_option("geometry") and spec.options.fc:
        backbone.net.set_geometry("probe")
        if geometry == "padded":
            backbone.net.pad_trunk()
    return backbone


def align_boxes(boxes: Tensor, plan: RegionPlan) -> Tensor:
    """Boxes (N, 4), x₁ y₁ x₂ y₂ in pixels from 0 with the ends outside, as operations take them that divide by the
    stride."""
    if not plan.aligned:
        return boxes
    if plan.pooling == "align":  # which takes a map's point i to be centred on (i + 1/2) · stride
        return boxes + (plan.stride / 2 - 0.5 - plan.origin)
    shift = torch.tensor([0.0, 0.0, 1.0, 1.0]).to(boxes)  # the last pixel, not the one behind it
    return boxes - plan.origin - shift


def pool_regions(maps: Tensor, boxes: Sequence[Tensor], plan: RegionPlan) -> Tensor:
    """What lies in boxes.

    Args:
        maps: (N, C, h, w) of the plan's layer.
        boxes: (R, 4) of each image, in pixels of the net's input.
        plan: how.

    Returns:
        (sum of R, C, resolution, resolution) float32.
    """
    there = [align_boxes(one, plan) for one in boxes]
    if plan.pooling == "max":
        return ops.roi_pool(maps.float(), there, plan.resolution, 1 / plan.stride)
    return ops.roi_align(maps.float(), there, plan.resolution, 1 / plan.stride, sampling_ratio=0, aligned=True)


def head_maps(parts: Sequence[nn.Module], pooled: Tensor, dropout: float, training: bool) -> Tensor:
    """What the parts of a head make of pooled maps.

    Args:
        parts: modules of the plan's parts.
        pooled: (R, C, s, s).
        dropout: after fc6 and fc7 each, when training.
        training: whether it is.

    Returns:
        (R, D, s', s').
    """
    for part in parts:
        if hasattr(part, "conv"):
            pooled = nn.functional.dropout(dense(part, pooled), dropout, training)
        else:
            pooled = part(pooled)
    return pooled


class Neck(nn.Sequential):
    """What is new between a backbone's part of a head and what scores its regions: two layers for the head "mlp", a
    BatchNorm where one is asked for, else nothing.

    Args:
        plan: of the regions.
        width: of the two layers.
        norm: a BatchNorm, which "mlp" has not.

    Attributes:
        channels: of what it gives.

    Shape:
        (R, C, s, s) → (R, channels).
    """

    def __init__(self, plan: RegionPlan, width: int = 1024, norm: bool = False):
        parts: list[nn.Module] = [nn.BatchNorm2d(plan.channels)] if norm else []
        if plan.head == "mlp":
            layers = nn.Linear(plan.channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
            parts = [nn.Flatten(), *layers]
        super().__init__(*parts)
        self.channels = width if plan.head == "mlp" else plan.channels

    def reset(self) -> None:
        """New initial weights, those of He et al. (2015)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x.mean((2, 3)) if x.ndim == 4 else x


def _before(backbone: Backbone, layer: str) -> str:
    return backbone.layers[backbone.layers.index(layer) - 1]


def _last_stage(backbone: Backbone) -> str:
    """The layer of a ResNet's last stage; empty for other nets."""
    last = getattr(getattr(backbone.net, "model", None), "layer4", None)
    found = (name for name in backbone.layers if last is not None and backbone.get_module(name) is last)
    return next(found, "")


def _last_fine(backbone: Backbone) -> str:
    """The last map of a stride of 16 or less, else the last map."""
    maps = backbone.map_layers
    return next((name for name in reversed(maps) if backbone.strides[name] <= _COARSEST), maps[-1])
