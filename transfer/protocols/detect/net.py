"""Fast R-CNN (Girshick, ICCV 2015) on any backbone, with torchvision's operations.

Regions are pooled from the feature map of one layer and passed through the layers of the backbone above it. A predictor
returns a softmax over the classes and background, and one box per class. (Caffe's models also have a box for
background, which is never trained.)
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

_MAX_LOG_SCALE = math.log(1000 / 16)  # upper bound for the predicted log scale of a box's side
_MIN_SIDE = 64  # pixels; the short side of a very long image could be too small for a backbone
REGION_BATCH = 500  # regions of a test image per forward pass, to bound the memory of maps with 1,024 × 14² values


@dataclass
class Inputs:
    """Preprocessed images of a batch.

    Attributes:
        x: (N, C, H, W) images, padded with zeros below and to the right.
        sizes: (height, width) of each image without padding.
    """

    x: Tensor
    sizes: list[tuple[int, int]]


class BoxPredictor(nn.Module):
    """Linear layers that predict class scores and boxes of regions.

    Args:
        channels: number of features per region.
        classes: number of classes, K.

    Attributes:
        target_mean, target_std: (K, 4) mean and std of the box targets; the predictions are (targets - mean) / std.

    Shape:
        (R, channels) → scores (R, K + 1), with background last, and box predictions (R, 4 K).
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(channels, classes + 1), nn.Linear(channels, 4 * classes)
        self.register_buffer("target_mean", torch.zeros(classes, 4))
        self.register_buffer("target_std", torch.tensor(BOX_STDS).repeat(classes, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class RegionScores(nn.Module):
    """New layers on top of the backbone: neck and box predictor.

    Args:
        neck: layers between the backbone's head and the predictor.
        classes: number of classes.
    """

    def __init__(self, neck: Neck, classes: int):
        super().__init__()
        self.neck, self.box_predictor = neck, BoxPredictor(neck.channels, classes)


class Detector(FineTuned):
    """Base class of object detectors; a subclass implements ``losses`` and ``predict`` with one engine.

    Args:
        backbone: copy of a backbone to train.
        classes: number of classes, K.
        config: config of the protocol.
        score: builds the module of new layers from (plan, neck); it has the attributes ``neck`` and ``box_predictor``.

    Attributes:
        plan: RoI pooling and head of the backbone.
        map_channels: number of channels of the map that regions are pooled from.
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
            raise UserError(f"roi.norm needs the head c4; the head of this backbone is {plan.head}")
        super().__init__(backbone, score(plan, Neck(plan, roi.width, roi.norm)), config.dropout)
        self.plan, self.classes, self.config = plan, classes, config
        self.layers, self.map_channels = (plan.top,), backbone.width(plan.layer)
        self.reset_scores()

    def reset_scores(self) -> None:
        """Re-initialise the new layers.

        Weights of the predictor are drawn from N(0, 0.01) for scores and N(0, 0.001) for boxes; its biases are 0.
        """
        self.score.neck.reset()
        predictor = self.score.box_predictor
        for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def set_target_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and std (K, 4) that normalise box targets."""
        predictor = self.score.box_predictor
        predictor.target_mean.copy_(mean)
        predictor.target_std.copy_(std)

    def inputs(self, images: Sequence[Tensor], device: torch.device) -> Inputs:
        """Preprocess images (3, H, W) uint8, and pad them to one size."""
        preprocessed = [self.preprocess(image[None].to(device, non_blocking=True))[0] for image in images]
        step = self.plan.step
        sides = [max(_MIN_SIDE, *(image.shape[axis] for image in preprocessed)) for axis in (1, 2)]
        height, width = (-(-side // step) * step for side in sides)
        x = preprocessed[0].new_zeros(len(preprocessed), preprocessed[0].shape[0], height, width)
        for padded, image in zip(x, preprocessed, strict=True):
            padded[:, : image.shape[1], : image.shape[2]] = image
        return Inputs(x, [tuple(image.shape[1:]) for image in preprocessed])

    def forward(self, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a batch, and the count to divide it by."""
        return self.losses(*self._to_device(batch))

    def detect(self, batch: DetectionBatch) -> list[tuple[Tensor, Tensor]]:
        """Predict the boxes (R, K, 4) and probabilities (R, K) of each image's regions.

        Boxes are in pixels of the resized image, and not clipped to it.
        """
        return self.predict(*self._to_device(batch))

    def _to_device(self, batch: DetectionBatch) -> tuple[Inputs, list[Regions]]:
        device = self.score.box_predictor.cls_score.weight.device
        regions = map_tensors(batch.regions, lambda tensor: tensor.to(device, non_blocking=True))
        return self.inputs(batch.images, device), regions

    def losses(self, inputs: Inputs, regions: Sequence[Regions]) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a batch, and the count to divide it by."""
        raise NotImplementedError

    def predict(self, inputs: Inputs, regions: Sequence[Regions]) -> list[tuple[Tensor, Tensor]]:
        """Predict the boxes (R, K, 4) and probabilities (R, K) of each image's regions; see :meth:`detect`."""
        raise NotImplementedError

    def region_features(self, maps: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Compute the features (R, D) of boxes from feature maps."""
        return self.score.neck(self.backbone_head(pool_regions(maps, boxes, self.plan)))

    def backbone_head(self, pooled: Tensor) -> Tensor:
        """Apply the backbone layers that belong to the head to pooled maps."""
        layers = [self.backbone.get_module(name) for name in self.plan.parts]
        return head_maps(layers, pooled, self.dropout, self.training)

    def feature_map(self, x: Tensor) -> Tensor:
        """Compute the map that regions are pooled from."""
        return self.backbone.features(x, [self.plan.layer])[self.plan.layer]


class FastRCNN(Detector):
    """Fast R-CNN with torchvision's operations."""

    def __init__(self, backbone: Backbone, classes: int, config: DetectConfig):
        super().__init__(backbone, classes, config, lambda _, neck: RegionScores(neck, classes))

    def losses(self, inputs: Inputs, regions: Sequence[Regions]) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and the number of regions to divide it by.

        The loss is the cross-entropy of all regions plus the smooth L1 loss of the boxes of foreground regions.
        """
        features = self.region_features(self.feature_map(inputs.x), [r.boxes for r in regions])
        scores, deltas = (outputs.float() for outputs in self.score.box_predictor(features))
        boxes = torch.cat([r.boxes for r in regions])
        labels, targets = torch.cat([r.labels for r in regions]), torch.cat([r.targets for r in regions])
        loss = F.cross_entropy(scores, labels, reduction="sum")
        foreground = (labels < self.classes).nonzero()[:, 0]
        classes = labels[foreground]
        predictor = self.score.box_predictor
        target_deltas = (
            encode_boxes(boxes[foreground], targets[foreground]) - predictor.target_mean[classes]
        ) / predictor.target_std[classes]
        predicted_deltas = deltas.view(-1, self.classes, 4)[foreground, classes]
        box_loss = F.smooth_l1_loss(predicted_deltas, target_deltas, reduction="sum", beta=self.config.sample.beta)
        return loss + box_loss, loss.new_tensor(float(len(labels)))

    def predict(self, inputs: Inputs, regions: Sequence[Regions]) -> list[tuple[Tensor, Tensor]]:
        maps, predictor = self.feature_map(inputs.x), self.score.box_predictor
        predictions = []
        for i, image_regions in enumerate(regions):
            boxes = [image_regions.boxes.new_empty(0, self.classes, 4)]
            probabilities = [image_regions.boxes.new_empty(0, self.classes)]
            for chunk in image_regions.boxes.split(REGION_BATCH):
                scores, deltas = predictor(self.region_features(maps[i : i + 1], [chunk]))
                deltas = deltas.float().view(-1, self.classes, 4) * predictor.target_std + predictor.target_mean
                boxes.append(decode_boxes(chunk[:, None], deltas))
                probabilities.append(scores.float().softmax(1)[:, :-1])
            predictions.append((torch.cat(boxes), torch.cat(probabilities)))
        return predictions


def encode_boxes(boxes: Tensor, targets: Tensor) -> Tensor:
    """Encode the offsets from boxes to targets as R-CNN does: (N, 4), (N, 4) → (N, 4).

    The offsets are the shift of the centre, relative to the size of the box, and the log ratios of the sides.
    """
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + target_size / 2 - boxes[:, :2] - size / 2) / size
    return torch.cat([shift, (target_size / size).log()], 1)


def decode_boxes(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Apply encoded offsets to boxes, the inverse of :func:`encode_boxes`: (N, 1, 4), (N, K, 4) → (N, K, 4).

    Sides are scaled by at most 62.5.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2 + deltas[..., :2] * size
    half = deltas[..., 2:].clamp(max=_MAX_LOG_SCALE).exp() * size / 2
    return torch.cat([centre - half, centre + half], -1)
