"""Fine-tuning task for object detection: evaluation, and filtering of detections."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import ops

from crosschannel.data import Batch, ImageSet, Record, SampleRNG, Stream
from crosschannel.data.decode import BrokenImage
from crosschannel.runs.result import Ragged, Rows
from crosschannel.training.held_out import HeldOut
from crosschannel.training.task import Evaluation
from transfer.finetuning import FineTuning
from transfer.pascal.detections import detection_metrics, detection_rows, draw_detections, draw_objects
from transfer.pascal.devkit import Objects
from transfer.pascal.segmentation import side_by_side
from transfer.protocol import unweighted_metrics
from transfer.protocols.detect.config import FilterConfig
from transfer.protocols.detect.net import Detector
from transfer.protocols.detect.views import AllRegions, DetectionBatch

_DETECTIONS_PER_IMAGE = 40  # adaptive rule: maximum number of detections per class, averaged over images
_MAX_EXAMPLES = 8  # test images visualised after an evaluation


@dataclass(kw_only=True, eq=False)
class Detection(FineTuning):
    """Fine-tuning task for object detection.

    Attributes:
        train: training images, to be evaluated as well; None to evaluate only test images.
        view: view of the evaluation images.
        filter_config: thresholds for filtering detections.
    """

    net: Detector
    train: ImageSet | None
    view: AllRegions
    filter_config: FilterConfig

    def step(self, net: nn.Module, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        return net(batch)

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        rows, broken = self._detect(net, self.test, should_stop)
        metrics = unweighted_metrics(detection_metrics, rows)
        line = f"mAP {100 * metrics['map']:.1f}  AP {100 * metrics['ap']:.1f}"
        if self.train is not None:
            train_metrics = unweighted_metrics(detection_metrics, self._detect(net, self.train, should_stop)[0])
            metrics |= {"train/map": train_metrics["map"]}
            line += f"  training images {100 * train_metrics['map']:.1f}"
        return Evaluation(metrics, len(rows["names"]), rows, broken, line, lambda: self._visualise(net))

    def _detect(self, net: Detector, images: ImageSet, should_stop: Callable[[], bool]) -> tuple[Rows, dict[str, str]]:
        """Return the detections and objects of images, and the error message of each broken image by name."""

        def compute(batch: DetectionBatch) -> list[Tensor]:
            return (
                [self._filter(*output) for output in detect_in_original_coordinates(net, batch)] if len(batch) else []
            )

        # The batch size is 1, because padding in a batch would affect the scores.
        held_out = HeldOut(Stream(images, self.view), compute, self.world, 1, self.workers, should_stop)
        batch_indices, batch_counts = [], [torch.empty(0, dtype=torch.int64)]
        batch_detections = [torch.empty(0, 6)]
        for batch, detections in held_out:
            batch_indices.append(batch.indices)
            batch_counts.append(torch.tensor([len(rows) for rows in detections], dtype=torch.int64))
            batch_detections += [rows.cpu() for rows in detections]
        values = self.world.concatenate(torch.cat(batch_detections).to(self.world.device)).cpu()
        counts = self.world.concatenate(torch.cat(batch_counts).to(self.world.device)).cpu()
        indices = self.world.concatenate(torch.cat([counts[:0], *batch_indices]).to(self.world.device)).cpu()
        order = indices.argsort()
        column = Ragged(values.numpy(), counts.numpy())[order.numpy()]
        detections = np.split(column.values, np.cumsum(column.counts)[:-1])
        if self.filter_config.rule == "adaptive":
            detections = filter_adaptively(detections, len(self.classes), self.filter_config)
        ordered = indices[order].tolist()
        objects = [_objects(images, index) for index in ordered]
        return detection_rows([images.names[i] for i in ordered], self.classes, detections, objects), held_out.broken

    def _filter(self, boxes: Tensor, probabilities: Tensor) -> Tensor:
        """Filter the boxes (R, K, 4) and probabilities (R, K) of one image, and return its detections (D, 6).

        With the adaptive rule, these are candidates for :func:`filter_adaptively`.
        """
        select = class_candidates if self.filter_config.rule == "adaptive" else filter_by_score
        return select(boxes, probabilities, self.filter_config)

    def _visualise(self, net: Detector) -> dict[str, np.ndarray]:
        """Draw the objects and the detections of test images side by side, two images per row."""
        pairs = []
        for index in np.linspace(0, len(self.test) - 1, min(_MAX_EXAMPLES, len(self.test))).astype(int):
            try:
                record = self.test.record(int(index))
                batch, pixels = single_image_batch(record, self.view), record.image().pixels()
            except (BrokenImage, OSError):
                continue
            (detections,) = detect_in_original_coordinates(net, batch)
            best = filter_by_score(*detections, self.filter_config).cpu().numpy()
            pairs.append(
                [
                    draw_objects(pixels, _objects(self.test, int(index)), self.classes),
                    draw_detections(pixels, best, self.classes),
                ]
            )
        rows = [[picture for pair in pairs[i : i + 2] for picture in pair] for i in range(0, len(pairs), 2)]
        return {"detected": side_by_side(rows)} if rows else {}


def _objects(images: ImageSet, index: int) -> Objects:
    return images.fields(index)["objects"]


def single_image_batch(record: Record, view: AllRegions) -> DetectionBatch:
    """Return a batch of one image, with index, label and seed 0."""
    zero = torch.zeros(1, dtype=torch.int64)
    return view.collate([view(record, SampleRNG(0, ()))], Batch(zero, zero, zero, []))


def detect_in_original_coordinates(net: Detector, batch: DetectionBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the boxes (R, K, 4) and probabilities (R, K) of each image in a batch.

    Boxes are in pixels of the image before it was resized, and clipped to the image.
    """
    for image, size, (boxes, probabilities) in zip(
        batch.images, batch.original_sizes.tolist(), net.detect(batch), strict=True
    ):
        height, width = size
        scale = boxes.new_tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
        limits = boxes.new_tensor([width, height, width, height])
        yield torch.minimum((boxes * scale).clamp(min=0), limits), probabilities


