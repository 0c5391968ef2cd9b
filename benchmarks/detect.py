"""Speed of PASCAL detection, its metrics and selective search: `python benchmarks/detect.py`.

Needs voc-mini below $CROSSCHANNEL_TEST_DATA, detectron2 (or its sources on PYTHONPATH) for the detectron2 rows, and
opencv-contrib for part 3.

1. A training step of two images with 64 regions each, and a test image with 2,000 regions, at 600 px on torchvision's
   AlexNet: both of our engines, and torchvision's RoIHeads on the same layers.
2. Average precisions on random detections for as many images as in VOC2007's test set, and confidence intervals.
3. Selective search: recall, and images/s with one and two processes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from timing import describe_machine, print_table, race, real_data
from torch import nn
from torchvision.models import alexnet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from crosschannel import load_backbone
from crosschannel.data import Stream, Subset, load_batches
from crosschannel.data.decode import EncodedImage
from crosschannel.models.adapt import trainable_copy
from crosschannel.runs.resampling import intervals
from crosschannel.training.device import autocast, find_device
from crosschannel.training.memory import keep_freed_memory
from transfer.boxes import clip_boxes, from_voc
from transfer.cli import PROGRAM
from transfer.pascal.detections import detection_metrics, detection_rows
from transfer.pascal.devkit import CLASSES, Objects, VOCImages
from transfer.proposals.files import WithProposals, recall
from transfer.proposals.selective_search import SelectiveSearch
from transfer.protocols.detect.net import Detector, FastRCNN
from transfer.protocols.detect.task import detect_in_original_coordinates, filter_by_score
from transfer.protocols.detect.views import AllRegions, DetectionBatch, SampledRegions

_SOURCE = "torchvision:alexnet,weights=none"


class BaselineNet(nn.Module):
    """AlexNet's convolutions, torchvision's RoIHeads with its own sampling, fc6 and fc7."""

    def __init__(self):
        super().__init__()
        net = alexnet()
        self.features, classifier = net.features[:-1], net.classifier
        self.heads = RoIHeads(
            MultiScaleRoIAlign(["0"], 6, 2),
            nn.Sequential(nn.Flatten(), *classifier[:6]),
            _Predictor(),
            0.5, 0.5, 64, 0.25, None, 0.05, 0.3, 100,
        )  # fmt: skip

    def forward(self, x, boxes, truth=None):
        maps = {"0": self.features(x)}
        sizes = [tuple(x.shape[2:])] * len(x)
        detections, losses = self.heads(maps, boxes, sizes, truth)
        return sum(losses.values()) if truth else detections


class _Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores, self.boxes = nn.Linear(4096, 21), nn.Linear(4096, 84)

    def forward(self, x):
        return self.scores(x), self.boxes(x)


def random_proposals(images: VOCImages, count: int) -> WithProposals:
    """Draw up to ``count`` boxes per image, first near the objects, then anywhere."""
    generator, proposals = np.random.default_rng(0), {}
    for index, name in enumerate(images.names):
        truth = from_voc(images.fields(index)["objects"].boxes)
        jittered = np.repeat(truth, 40, 0)
        jittered = jittered + generator.normal(0, 0.15, jittered.shape) * np.tile(jittered[:, 2:] - jittered[:, :2], 2)
        top_left = generator.uniform(0, 300, (2 * count, 2))
        image = EncodedImage(images.read(index))
        boxes = np.concatenate([jittered, np.hstack([top_left, top_left + generator.uniform(20, 200, top_left.shape)])])
        boxes = clip_boxes(boxes, image.height, image.width)
        proposals[name] = boxes[(boxes[:, 2:] > boxes[:, :2] + 2).all(1)][:count].astype(np.float32)
    return WithProposals(images, proposals, "random boxes")


def detectors(device: torch.device) -> dict[str, Detector]:
    config = PROGRAM.parse("detect", ["--config=paper", "--data=x", "--backbone=x"])
    engines = {"--engine torchvision": FastRCNN}
    try:
        from transfer.protocols.detect.with_detectron2 import DetectronRCNN

        engines["--engine detectron2"] = DetectronRCNN
    except ImportError:
        print("\ndetectron2 is not installed; for its rows, install it or put its sources on PYTHONPATH")
    return {
        name: engine(trainable_copy(load_backbone(_SOURCE)), 20, config).to(device) for name, engine in engines.items()
    }


def compare_steps(images: WithProposals, device: torch.device, rounds: int, precision: str) -> None:
    config = PROGRAM.parse("detect", ["--config=paper", "--data=x", "--backbone=x"])
    view = SampledRegions(20, config.sample, (600,), 1000)
    batch: DetectionBatch = next(load_batches(Stream(images, view, 0), 0, 2, 2))
    test: DetectionBatch = next(load_batches(Stream(images, AllRegions(600, 1000)), 0, 1, 1))
    nets, baseline = detectors(device), BaselineNet().to(device)
    any_net = next(iter(nets.values()))
    inputs = any_net.inputs(batch.images, device).x, any_net.inputs(test.images, device).x
    boxes = [r.boxes.to(device) for r in batch.regions], [r.boxes.to(device) for r in test.regions]
    truth = [{"boxes": r.objects.to(device), "labels": r.classes.to(device) + 1} for r in batch.regions]

    def training_step(net: nn.Module, compute_loss) -> object:
        optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)

        def step() -> None:
            net.train()
            with autocast(device, precision):
                loss = compute_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            _synchronize(device)

        return step

    def test_step(net: nn.Module, detect) -> object:
        def run() -> None:
            net.eval()
            with torch.inference_mode(), autocast(device, precision):
                detect()
            _synchronize(device)

        return run

    def mean_loss(net: Detector) -> torch.Tensor:
        loss, count = net(batch)
        return loss / count

    def detect_objects(net: Detector) -> None:
        for detections in detect_in_original_coordinates(net, test):
            filter_by_score(*detections, config.keep)

    script = "a script on torchvision's RoIHeads"
    training = {script: training_step(baseline, lambda: baseline(inputs[0], boxes[0], truth))}
    testing = {script: test_step(baseline, lambda: baseline(inputs[1], boxes[1]))}
    for name, net in nets.items():
        training[name] = training_step(net, lambda net=net: mean_loss(net))
        testing[name] = test_step(net, lambda net=net: detect_objects(net))
    training_times, test_times = race(training, rounds), race(testing, rounds)
    rows = [
        [
            name,
            training_times[name],
            training_times[script] / training_times[name],
            test_times[name],
            test_times[script] / test_times[name],
        ]
        for name in training
    ]
    regions = f"{len(boxes[1][0]):,} regions"
    head = ["", "step of 2 images × 64 regions, s", "speed-up", f"test image with {regions}, s", "speed-up"]
    print_table(f"Fast R-CNN on torchvision's AlexNet at 600 px, {precision}", head, rows)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_metrics(count: int, resamples: int) -> None:
    """Time the metrics of random detections on ``count`` images."""
    generator = np.random.default_rng(0)
    detections, objects = [], []
    for _ in range(count):
        top_left = generator.integers(1, 300, (3, 2))
        truth = np.hstack([top_left, top_left + generator.integers(20, 150, (3, 2))]).astype(float)
        objects.append(Objects(truth, generator.integers(0, 20, 3), generator.random(3) < 0.1))
        jittered = from_voc(np.repeat(truth, 10, 0)) + generator.normal(0, 8, (30, 4))
        top_left = generator.uniform(0, 300, (30, 2))
        boxes = np.concatenate([jittered, np.hstack([top_left, top_left + generator.uniform(20, 150, (30, 2))])])
        labels = np.concatenate([np.repeat(objects[-1].classes, 10), generator.integers(0, 20, 30)])
        detections.append(np.concatenate([labels[:, None], generator.random((60, 1)), boxes], 1))
    start = time.perf_counter()
    rows = detection_rows([str(i) for i in range(count)], CLASSES, detections, objects)
    overlap_seconds = time.perf_counter() - start
    start = time.perf_counter()
    detection_metrics(rows, np.ones((1, count)))
    metric_seconds = time.perf_counter() - start
    start = time.perf_counter()
    intervals(lambda weights: detection_metrics(rows, weights), count, resamples, 0.95, 0)
    interval_seconds = time.perf_counter() - start
    rows = [
        ["overlaps with the objects", overlap_seconds],
        ["all metrics", metric_seconds],
        [f"confidence intervals, {resamples:,} resamples", interval_seconds],
    ]
    print_table(f"{count:,} images, 60 detections each, 20 classes, ten IoU thresholds", ["", "s"], rows)


def time_selective_search(images: VOCImages, count: int) -> None:
    subset = Subset(images, np.linspace(0, len(images) - 1, count).astype(int))
    truths = [from_voc(subset.fields(index)["objects"].boxes) for index in range(count)]
    rows = []
    for mode in ("fast", "quality"):
        speeds = []
        for workers in (1, 2):
            start = time.perf_counter()
            stream, boxes = Stream(subset, SelectiveSearch(mode)), []
            for batch in load_batches(stream, 0, count, 1, workers=workers):
                boxes += batch.boxes
            speeds.append(count / (time.perf_counter() - start))
        mean_count = np.mean([len(image_boxes) for image_boxes in boxes])
        rows.append([mode, f"{mean_count:.0f}", f"{100 * recall(truths, boxes):.1f} %", *speeds])
    head = ["mode", "boxes per image", "recall at IoU 0.5", "images/s, one process", "two processes"]
    print_table(f"Selective search, {count} images, at most 2,000 boxes each", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4952)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--searched", type=int, default=24)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    keep_freed_memory()
    device, devkit = find_device(options.device), real_data("voc-mini") / "VOCdevkit"
    print(describe_machine())
    images = VOCImages(Path(devkit), [("2007", "test")])
    proposals = random_proposals(images, 2000)
    for precision in ("float32", "bfloat16"):
        compare_steps(proposals, device, options.rounds, precision)
    time_metrics(options.images, options.resamples)
    time_selective_search(images, options.searched)


if __name__ == "__main__":
    main()
