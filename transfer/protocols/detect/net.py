"""Fast R-CNN (Girshick, ICCV 2015) on any backbone, by torchvision's operations.

Regions are pooled from one layer's map, go through what the backbone has above it, and are scored: a softmax over the
classes and background, and a box for every class. (Caffe's nets also have a box of background's, which nothing trains.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data.views import map_tensors
from crosschannel.errors import UserError
from crosschannel.models import Backbone
from crosschannel.models.regions import (
    BOX_STDS,
    Neck,
    RegionPlan,
    for_regions,
    head_maps,
    plan_regions,
    pool_regions,
)
from transfer.finetuning import FineTuned
from transfer.protocols.detect.config import DetectConfig
from transfer.protocols.detect.views import DetectionBatch, Regions

_MOST_GROWTH = math.log(1000 / 16)  # of a box's side
_LEAST = 64  # pixels of a side: that of a banner could be too short for a net
AT_ONCE = 500  # regions of a test image: maps of 14² of 1,024 channels are large


@dataclass
class Inputs:
    """Preprocessed images of a batch.

    Attributes:
        x: (N, C, H, W); what is no image, to the right and below, is zero.
        sizes: (height, width) of each image in it.
    """

    x: Tensor
    sizes: list[tuple[int, int]]


class BoxPredictor(nn.Module):
    """Scores and boxes of regions.

    Args:
        channels: of their features.
        classes: K.

    Attributes:
        target_mean, target_std: (K, 4), of box targets: what is predicted is (targets - mean) / std.

    Shape:
        (R, channels) → scores (R, K + 1), the last one background's, and (R, 4 K).
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(channels, classes + 1), nn.Linear(channels, 4 * classes)
        self.register_buffer("target_mean", torch.zeros(classes, 4))
        self.register_buffer("target_std", torch.tensor(BOX_STDS).repeat(classes, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class RegionScores(nn.Module):
    """What is new on top of the backbone.

    Args:
        neck: between it and the predictor.
        classes: K.
    """

    def __init__(self, neck: Neck, classes: int):
        super().__init__()
        self.neck, self.box_predictor = neck, BoxPredictor(neck.channels, classes)


class Detector(FineTuned):
    """A backbone that says what is in regions of images: a subclass is an engine, which computes ``losses`` and
    ``predict``.

    Args:
        backbone: a copy to be trained.
        classes: K.
        config: the protocol's.
        score: (plan, neck) → what is new, with ``neck`` and ``box_predictor``.

    Attributes:
        plan: how regions are looked at.
        maps: channels of the map that they are pooled from.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        config: DetectConfig,
        score: Callable[[RegionPlan, Neck], nn.Module],
    ):
        backbone, roi = for_regions(backbone, config.roi.geometry), config.roi
        plan = plan_regions(backbone, roi.layer, roi.head, roi.resolution, roi.pooling, roi.aligned)
        if roi.norm and plan.head != "c4":
            raise UserError(f"roi.norm is for the head c4, and this backbone's is {plan.head}")
        super().__init__(backbone, score(plan, Neck(plan, roi.width, roi.norm)), config.dropout)
        self.plan, self.classes, self.config = plan, classes, config
        self.layers, self.maps = (plan.top,), backbone.width(plan.layer)
        self.reset_scores()

    def reset_scores(self) -> None:
        """New initial weights of what is new: N(0, 0.01) for scores and N(0, 0.001) for boxes, without biases."""
        self.score.neck.reset()
        predictor = self.score.box_predictor
        for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def set_targets(self, mean: Tensor, deviation: Tensor) -> None:
        """By what box targets are normalised: (K, 4) each."""
        predictor = self.score.box_predictor
        predictor.target_mean.copy_(mean)
        predictor.target_std.copy_(deviation)

    def inputs(self, images: Sequence[Tensor], device: torch.device) -> Inputs:
        """Images (3, H, W) uint8 as the net takes them."""
        ready = [self.preprocess(image[None].to(device, non_blocking=True))[0] for image in images]
        step = self.plan.step
        sides = [max(_LEAST, *(one.shape[side] for one in ready)) for side in (1, 2)]
        height, width = (-(-side // step) * step for side in sides)
        x = ready[0].new_zeros(len(ready), ready[0].shape[0], height, width)
        for place, one in zip(x, ready, strict=True):
            place[:, : one.shape[1], : one.shape[2]] = one
        return Inputs(x, [tuple(one.shape[1:]) for one in ready])

    def forward(self, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch, and the count that it is to be divided by."""
        return self.losses(*self._on_device(batch))

    def detect(self, batch: DetectionBatch) -> list[tuple[Tensor, Tensor]]:
        """What is in a batch's regions: of each image boxes (R, K, 4) in pixels of the resized image, not clipped, and
        probabilities (R, K)."""
        return self.predict(*self._on_device(batch))

    def _on_device(self, batch: DetectionBatch) -> tuple[Inputs, list[Regions]]:
        device = self.score.box_predictor.cls_score.weight.device
        regions = map_tensors(batch.regions, lambda tensor: tensor.to(device, non_blocking=True))
        return self.inputs(batch.images, device), regions

    def losses(self, inputs: Inputs, regions: Sequence[Regions]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def predict(self, inputs: Inputs, regions: Sequence[Regions]) -> list[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def features_of(self, maps: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Features (R, D) of boxes on maps."""
        return self.score.neck(self.above(pool_regions(maps, boxes, self.plan)))

    def above(self, pooled: Tensor) -> Tensor:
        """What the backbone's part of the head makes of pooled maps."""
        parts = [self.backbone.get_module(name) for name in self.plan.parts]
        return head_maps(parts, pooled, self.dropout, self.training)

    def map_of(self, x: Tensor) -> Tensor:
        """The map that regions are pooled from."""
        return self.backbone.features(x, [self.plan.layer])[self.plan.layer]


class FastRCNN(Detector):
    """The engine on torchvision's operations."""

    def __init__(self, backbone: Backbone, classes: int, config: DetectConfig):
        super().__init__(backbone, classes, config, lambda _, neck: RegionScores(neck, classes))

    def losses(self, inputs: Inputs, regions: Sequence[Regions]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of all regions and smooth L1 of the boxes of those that show something, each over the number
        of all regions."""
        features = self.features_of(self.map_of(inputs.x), [one.boxes for one in regions])
        scores, moves = (found.float() for found in self.score.box_predictor(features))
        boxes = torch.cat([one.boxes for one in regions])
        labels, targets = torch.cat([one.labels for one in regions]), torch.cat([one.targets for one in regions])
        loss = F.cross_entropy(scores, labels, reduction="sum")
        rows = (labels < self.classes).nonzero()[:, 0]
        shown = labels[rows]
        predictor = self.score.box_predictor
        wanted = (encode_boxes(boxes[rows], targets[rows]) - predictor.target_mean[shown]) / predictor.target_std[shown]
        found = moves.view(-1, self.classes, 4)[rows, shown]
        boxes_loss = F.smooth_l1_loss(found, wanted, reduction="sum", beta=self.config.sample.beta)
        return loss + boxes_loss, loss.new_tensor(float(len(labels)))

    def predict(self, inputs: Inputs, regions: Sequence[Regions]) -> list[tuple[Tensor, Tensor]]:
        maps, predictor = self.map_of(inputs.x), self.score.box_predictor
        found = []
        for number, one in enumerate(regions):
            boxes, probabilities = [one.boxes.new_empty(0, self.classes, 4)], [one.boxes.new_empty(0, self.classes)]
            for part in one.boxes.split(AT_ONCE):
                scores, moves = predictor(self.features_of(maps[number : number + 1], [part]))
                moves = moves.float().view(-1, self.classes, 4) * predictor.target_std + predictor.target_mean
                boxes.append(decode_boxes(part[:, None], moves))
                probabilities.append(scores.float().softmax(1)[:, :-1])
            found.append((torch.cat(boxes), torch.cat(probabilities)))
        return found


def encode_boxes(boxes: Tensor, targets: Tensor) -> Tensor:
    """What moves boxes to targets (R-CNN's parametrisation): (N, 4), (N, 4) → (N, 4), shifts of the centre in widths
    and heights, and logarithms of the factors of width and height."""
    size, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + wanted / 2 - boxes[:, :2] - size / 2) / size
    return torch.cat([shift, (wanted / size).log()], 1)


def decode_boxes(boxes: Tensor, moves: Tensor) -> Tensor:
    """Inverse of :func:`encode_boxes`: boxes (N, 1, 4) and moves (N, K, 4) → (N, K, 4); growth is limited to 62.5×."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2 + moves[..., :2] * size
    half = moves[..., 2:].clamp(max=_MOST_GROWTH).exp() * size / 2
    return torch.cat([centre - half, centre + half], -1)