def filter_by_score(boxes: Tensor, probabilities: Tensor, config: FilterConfig) -> Tensor:
    """Apply the score threshold, per-class NMS and the limit per image to the detections of one image.

    Args:
        boxes, probabilities: (R, K, 4) boxes and (R, K) probabilities of R regions and K classes.
        config: thresholds.

    Returns:
        (D, 6) float32: class, score, x₁ y₁ x₂ y₂; highest score first.
    """
    regions, classes = (probabilities > config.score).nonzero(as_tuple=True)
    scores, boxes = probabilities[regions, classes], boxes[regions, classes]
    best = ops.batched_nms(boxes, scores, classes, config.nms)[: config.most]
    return torch.cat([classes[best, None].to(boxes), scores[best, None], boxes[best]], 1)


def class_candidates(boxes: Tensor, probabilities: Tensor, config: FilterConfig) -> Tensor:
    """Return the highest-scoring detections of each class in one image, for :func:`filter_adaptively`: (D, 6)."""
    count, classes = min(config.most, len(boxes)), probabilities.shape[1]
    scores, regions = probabilities.topk(count, 0)  # (count, K)
    labels = torch.arange(classes, device=boxes.device).expand(count, classes)
    top_boxes = boxes[regions, labels]
    return torch.cat([labels[..., None].to(boxes), scores[..., None], top_boxes], -1).reshape(-1, 6)


def filter_adaptively(detections: Sequence[np.ndarray], classes: int, config: FilterConfig) -> list[np.ndarray]:
    """Apply Fast R-CNN's adaptive score thresholds, then per-class NMS.

    The threshold of a class is such that, on average over all images, at most 40 detections per image exceed it.

    Args:
        detections: (D, 6) candidates of each image.
        classes: number of classes.
        config: thresholds.

    Returns:
        (D', 6) detections of each image.
    """
    candidates = np.concatenate(detections)
    limit, thresholds = _DETECTIONS_PER_IMAGE * len(detections), np.full(classes, -np.inf)
    for label in range(classes):
        scores = candidates[candidates[:, 0] == label, 1]
        if len(scores) > limit:
            thresholds[label] = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    filtered = []
    for rows in detections:
        above_threshold = torch.from_numpy(rows[rows[:, 1] > thresholds[rows[:, 0].astype(int)]])
        best = ops.batched_nms(above_threshold[:, 2:], above_threshold[:, 1], above_threshold[:, 0], config.nms)
        filtered.append(above_threshold[best].numpy())
    return filtered
