"""Register a detectron2 backbone and RoI heads that are built from any source.

The following config trains Fast R-CNN, or, with ``MODEL.PROPOSAL_GENERATOR.NAME: RPN``, Faster R-CNN::

    import crosschannel.detectron2
    from detectron2.config import get_cfg

    cfg = get_cfg()
    crosschannel.detectron2.add_crosschannel_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_crosschannel_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "CrosschannelROIHeads"
    cfg.MODEL.CROSSCHANNEL.SOURCE = "runs/alexnet-imagenet-0"  # any source
    cfg.INPUT.FORMAT = "RGB"

``ROI_BOX_HEAD.POOLER_TYPE`` must be ROIPool or ROIAlignV2; the resolution follows from the net. The backbone reverts
``PIXEL_MEAN`` and ``PIXEL_STD`` and applies its own preprocessing. Set ``PIXEL_MEAN`` to :func:`pixel_mean`, so that
padding is zero after preprocessing.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling import Backbone as DetectronBackbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, ROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from crosschannel.hub import load_backbone
from crosschannel.models import Backbone
from crosschannel.models.adapt import absorbed, lacks_fc, trainable_copy, with_fc
from crosschannel.models.regions import (
    BOX_STDS,
    Neck,
    RegionPlan,
    for_regions,
    head_maps,
    plan_regions,
    pool_regions,
)


def add_crosschannel_config(cfg: CfgNode) -> None:
    """Add the keys of ``MODEL.CROSSCHANNEL`` to a config."""
    cfg.MODEL.CROSSCHANNEL = CfgNode()
    cfg.MODEL.CROSSCHANNEL.SOURCE = ""  # any source
    cfg.MODEL.CROSSCHANNEL.LAYER = ""  # layer from whose map regions are pooled; empty: depends on the net
    cfg.MODEL.CROSSCHANNEL.HEAD = "auto"  # box head: auto, fc, c4 or mlp
    cfg.MODEL.CROSSCHANNEL.GEOMETRY = "padded"  # geometry of AlexNet's trunk: padded or probe
    cfg.MODEL.CROSSCHANNEL.ALIGNED = True  # align boxes with the pixels on which map positions are centred
    cfg.MODEL.CROSSCHANNEL.FC = 4096  # width of fc6 and fc7, if they are added to a trunk without them
    cfg.MODEL.CROSSCHANNEL.DROPOUT = 0.5  # dropout probability after fc6 and fc7
    cfg.MODEL.CROSSCHANNEL.NORM = False  # add a BatchNorm after the last stage of a ResNet


class SourceBackbone(DetectronBackbone):
    """detectron2 backbone that consists of a source's layers up to the map from which regions are pooled.

    Args:
        source: the backbone; the layers of the box head are removed from it, in place.
        plan: region plan of the backbone.
        mean: values that ``GeneralizedRCNN`` subtracts, one per channel, in 0..255.
        std: values by which ``GeneralizedRCNN`` divides, one per channel.
        format: channel order of the images, "RGB" or "BGR".

    Shape:
        (N, 3, H, W) → {layer: (N, C, h, w)}.
    """

    def __init__(
        self, source: Backbone, plan: RegionPlan, mean: Sequence[float], std: Sequence[float], format: str = "RGB"
    ):
        super().__init__()
        self.source, self.plan, self._is_bgr = source, plan, format == "BGR"
        self._shape = ShapeSpec(channels=source.channels[plan.layer], stride=plan.stride)
        trainable = source.parameters_through(plan.layer)
        for name, parameter in source.named_parameters():
            parameter.requires_grad_(name in trainable)
        for name in plan.parts:
            _remove(source, source.get_module(name))
        self.register_buffer("mean", torch.tensor(list(mean))[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(list(std))[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        rgb = (image * self.std + self.mean) / 255
        x = self.source.preprocess(rgb.flip(1) if self._is_bgr else rgb)
        return self.source.features(x, [self.plan.layer])

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {self.plan.layer: self._shape}

    @property
    def size_divisibility(self) -> int:
        return self.plan.step if self.plan.step > 1 else 0


def _remove(net: nn.Module, submodule: nn.Module) -> None:
    """Replace a submodule by an identity, in place."""
    for module in net.modules():
        for name, child in module.named_children():
            if child is submodule:
                setattr(module, name, nn.Identity())


class NormalisedOutputs(FastRCNNOutputLayers):
    """Output layers for class scores and box deltas, with box targets normalised per class.

    Attributes:
        target_mean: mean of the box targets, (K, 4); by default zero.
        target_std: std of the box targets, (K, 4); by default the values that R-CNNs use.
    """

    def __init__(self, input_shape: ShapeSpec, **options):
        super().__init__(input_shape, **options)
        self.register_buffer("target_mean", torch.zeros(self.num_classes, 4))
        self.register_buffer("target_std", torch.tensor(BOX_STDS).repeat(self.num_classes, 1))

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        classes = gt_classes[foreground]
        targets = self.box2box_transform.get_deltas(proposal_boxes[foreground], gt_boxes[foreground])
        targets = (targets - self.target_mean[classes]) / self.target_std[classes]
        deltas = pred_deltas.view(-1, self.num_classes, 4)[foreground, classes]
        loss = nn.functional.smooth_l1_loss(deltas, targets, reduction="sum", beta=self.smooth_l1_beta)
        return loss / max(gt_classes.numel(), 1.0)

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> tuple[Tensor, ...]:
        scores, deltas = predictions
        deltas = deltas.float().view(-1, self.num_classes, 4) * self.target_std + self.target_mean
        return super().predict_boxes((scores, deltas.flatten(1)), proposals)


@ROI_HEADS_REGISTRY.register()
class CrosschannelROIHeads(ROIHeads):
    """RoI heads that pool regions from a single map and apply the backbone's layers above that map.

    Args:
        plan: region plan of the backbone.
        box_head: the backbone's layers above the map, (R, C, s, s) → (R, D, s', s'); None if it is assigned later.
        neck: new layers on top of the box head, (R, D, s', s') → features (R, D').
        box_predictor: predicts scores and boxes from the features.
        options: arguments of ``ROIHeads``.
    """

    @configurable
    def __init__(
        self,
        *,
        plan: RegionPlan,
        box_head: Callable[[Tensor], Tensor] | None,
        neck: Neck,
        box_predictor: FastRCNNOutputLayers,
        **options,
    ):
        super().__init__(**options)
        self.plan, self.box_head, self.neck, self.box_predictor = plan, box_head, neck, box_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        source, plan = _load_source(cfg)
        neck = Neck(plan, norm=cfg.MODEL.CROSSCHANNEL.NORM and plan.head == "c4")
        outputs = FastRCNNOutputLayers.from_config(cfg, ShapeSpec(channels=neck.channels))
        outputs["box2box_transform"].weights = (1.0, 1.0, 1.0, 1.0)
        predictor = NormalisedOutputs(**outputs)
        target_std = torch.tensor([1 / weight for weight in cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS])
        predictor.target_std.copy_(target_std.expand_as(predictor.target_std))
        head = SourceHead(source, plan, cfg.MODEL.CROSSCHANNEL.DROPOUT)
        return super().from_config(cfg) | {"plan": plan, "box_head": head, "neck": neck, "box_predictor": predictor}

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if self.training:
            sampled = self.label_and_sample_proposals(proposals, targets)
            return [], self.box_predictor.losses(self.predictions(features, sampled), sampled)
        detections, _ = self.box_predictor.inference(self.predictions(features, proposals), proposals)
        return detections, {}

    def predictions(self, features: Mapping[str, Tensor], proposals: Sequence[Instances]) -> tuple[Tensor, Tensor]:
        """Return scores (R, K + 1) and box deltas (R, 4 K) for the proposals of all images."""
        boxes = [instances.proposal_boxes.tensor for instances in proposals]
        # Equivalent to ROIPooler with a single map, but supports any stride.
        pooled = pool_regions(features[self.plan.layer], boxes, self.plan)
        return self.box_predictor(self.neck(self.box_head(pooled)))


class SourceHead(nn.Module):
    """Box head that consists of a backbone's layers above the map from which regions are pooled.

    Args:
        source: the backbone.
        plan: region plan of the backbone.
        dropout: dropout probability after fc6 and fc7.

    Shape:
        (R, C, s, s) → (R, D, s', s').
    """

    def __init__(self, source: Backbone, plan: RegionPlan, dropout: float):
        super().__init__()
        self.parts, self.dropout = nn.ModuleList(source.get_module(name) for name in plan.parts), dropout

    def forward(self, pooled: Tensor) -> Tensor:
        return head_maps(list(self.parts), pooled, self.dropout, self.training)


class PixelCentreAnchors(DefaultAnchorGenerator):
    """Anchor generator that centres anchors on the same pixels as the positions of the map.

    Args:
        shift: distance of the first anchor's centre from the corner of the image, in pixels.
        options: arguments of ``DefaultAnchorGenerator``.
    """

    def __init__(self, shift: float, **options):
        super().__init__(**options)
        self.shift = shift

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        return [Boxes(boxes.tensor + self.shift) for boxes in super().forward(features)]


@BACKBONE_REGISTRY.register()
def build_crosschannel_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SourceBackbone:
    """Build the backbone from the source ``MODEL.CROSSCHANNEL.SOURCE``."""
    source, plan = _load_source(cfg)
    return SourceBackbone(source, plan, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)


def _load_source(cfg: CfgNode) -> tuple[Backbone, RegionPlan]:
    """Load the trainable backbone of a config and its region plan."""
    options, box_head = cfg.MODEL.CROSSCHANNEL, cfg.MODEL.ROI_BOX_HEAD
    with torch.random.fork_rng():  # backbone and heads are built by separate calls, which need identical new weights
        torch.manual_seed(max(0, cfg.SEED))
        source = absorbed(trainable_copy(load_backbone(options.SOURCE)))
        if lacks_fc(source):
            source = with_fc(source, options.FC)
    source = for_regions(source, options.GEOMETRY)
    pooling = {"ROIPool": "max", "ROIAlignV2": "align"}.get(box_head.POOLER_TYPE)
    if pooling is None or box_head.CLS_AGNOSTIC_BBOX_REG or box_head.BBOX_REG_LOSS_TYPE != "smooth_l1":
        raise ValueError(
            "ROI_BOX_HEAD requires POOLER_TYPE ROIPool or ROIAlignV2, CLS_AGNOSTIC_BBOX_REG false and "
            "BBOX_REG_LOSS_TYPE smooth_l1"
        )
    return source, plan_regions(source, options.LAYER, options.HEAD, 0, pooling, options.ALIGNED)


def pixel_mean(backbone: Backbone) -> list[float]:
    """Return the RGB value, in 0..255, that preprocessing maps to zero.

    With this ``PIXEL_MEAN``, the zeros with which detectron2 pads batches are also zeros in the input of the net.
    """
    if backbone.input.kind not in ("grey", "lab"):
        return [255 * value for value in backbone.input.mean]
    grey = torch.arange(0, 255, 0.01)
    lightness = backbone.preprocess(grey.expand(3, 1, -1)[None] / 255)[0, 0, 0]
    return [float(grey[lightness.abs().argmin()])] * 3
