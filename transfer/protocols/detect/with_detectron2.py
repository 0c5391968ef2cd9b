"""The engine on detectron2's region heads and proposal network, run by our loop."""

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
from transfer.protocols.detect.net import AT_ONCE, Detector, Inputs
from transfer.protocols.detect.views import Regions

_RATIOS = [0.5, 1.0, 2.0]  # of anchors' sides
_ANCHORS = 256  # of an image and step that the proposal network learns from


class DetectronRCNN(Detector):
    """Fast R-CNN or, with ``proposals: rpn``, Faster R-CNN. Weights have the same names as in the other engine."""

    def __init__(self, backbone: Backbone, classes: int, config: DetectConfig):
        def heads(plan: RegionPlan, neck: Neck) -> CrosschannelROIHeads:
            return _heads(plan, neck, classes, config.sample)

        super().__init__(backbone, classes, config, heads)
        self.score.box_head = self.above  # a method: the backbone's parts are not registered twice
        self.rpn = _proposal_network(self.plan, self.maps, config) if config.method == "rpn" else None

    def losses(self, inputs: Inputs, regions: Sequence[Regions]) -> tuple[Tensor, Tensor]:
        """detectron2's losses, of Fast R-CNN times the number of regions, of Faster R-CNN times that of images."""
        features = {self.plan.layer: self.map_of(inputs.x)}
        with EventStorage():  # where detectron2 writes its statistics
            if self.rpn is None:
                sampled = [
                    Instances(size, proposal_boxes=Boxes(one.boxes), gt_boxes=Boxes(one.targets), gt_classes=one.labels)
                    for size, one in zip(inputs.sizes, regions, strict=True)
                ]
                found, count = {}, sum(map(len, sampled))
            else:
                truth = [
                    Instances(size, gt_boxes=Boxes(one.objects), gt_classes=one.classes)
                    for size, one in zip(inputs.sizes, regions, strict=True)
                ]
                proposals, found = self._proposals(inputs, features, truth)
                sampled, count = self.score.label_and_sample_proposals(proposals, truth), len(truth)
            found |= self.score.box_predictor.losses(self.score.predictions(features, sampled), sampled)
        loss = torch.stack([part.float() for part in found.values()]).sum() * count
        return loss, loss.new_tensor(float(count))

    def predict(self, inputs: Inputs, regions: Sequence[Regions]) -> list[tuple[Tensor, Tensor]]:
        maps = self.map_of(inputs.x)
        proposals = [one.boxes for one in regions]
        if self.rpn is not None:
            made, _ = self._proposals(inputs, {self.plan.layer: maps})
            proposals = [one.proposal_boxes.tensor for one in made]
        found, predictor = [], self.score.box_predictor
        for number, (size, boxes) in enumerate(zip(inputs.sizes, proposals, strict=True)):
            parts = [(boxes.new_empty(0, self.classes, 4), boxes.new_empty(0, self.classes))]
            for part in boxes.split(AT_ONCE) if len(boxes) else ():
                there = [Instances(size, proposal_boxes=Boxes(part))]
                scores, moves = self.score.predictions({self.plan.layer: maps[number : number + 1]}, there)
                moved = predictor.predict_boxes((scores, moves), there)[0].view(-1, self.classes, 4)
                parts.append((moved, predictor.predict_probs((scores.float(), moves), there)[0][:, :-1]))
            found.append(tuple(torch.cat(kind) for kind in zip(*parts, strict=True)))
        return found

    def _proposals(self, inputs: Inputs, features: dict[str, Tensor], truth: list[Instances] | None = None):
        """The proposal network, in float32: scores of 8 bits would rank thousands of boxes by chance."""
        features = {name: maps.float() for name, maps in features.items()}
        try:
            with torch.autocast(inputs.x.device.type, enabled=False):
                return self.rpn(ImageList(inputs.x, inputs.sizes), features, truth)
        except FloatingPointError:
            raise UserError("the proposals became infinite; lower optim.lr or set optim.clip") from None


def _heads(plan: RegionPlan, neck: Neck, classes: int, sample: SampleConfig) -> CrosschannelROIHeads:
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
        proposal_matcher=_matcher(sample),
    )


def _matcher(sample: SampleConfig) -> Matcher:
    """What a region shows by its overlap: 1 an object, 0 background, -1 neither."""
    low, high = sample.background
    bounds, labels = ([low], [-1, 0]) if low else ([], [0])
    bounds.append(high)
    if high < sample.overlap:
        labels.append(-1)
        bounds.append(sample.overlap)
    return Matcher(bounds, [*labels, 1], allow_low_quality_matches=False)


def _proposal_network(plan: RegionPlan, channels: int, config: DetectConfig) -> RPN:
    sizes, keys = [float(side) for side in config.rpn.anchors], config.rpn
    return RPN(
        in_features=[plan.layer],
        head=StandardRPNHead(in_channels=channels, num_anchors=len(sizes) * len(_RATIOS)),
        anchor_generator=PixelCentreAnchors(
            plan.origin + 0.5 if plan.aligned else 0.0, sizes=[sizes], aspect_ratios=[_RATIOS], strides=[plan.stride]
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=_ANCHORS,
        positive_fraction=0.5,
        pre_nms_topk=keys.before,
        post_nms_topk=keys.after,
        nms_thresh=keys.nms,
    )
