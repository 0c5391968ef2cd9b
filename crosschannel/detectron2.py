"""detectron2's names for our backbones: ``import crosschannel.detectron2`` registers them, and a config that has

    from detectron2.config import get_cfg
    cfg = get_cfg()
    crosschannel.detectron2.add_crosschannel_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_crosschannel_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "CrosschannelROIHeads"
    cfg.MODEL.CROSSCHANNEL.SOURCE = "runs/alexnet-imagenet-0"  # any source
    cfg.INPUT.FORMAT = "RGB"

makes Fast R-CNN, or Faster R-CNN with ``MODEL.PROPOSAL_GENERATOR.NAME: RPN``, on any source.
``ROI_BOX_HEAD.POOLER_TYPE`` may be ROIPool or ROIAlignV2; its resolution follows from the net. The backbone undoes
``PIXEL_MEAN`` and ``PIXEL_STD`` and makes of RGB what its net was trained on; :func:`pixel_mean` gives the mean by
which padding is zero to the net.
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
    """Give a config the keys of ``MODEL.CROSSCHANNEL``."""
    cfg.MODEL.CROSSCHANNEL = CfgNode()
    cfg.MODEL.CROSSCHANNEL.SOURCE = ""  # any source
    cfg.MODEL.CROSSCHANNEL.LAYER = ""  # whose map regions are pooled from; default by the net
    cfg.MODEL.CROSSCHANNEL.HEAD = "auto"  # fc, c4 or mlp
    cfg.MODEL.CROSSCHANNEL.GEOMETRY = "padded"  # of an AlexNet's trunk, or probe
    cfg.MODEL.CROSSCHANNEL.ALIGNED = True  # take the map's points where they are centred
    cfg.MODEL.CROSSCHANNEL.FC = 4096  # width of the fc6 and fc7 that a trunk is given
    cfg.MODEL.CROSSCHANNEL.DROPOUT = 0.5  # after fc6 and fc7
    cfg.MODEL.CROSSCHANNEL.NORM = False  # a BatchNorm after a ResNet's last stage


class SourceBackbone(DetectronBackbone):
    """A backbone up to the map that regions are pooled from, as detectron2 has it.

    Args:
        source: which; what stands above that map is taken out of it.
        plan: of its regions.
        mean, deviation: of what ``GeneralizedRCNN`` has subtracted and divided by, a channel each, of 255.
        format: "RGB" or "BGR".

    Shape:
        (N, 3, H, W) → {layer: (N, C, h, w)}.
    """

    def __init__(
        self, source: Backbone, plan: RegionPlan, mean: Sequence[float], deviation: Sequence[float], format: str = "RGB"
    ):
        super().__init__()
        self.source, self.plan, self._is_bgr = source, plan, format == "BGR"
        self._shape = ShapeSpec(channels=source.channels[plan.layer], stride=plan.stride)
        needed = source.parameters_through(plan.layer)
        for name, parameter in source.named_parameters():
            parameter.requires_grad_(name in needed)
        for name in plan.parts:
            _replace(source, source.get_module(name))
        self.register_buffer("mean", torch.tensor(list(mean))[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(list(deviation))[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        rgb = (image * self.deviation + self.mean) / 255
        x = self.source.preprocess(rgb.flip(1) if self._is_bgr else rgb)
        return self.source.features(x, [self.plan.layer])

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {self.plan.layer: self._shape}

    @property
    def size_divisibility(self) -> int:
        return self.plan.step if self.plan.step > 1 else 0


def _replace(net: nn.Module, part: nn.Module) -> None:
    """Put nothing in the place of a part of a net."""
    for module in net.modules():
        for name, child in module.named_children():
            if child is part:
                setattr(module, name, nn.Identity())


class NormalisedOutputs(FastRCNNOutputLayers):
    """Scores and boxes whose targets are normalised by class.

    Attributes:
        target_mean, target_std: (K, 4); by default none is subtracted and the deviations are those of R-CNNs.
    """

    def __init__(self, input_shape: ShapeSpec, **options):
        super().__init__(input_shape, **options)
        self.register_buffer("target_mean", torch.zeros(self.num_classes, 4))
        self.register_buffer("target_std", torch.tensor(BOX_STDS).repeat(self.num_classes, 1))

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        rows = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        shown = gt_classes[rows]
        wanted = self.box2box_transform.get_deltas(proposal_boxes[rows], gt_boxes[rows])
        wanted = (wanted - self.target_mean[shown]) / self.target_std[shown]
        found = pred_deltas.view(-1, self.num_classes, 4)[rows, shown]
        loss = nn.functional.smooth_l1_loss(found, wanted, reduction="sum", beta=self.smooth_l1_beta)
        return loss / max(gt_classes.numel(), 1.0)

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> tuple[Tensor, ...]:
        scores, moves = predictions
        moves = moves.float().view(-1, self.num_classes, 4) * self.target_std + self.target_mean
        return super().predict_boxes((scores, moves.flatten(1)), proposals)


@ROI_HEADS_REGISTRY.register()
class CrosschannelROIHeads(ROIHeads):
    """Regions pooled from one map, and what a backbone has above it.

    Args:
        plan: how regions are looked at.
        box_head: pooled maps (R, C, s, s) → maps (R, D, s', s'): the backbone's part of the head. It may be set later.
        neck: those → features (R, D').
        box_predictor: scores and boxes of them.
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
        source, plan = _planned(cfg)
        neck = Neck(plan, norm=cfg.MODEL.CROSSCHANNEL.NORM and plan.head == "c4")
        outputs = FastRCNNOutputLayers.from_config(cfg, ShapeSpec(channels=neck.channels))
        outputs["box2box_transform"].weights = (1.0, 1.0, 1.0, 1.0)
        predictor = NormalisedOutputs(**outputs)
        deviations = torch.tensor([1 / weight for weight in cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS])
        predictor.target_std.copy_(deviations.expand_as(predictor.target_std))
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
        found, _ = self.box_predictor.inference(self.predictions(features, proposals), proposals)
        return found, {}

    def predictions(self, features: Mapping[str, Tensor], proposals: Sequence[Instances]) -> tuple[Tensor, Tensor]:
        """Scores (R, K + 1) and moves (R, 4 K) of proposals."""
        boxes = [one.proposal_boxes.tensor for one in proposals]
        # The operations that ROIPooler calls for one map, of any stride.
        pooled = pool_regions(features[self.plan.layer], boxes, self.plan)
        return self.box_predictor(self.neck(self.box_head(pooled)))


class SourceHead(nn.Module):
    """What a backbone has above the map that regions are pooled from.

    Args:
        source: the backbone.
        plan: of its regions.
        dropout: after fc6 and fc7.
    """

    def __init__(self, source: Backbone, plan: RegionPlan, dropout: float):
        super().__init__()
        self.parts, self.dropout = nn.ModuleList(source.get_module(name) for name in plan.parts), dropout

    def forward(self, pooled: Tensor) -> Tensor:
        return head_maps(list(self.parts), pooled, self.dropout, self.training)


class PixelCentreAnchors(DefaultAnchorGenerator):
    """Anchors around the pixels that a map's points are centred on.

    Args:
        shift: of the first anchor's centre from the image's corner, in pixels.
        options: see detectron2's.
    """

    def __init__(self, shift: float, **options):
        super().__init__(**options)
        self.shift = shift

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        return [Boxes(boxes.tensor + self.shift) for boxes in super().forward(features)]


@BACKBONE_REGISTRY.register()
def build_crosschannel_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SourceBackbone:
    """Any source as detectron2's backbone."""
    source, plan = _planned(cfg)
    return SourceBackbone(source, plan, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)


def _planned(cfg: CfgNode) -> tuple[Backbone, RegionPlan]:
    """A config's backbone, to be trained, and how its regions are looked at."""
    ours, box = cfg.MODEL.CROSSCHANNEL, cfg.MODEL.ROI_BOX_HEAD
    with torch.random.fork_rng():  # twice the same, fresh weights too
        torch.manual_seed(max(0, cfg.SEED))
        source = absorbed(trainable_copy(load_backbone(ours.SOURCE)))
        if lacks_fc(source):
            source = with_fc(source, ours.FC)
    source = for_regions(source, ours.GEOMETRY)
    pooling = {"ROIPool": "max", "ROIAlignV2": "align"}.get(box.POOLER_TYPE)
    if pooling is None or box.CLS_AGNOSTIC_BBOX_REG or box.BBOX_REG_LOSS_TYPE != "smooth_l1":
        raise ValueError("POOLER_TYPE may be ROIPool or ROIAlignV2, boxes are by class, and their loss is smooth_l1")
    return source, plan_regions(source, ours.LAYER, ours.HEAD, 0, pooling, ours.ALIGNED)


def pixel_mean(backbone: Backbone) -> list[float]:
    """For ``PIXEL_MEAN``: the RGB (of 255) that is zero to a net, so that what detectron2 pads with is."""
    if backbone.input.kind not in ("grey", "lab"):
        return [255 * value for value in backbone.input.mean]
    grey = torch.arange(0, 255, 0.01)
    lightness = backbone.preprocess(grey.expand(3, 1, -1)[None] / 255)[0, 0, 0]
    return [float(grey[lightness.abs().argmin()])] * 3
