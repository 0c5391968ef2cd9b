"""What fine-tuning for detection learns and how it is scored: a task for the one loop."""

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
from transfer.pascal.detections import detection_figures, detection_rows, drawn, drawn_objects
from transfer.pascal.devkit import Objects
from transfer.pascal.segmentation import side_by_side
from transfer.protocol import unweighted_metrics
from transfer.protocols.detect.config import KeepConfig
from transfer.protocols.detect.net import Detector
from transfer.protocols.detect.views import AllRegions, DetectionBatch

_AN_IMAGE = 40  # detections of a class that the adaptive rule keeps, over all images
_SHOWN = 8


@dataclass(kw_only=True, eq=False)
class Detection(FineTuning):
    """Fine-tuning task for detection.

    Attributes:
        train: training images if they are scored too, else None.
        view: view of the images that are scored.
        keep: which detections are kept.
    """

    net: Detector
    train: ImageSet | None
    view: AllRegions
    keep: KeepConfig

    def step(self, net: nn.Module, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        return net(batch)

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        rows, broken = self._scored(net, self.test, should_stop)
        figures = unweighted_metrics(detection_figures, rows)
        line = f"mAP {100 * figures['map']:.1f}  AP {100 * figures['ap']:.1f}"
        if self.train is not None:
            found = unweighted_metrics(detection_figures, self._scored(net, self.train, should_stop)[0])
            figures |= {"train/map": found["map"]}
            line += f"  training images {100 * found['map']:.1f}"
        return Evaluation(figures, len(rows["names"]), rows, broken, line, lambda: self._pictures(net))

    def _scored(self, net: Detector, images: ImageSet, should_stop: Callable[[], bool]) -> tuple[Rows, dict[str, str]]:
        def compute(batch: DetectionBatch) -> list[Tensor]:
            return [self.kept(*one) for one in detect_in_original_coordinates(net, batch)] if len(batch) else []

        # One image at a time: what is no image of a batch would be scored with it.
        held_out = HeldOut(Stream(images, self.view), compute, self.world, 1, self.workers, should_stop)
        indices, counts = [], [torch.empty(0, dtype=torch.int64)]
        found = [torch.empty(0, 6)]
        for batch, detections in held_out:
            indices.append(batch.indices)
            counts.append(torch.tensor([len(one) for one in detections], dtype=torch.int64))
            found += [one.cpu() for one in detections]
        everything = self.world.concatenate(torch.cat(found).to(self.world.device)).cpu()
        numbers = self.world.concatenate(torch.cat(counts).to(self.world.device)).cpu()
        seen = self.world.concatenate(torch.cat([numbers[:0], *indices]).to(self.world.device)).cpu()
        order = seen.argsort()
        column = Ragged(everything.numpy(), numbers.numpy())[order.numpy()]
        detections = np.split(column.values, np.cumsum(column.counts)[:-1])
        if self.keep.rule == "adaptive":
            detections = filter_adaptively(detections, len(self.classes), self.keep)
        places = seen[order].tolist()
        objects = [objects_of(images, index) for index in places]
        return detection_rows([images.names[i] for i in places], self.classes, detections, objects), held_out.broken

    def kept(self, boxes: Tensor, probabilities: Tensor) -> Tensor:
        """What is kept of one image's boxes (R, K, 4) and probabilities (R, K): (D, 6)."""
        return (class_candidates if self.keep.rule == "adaptive" else filter_by_score)(boxes, probabilities, self.keep)

    def _pictures(self, net: Detector) -> dict[str, np.ndarray]:
        """Test images with their objects and, beside them, what is found; two images a row."""
        pairs = []
        for index in np.linspace(0, len(self.test) - 1, min(_SHOWN, len(self.test))).astype(int):
            try:
                record = self.test.record(int(index))
                batch, pixels = batch_of(record, self.view), record.image().pixels()
            except (BrokenImage, OSError):
                continue
            (found,) = detect_in_original_coordinates(net, batch)
            best = filter_by_score(*found, self.keep).cpu().numpy()
            pairs.append(
                [
                    drawn_objects(pixels, objects_of(self.test, int(index)), self.classes),
                    drawn(pixels, best, self.classes),
                ]
            )
        rows = [[picture for pair in pairs[i : i + 2] for picture in pair] for i in range(0, len(pairs), 2)]
        return {"detected": side_by_side(rows)} if rows else {}


def objects_of(images: ImageSet, index: int) -> Objects:
    """The objects of an image."""
    return images.fields(index)["objects"]


def batch_of(record: Record, view: AllRegions) -> DetectionBatch:
    """One image as a batch."""
    none = torch.zeros(1, dtype=torch.int64)
    return view.collate([view(record, SampleRNG(0, ()))], Batch(none, none, none, []))


def detect_in_original_coordinates(net: Detector, batch: DetectionBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """What a net says of a batch, in pixels that the images had before they were resized, clipped to them: of each
    boxes (R, K, 4) and probabilities (R, K)."""
    for image, size, (boxes, probabilities) in zip(batch.images, batch.sizes.tolist(), net.detect(batch), strict=True):
        height, width = size
        scale = boxes.new_tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
        limits = boxes.new_tensor([width, height, width, height])
        yield torch.minimum((boxes * scale).clamp(min=0), limits), probabilities


def filter_by_score(boxes: Tensor, probabilities: Tensor, keep: KeepConfig) -> Tensor:
    """Detections above a score, the best of those of a class that overlap, the best ones of the image.

    Args:
        boxes, probabilities: (R, K, 4), (R, K).
        keep: how.

    Returns:
        (D, 6) float32: class, score, x₁ y₁ x₂ y₂; the best first.
    """
    regions, classes = (probabilities > keep.score).nonzero(as_tuple=True)
    scores, boxes = probabilities[regions, classes], boxes[regions, classes]
    best = ops.batched_nms(boxes, scores, classes, keep.nms)[: keep.most]
    return torch.cat([classes[best, None].to(boxes), scores[best, None], boxes[best]], 1)


def class_candidates(boxes: Tensor, probabilities: Tensor, keep: KeepConfig) -> Tensor:
    """The best of each class, for :func:`filter_adaptively`: (D, 6)."""
    count, classes = min(keep.most, len(boxes)), probabilities.shape[1]
    scores, regions = probabilities.topk(count, 0)  # (count, K)
    numbers = torch.arange(classes, device=boxes.device).expand(count, classes)
    chosen = boxes[regions, numbers]
    return torch.cat([numbers[..., None].to(boxes), scores[..., None], chosen], -1).reshape(-1, 6)


def filter_adaptively(detections: Sequence[np.ndarray], classes: int, keep: KeepConfig) -> list[np.ndarray]:
    """Fast R-CNN's rule: a class's threshold is such that no more than 40 an image are above it, over all images; then
    the best of those that overlap.

    Args:
        detections: (D, 6) of each image.
        classes: K.
        keep: how.
    """
    everything = np.concatenate(detections)
    most, thresholds = _AN_IMAGE * len(detections), np.full(classes, -np.inf)
    for number in range(classes):
        scores = everything[everything[:, 0] == number, 1]
        if len(scores) > most:
            thresholds[number] = np.partition(scores, len(scores) - most)[len(scores) - most]
    found = []
    for one in detections:
        above = torch.from_numpy(one[one[:, 1] > thresholds[one[:, 0].astype(int)]])
        best = ops.batched_nms(above[:, 2:], above[:, 1], above[:, 0], keep.nms)
        found.append(above[best].numpy())
    return found
