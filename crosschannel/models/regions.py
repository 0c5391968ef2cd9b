"""Region features for detection: the layer to pool within boxes, the pooling, and the head on pooled maps."""

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
BOX_STDS = (0.1, 0.1, 0.2, 0.2)  # standard deviations by which R-CNNs divide box regression targets
_MAX_STRIDE = 16  # preferred maximum stride of the pooled layer, in input pixels


@dataclass(frozen=True)
class RegionPlan:
    """Plan for computing region features with a backbone.

    Attributes:
        layer: layer whose map is pooled within boxes.
        head: part of the backbone that is applied to pooled maps: "fc" (fc6 and fc7), "c4" (the last stage, then the
            mean over positions) or "mlp" (none; two new layers are used).
        parts: layers of the backbone in the head, in order.
        channels: output channels of the head; for "mlp", the length of the flattened pooled map.
        resolution: side of pooled maps.
        stride: stride of the map, in input pixels.
        origin: input pixel on which the first position of the map is centred.
        pooling: "max" (as in Fast R-CNN, with rounded box edges) or "align" (RoIAlign, without rounding).
        aligned: whether boxes are shifted to account for the pixels on which map positions are centred. False: the
            first cell of the map is assumed to start at the image corner, as in detectron2.
        step: images are padded to multiples of this number of pixels; 1 for nets that do not discard partial patches.
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
        """Last layer of the backbone that region features depend on."""
        return self.parts[-1] if self.parts else self.layer


def plan_regions(
    backbone: Backbone,
    layer: str = "",
    head: Head = "auto",
    resolution: int = 0,
    pooling: Pooling = "max",
    aligned: bool = True,
) -> RegionPlan:
    """Choose the layer, head and pooling for region features of a backbone.

    Args:
        backbone: AlexNet or VGG with fc6 and fc7, a ResNet, or any other backbone with feature maps.
        layer: layer whose map is pooled within boxes. Default: the layer below the last pool for the head "fc", the
            second-last stage of a ResNet for "c4", and the last layer with a stride of at most 16 for "mlp".
        head: see :class:`RegionPlan`. "auto" selects "fc" for nets with fc6, "c4" for ResNets, else "mlp".
        resolution: side of pooled maps. 0 selects the kernel size of fc6 for "fc", 14 for "c4" and 7 for "mlp".
        pooling, aligned: see :class:`RegionPlan`.

    Raises:
        UserError: unknown layer, or a layer, head or resolution that does not fit the backbone.
    """
    stage = _last_stage(backbone)
    if head == "auto":
        head = "fc" if "fc6" in backbone.layers else "c4" if stage else "mlp"
    if head == "fc":
        if "fc6" not in backbone.layers:
            raise UserError("head fc: this backbone has no fc6; choose c4, mlp or auto")
        parts = tuple(name for name in ("fc6", "fc7") if name in backbone.layers)
        input_layer = _previous(backbone, backbone.trunk_layer)
        fc6_kernel = backbone.get_module("fc6").conv.kernel_size[0]
        if resolution not in (0, fc6_kernel):
            raise UserError(f"resolution {resolution}: fc6 of this backbone requires {fc6_kernel} × {fc6_kernel}")
        resolution = fc6_kernel
    elif head == "c4":
        if not stage:
            raise UserError("head c4: this backbone is not a ResNet; choose mlp or auto")
        parts, input_layer, resolution = (stage,), _previous(backbone, stage), resolution or 14
    else:
        parts, input_layer, resolution = (), _last_fine_layer(backbone), resolution or 7
    layer = backbone.find_layer(layer) if layer else input_layer
    if head != "mlp" and layer != input_layer:
        raise UserError(
            f"layer {layer}: head {head} needs layer {input_layer}; omit one of the two, or choose head mlp"
        )
    channels = backbone.channels[parts[-1]] if parts else backbone.width(layer) * resolution**2
    first_conv = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    has_patches = backbone.patch != (1, 1) or (first_conv is not None and first_conv.kernel_size == first_conv.stride)
    is_listed = layer in backbone.layers
    layers_below = backbone.layers[: backbone.layers.index(layer) + 1] if is_listed else ()
    strides = [backbone.strides[name] for name in backbone.map_layers if name in layers_below] or [
        backbone.stride(layer)
    ]
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
        math.lcm(*backbone.patch, *strides) if has_patches else 1,
    )


def for_regions(backbone: Backbone, geometry: Literal["padded", "probe"]) -> Backbone:
    """Adapt a backbone to images of any size, in place.

    AlexNet with fc6 gets the geometry of the transfer protocols, and with "padded" its trunk is padded to align maps
    with the pixel grid. The position embeddings of a ViT are resized for each batch.
    """
    backbone.take_any_size()
    spec = find_spec(backbone.net)
    if spec is not None and family(spec.name).has_option("geometry") and spec.options.fc:
        backbone.net.set_geometry("probe")
        if geometry == "padded":
            backbone.net.pad_trunk()
    return backbone


def align_boxes(boxes: Tensor, plan: RegionPlan) -> Tensor:
    """Shift boxes so that RoI operations, which divide by the stride, sample the map at the right positions.

    Args:
        boxes: (N, 4), x₁ y₁ x₂ y₂ in pixels counted from 0, with exclusive ends.
        plan: region plan of the map.
    """
    if not plan.aligned:
        return boxes
    if plan.pooling == "align":  # RoIAlign assumes that position i of a map is centred on (i + 1/2) · stride
        return boxes + (plan.stride / 2 - 0.5 - plan.origin)
    shift = torch.tensor([0.0, 0.0, 1.0, 1.0]).to(boxes)  # RoI max pooling expects inclusive ends
    return boxes - plan.origin - shift


def pool_regions(maps: Tensor, boxes: Sequence[Tensor], plan: RegionPlan) -> Tensor:
    """Pool maps within boxes.

    Args:
        maps: (N, C, h, w) maps of the plan's layer.
        boxes: boxes (R, 4) of each image, in pixels of the net's input.
        plan: region plan.

    Returns:
        (sum of all R, C, resolution, resolution) float32.
    """
    aligned = [align_boxes(image_boxes, plan) for image_boxes in boxes]
    if plan.pooling == "max":
        return ops.roi_pool(maps.float(), aligned, plan.resolution, 1 / plan.stride)
    return ops.roi_align(maps.float(), aligned, plan.resolution, 1 / plan.stride, sampling_ratio=0, aligned=True)


def head_maps(parts: Sequence[nn.Module], pooled: Tensor, dropout: float, training: bool) -> Tensor:
    """Apply the backbone's part of a head to pooled maps.

    Args:
        parts: modules of the layers in ``RegionPlan.parts``.
        pooled: pooled maps (R, C, s, s).
        dropout: dropout probability after each of fc6 and fc7, in training.
        training: whether dropout is active.

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
    """New layers between the backbone's part of a head and the box predictors.

    For the head "mlp", these are two fully connected layers; for other heads, BatchNorm if requested, else no layers.

    Args:
        plan: region plan.
        width: width of the two layers.
        norm: whether to use BatchNorm (ignored for "mlp").

    Attributes:
        channels: length of the output vectors.

    Shape:
        (R, C, s, s) → (R, channels).
    """

    def __init__(self, plan: RegionPlan, width: int = 1024, norm: bool = False):
        modules: list[nn.Module] = [nn.BatchNorm2d(plan.channels)] if norm else []
        if plan.head == "mlp":
            layers = nn.Linear(plan.channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
            modules = [nn.Flatten(), *layers]
        super().__init__(*modules)
        self.channels = width if plan.head == "mlp" else plan.channels

    def reset(self) -> None:
        """Re-initialise the weights, as in He et al. (2015)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x.mean((2, 3)) if x.ndim == 4 else x


def _previous(backbone: Backbone, layer: str) -> str:
    """Return the layer before another one."""
    return backbone.layers[backbone.layers.index(layer) - 1]


def _last_stage(backbone: Backbone) -> str:
    """Return the layer that is the last stage of a ResNet; empty for other nets."""
    last = getattr(getattr(backbone.net, "model", None), "layer4", None)
    matches = (name for name in backbone.layers if last is not None and backbone.get_module(name) is last)
    return next(matches, "")


def _last_fine_layer(backbone: Backbone) -> str:
    """Return the last layer with a stride of at most 16, else the last layer with a map."""
    layers = backbone.map_layers
    return next((name for name in reversed(layers) if backbone.strides[name] <= _MAX_STRIDE), layers[-1])
