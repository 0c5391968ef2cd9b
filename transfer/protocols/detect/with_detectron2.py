"""Detector with the RoI heads and the region proposal network of detectron2, trained by crosschannel's loop."""

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from crosschannel.detectron2 import CrosschannelROIHeads, NormalisedOutputs, PixelCentreAnchors
from crosschannel.errors import UserError
from crosschannel.models import Backbone
from crosschannel.models.regions import Neck, RegionPlan
from transfer.protocols.detect.config import DetectConfig, SampleConfig
from transfer.protocols.detect.net import REGION_BATCH, Detector, Inputs
from transfer.protocols.detect.views import Regions

_ASPECT_RATIOS = [0.5, 1.0, 2.0]  # heights of the anchors, divided by their widths
_ANCHORS = 256  # number of anchors per image and step to train the proposal network on


class DetectronRCNN(Detector):
    """Fast R-CNN or, with ``proposals: rpn``, Faster R-CNN; its weights have the same names as those of
    :class:`~transfer.protocols.detect.net.FastRCNN`."""

    def __init__(self, backbone: Backbone, classes: int, config: DetectConfig):
        def build_heads(plan: RegionPlan, neck: Neck) -> CrosschannelROIHeads:
            return _build_heads(plan, neck, classes, config.sample)

        super().__init__(backbone, classes, config, build_heads)
        self.score.box_head = self.backbone_head  # a method, so that the backbone's layers are not registered twice
        self.rpn = _build_proposal_network(self.plan, self.map_channels, config) if config.method == "rpn" else None

    def losses(self, inputs: Inputs, regions: Sequence[Regions]) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a batch, and the count to divide it by.

        The count is the number of regions for Fast R-CNN, and the number of images for Faster R-CNN. detectron2
        averages its losses, so they are multiplied by the count.
        """
        features = {self.plan.layer: self.feature_map(inputs.x)}
        with EventStorage():  # required by detectron2, which logs statistics to it
            if self.rpn is None:
                sampled = [
                    Instances(size, proposal_boxes=Boxes(r.boxes), gt_boxes=Boxes(r.targets), gt_classes=r.labels)
                    for size, r in zip(inputs.sizes, regions, strict=True)
                ]
                losses, count = {}, sum(map(len, sampled))
            else:
                truth = [
                    Instances(size, gt_boxes=Boxes(r.objects), gt_classes=r.classes)
                    for size, r in zip(inputs.sizes, regions, strict=True)
                ]
                proposals, losses = self._propose(inputs, features, truth)
                sampled, count = self.score.label_and_sample_proposals(proposals, truth), len(truth)
            losses |= self.score.box_predictor.losses(self.score.predictions(features, sampled), sampled)
        loss = torch.stack([value.float() for value in losses.values()]).sum() * count
        return loss, loss.new_tensor(float(count))

    def predict(self, inputs: Inputs, regions: Sequence[Regions]) -> list[tuple[Tensor, Tensor]]:
        maps = self.feature_map(inputs.x)
        proposals = [r.boxes for r in regions]
        if self.rpn is not None:
            instances, _ = self._propose(inputs, {self.plan.layer: maps})
            proposals = [image_instances.proposal_boxes.tensor for image_instances in instances]
        predictions, predictor = [], self.score.box_predictor
        for i, (size, boxes) in enumerate(zip(inputs.sizes, proposals, strict=True)):
            chunks = [(boxes.new_empty(0, self.classes, 4), boxes.new_empty(0, self.classes))]
            for chunk in boxes.split(REGION_BATCH) if len(boxes) else ():
                instances = [Instances(size, proposal_boxes=Boxes(chunk))]
                scores, deltas = self.score.predictions({self.plan.layer: maps[i : i + 1]}, instances)
                decoded = predictor.predict_boxes((scores, deltas), instances)[0].view(-1, self.classes, 4)
                chunks.append((decoded, predictor.predict_probs((scores.float(), deltas), instances)[0][:, :-1]))
            predictions.append(tuple(torch.cat(tensors) for tensors in zip(*chunks, strict=True)))
        return predictions

    def _propose(self, inputs: Inputs, features: dict[str, Tensor], truth: list[Instances] | None = None):
        """Run the proposal network in float32, because many of its scores would tie in bfloat16."""
        features = {name: maps.float() for name, maps in features.items()}
        try:
            with torch.autocast(inputs.x.device.type, enabled=False):
                return self.rpn(ImageList(inputs.x, inputs.sizes), features, truth)
        except FloatingPointError:
            raise UserError("the proposals are no longer finite; lower optim.lr or set optim.clip") from None


def _build_heads(plan: RegionPlan, neck: Neck, classes: int, sample: SampleConfig) -> CrosschannelROIHeads:
    predictor = NormalisedOutputs(
        ShapeSpec(channels=neck.channels),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        num_classes=classes,
        smooth_l1_beta=sample.beta,
    )
    return CrosschannelROIHeads(
        plan=plan,
        box_head=None,
        neck=neck,
        box_predictor=predictor,
        num_classes=classes,
        batch_size_per_image=sample.regions,
        positive_fraction=sample.foreground,
        proposal_matcher=_build_matcher(sample),
    )


def _build_matcher(sample: SampleConfig) -> Matcher:
    """Build a matcher that labels regions by their IoU: 1 for foreground, 0 for background, -1 to ignore."""
    low, high = sample.background
    bounds, labels = ([low], [-1, 0]) if low else ([], [0])
    bounds.append(high)
    if high < sample.overlap:
        labels.append(-1)
        bounds.append(sample.overlap)
    return Matcher(bounds, [*labels, 1], allow_low_quality_matches=False)


def _build_proposal_network(plan: RegionPlan, channels: int, config: DetectConfig) -> RPN:
    sizes, rpn = [float(side) for side in config.rpn.anchors], config.rpn
    return RPN(
        in_features=[plan.layer],
        head=StandardRPNHead(in_channels=channels, num_anchors=len(sizes) * len(_ASPECT_RATIOS)),
        anchor_generator=PixelCentreAnchors(
            plan.origin + 0.5 if plan.aligned else 0.0,
            sizes=[sizes],
            aspect_ratios=[_ASPECT_RATIOS],
            strides=[plan.stride],
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=_ANCHORS,
        positive_fraction=0.5,
        pre_nms_topk=rpn.before,
        post_nms_topk=rpn.after,
        nms_thresh=rpn.nms,
    )
