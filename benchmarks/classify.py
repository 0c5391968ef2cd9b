"""PASCAL classification and SVMs compared with torchvision and scikit-learn: `python benchmarks/classify.py`.

Needs voc-mini below $CROSSCHANNEL_TEST_DATA.

1. Input: random-scale crops of the same images, by our stream and by Pillow and torchvision in a DataLoader.
2. Training step: fine-tuning all layers of the same AlexNet, by `transfer classify` and by a minimal script.
3. SVMs on one layer, C by cross-validation: the code of `transfer svm` and a scikit-learn loop.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from timing import describe_machine, print_table, race, real_data
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import transfer
from crosschannel import load_backbone
from crosschannel.config.training import OptimConfig, RuntimeConfig, TrainConfig
from crosschannel.data import Stream, load_batches
from crosschannel.training.device import find_device
from crosschannel.training.memory import keep_freed_memory
from transfer.linear_models import Processes, project_onto_span
from transfer.pascal.config import PascalConfig
from transfer.pascal.devkit import VOCImages, open_devkit
from transfer.protocols.classify.config import ClassifyConfig
from transfer.protocols.classify.task import Classification, RandomScaleCrops
from transfer.protocols.svm.classifiers import cross_validated_scores

SIZE, BATCH = 227, 16


class BaselineImages(Dataset):
    """Input pipeline of a typical script: Pillow and torchvision's transforms on the same crop windows."""

    def __init__(self, images: VOCImages, length: int):
        self.paths = [images.image_path(i) for i in range(len(images))]
        self.labels, self.length = torch.from_numpy(images.labels), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = v2.functional.pil_to_tensor(Image.open(self.paths[index % len(self.paths)]).convert("RGB"))
        height, width = image.shape[1:]
        max_scale = min(2.0, height / SIZE, width / SIZE)
        scale = float(torch.empty(1).uniform_(min(0.5, max_scale), max_scale))
        side = int(SIZE * scale)
        top, left = int(torch.randint(height - side + 1, (1,))), int(torch.randint(width - side + 1, (1,)))
        crop = v2.functional.resized_crop(image, top, left, side, side, [SIZE, SIZE], antialias=False)
        crop = v2.functional.horizontal_flip(crop) if torch.rand(1) < 0.5 else crop
        return crop, self.labels[index % len(self.paths)]


def compare_input(images: VOCImages, workers: int) -> None:
    count = 20 * len(images)
    stream = Stream(images, RandomScaleCrops(SIZE), 0)

    def ours() -> None:
        for _ in load_batches(stream, 0, count, BATCH, workers=workers):
            pass

    def baseline() -> None:
        for _ in DataLoader(BaselineImages(images, count), BATCH, num_workers=workers):
            pass

    best = race({"crosschannel": ours, "Pillow and torchvision": baseline}, rounds=3)
    rows = [[name, count / seconds, best["Pillow and torchvision"] / seconds] for name, seconds in best.items()]
    print_table(f"Random-scale crops of {SIZE} px; workers: {workers}", ["", "images/s", "speed-up"], rows)


class BaselineNet(nn.Module):
    """The paper's AlexNet on lightness, as a minimal script would define it."""

    def __init__(self, fc: int):
        super().__init__()
        pool, relu = nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(inplace=True)
        self.net = nn.Sequential(
            nn.Conv2d(1, 96, 11, 4), relu, pool, nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, pool,
            nn.Conv2d(256, 384, 3, padding=1), relu, nn.Conv2d(384, 384, 3, padding=1, groups=2), relu,
            nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool, nn.Flatten(),
            nn.Linear(9216, fc), relu, nn.Dropout(), nn.Linear(fc, fc), relu, nn.Dropout(), nn.Linear(fc, 20),
        )  # fmt: skip

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        return self.net(v2.functional.rgb_to_grayscale(rgb) / 2.55 - 50)


def time_script(images: VOCImages, steps: int, fc: int, device: torch.device, workers: int) -> tuple[float, float]:
    """Return the time of all steps after the first five, and how much of it is spent waiting for images, in seconds."""
    net = BaselineNet(fc).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=1e-6)
    loader = iter(DataLoader(BaselineImages(images, BATCH * steps), BATCH, num_workers=workers))
    start, wait_seconds = 0.0, 0.0
    for step in range(steps):
        if step == 5:
            start, wait_seconds = time.perf_counter(), 0.0
        wait_start = time.perf_counter()
        pixels, labels = next(loader)
        wait_seconds += time.perf_counter() - wait_start
        labels = labels.to(device)
        losses = nn.functional.binary_cross_entropy_with_logits(
            net(pixels.to(device).float()), (labels == 1).float(), (labels >= 0).float(), reduction="sum"
        )
        optimizer.zero_grad()
        (losses / BATCH).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
    return time.perf_counter() - start, wait_seconds


def time_protocol(
    devkit: Path, steps: int, fc: int, device: torch.device, workers: int, precision: str
) -> tuple[float, float]:
    """Return the time of all steps after the first five, and of their forward passes, in seconds."""
    starts: list[float] = []
    forward: list[float] = []
    original_step, original_evaluate = Classification.step, Classification.evaluate

    def timed_step(*arguments):
        starts.append(time.perf_counter())
        result = original_step(*arguments)
        forward.append(time.perf_counter() - starts[-1])
        return result

    def timed_evaluate(*arguments):
        starts.append(time.perf_counter())
        return original_evaluate(*arguments)

    config = ClassifyConfig(
        "", "", test_crops=1, calibrate=False, fc=fc, device=str(device), test_set="2007:test",
        optim=OptimConfig("sgd", 1e-3, weight_decay=1e-6, bias_lr=2, bias_decay=True, clip=10),
        train=TrainConfig(BATCH, steps=steps, precision=precision, compile=False),
        runtime=RuntimeConfig(workers, log_every=10**9, checkpoint_every=10**9, eval_every=10**9, tensorboard=False),
    )  # fmt: skip
    Classification.step, Classification.evaluate = timed_step, timed_evaluate
    try:
        backbone = load_backbone("gaussian:alexnet,fc=0", device=device)
        split = open_devkit(str(devkit), PascalConfig("", ""))
        with tempfile.TemporaryDirectory() as out:
            transfer.classify(backbone, split, "all", config, out=Path(out) / "run")
    finally:
        Classification.step, Classification.evaluate = original_step, original_evaluate
    return starts[-1] - starts[5], sum(forward[5:])


def compare_training(devkit: Path, images: VOCImages, steps: int, fc: int, device: torch.device, workers: int) -> None:
    rows, count = [], BATCH * (steps - 5)
    baseline_seconds, wait_seconds = time_script(images, steps, fc, device, workers)
    rows.append(
        [
            "script, float32",
            count / baseline_seconds,
            1.0,
            f"{100 * wait_seconds / baseline_seconds:.0f} % waiting for images",
        ]
    )
    for precision in ("float32", "auto"):
        seconds, forward = time_protocol(devkit, steps, fc, device, workers, precision)
        fraction = f"{100 * forward / seconds:.0f} % forward pass"
        rows.append([f"transfer classify, {precision}", count / seconds, baseline_seconds / seconds, fraction])
    title = f"Fine-tuning all layers of AlexNet (fc {fc}), batch {BATCH}"
    print_table(title, ["", "images/s", "speed-up", "fraction of the time"], rows)


def compare_svms(images: tuple[VOCImages, VOCImages], costs: list[float]) -> None:
    """Fit 20 SVMs on conv5 of a random AlexNet, pooled to 6 × 6 positions: 9,216 features."""
    backbone = load_backbone("random:alexnet,fc=0")
    features = []
    for split in images:
        batches = load_batches(Stream(split, RandomScaleCrops(SIZE)), 0, len(split), 64)
        with torch.no_grad():
            maps = torch.cat([backbone(batch.images, ["conv5"])["conv5"] for batch in batches])
        flat = nn.functional.adaptive_avg_pool2d(maps, 6).flatten(1)
        features.append((flat / flat.norm(dim=1, keepdim=True)).numpy())
    labels, options = images[0].labels == 1, {"class_weight": {1: 2, -1: 1}, "max_iter": 2000}

    start = time.perf_counter()
    for number in range(20):
        y = np.where(labels[:, number], 1, -1)
        folds = min(3, int(labels[:, number].sum()))
        scores = [
            cross_val_score(LinearSVC(C=c, **options), features[0], y, cv=folds, scoring="average_precision").mean()
            for c in costs
        ]
        LinearSVC(C=costs[int(np.argmax(scores))], **options).fit(features[0], y).decision_function(features[1])
    baseline_seconds = time.perf_counter() - start

    rows = [["a scikit-learn loop", baseline_seconds, 1.0]]
    for jobs in (1, 2):
        start = time.perf_counter()
        with Processes(jobs) as processes:
            projected, directions = project_onto_span(features[0])
            shared = [processes.share(array) for array in (projected, features[1] @ directions)]
            tasks = [(labels[:, number].astype(np.int8), costs, 3, 0) for number in range(20)]
            processes.run(cross_validated_scores, shared, tasks)
        seconds = time.perf_counter() - start
        rows.append([f"crosschannel, {jobs} process{'es' * (jobs > 1)}", seconds, baseline_seconds / seconds])
    title = f"20 SVMs on {len(images[0])} images × 9,216 features, {len(costs)} values of C by cross-validation"
    print_table(title, ["", "s", "speed-up"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--fc", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    keep_freed_memory()
    device, devkit = find_device(options.device), real_data("voc-mini") / "VOCdevkit"
    split = open_devkit(str(devkit), PascalConfig("", ""))
    print(describe_machine())
    compare_input(split.train, options.workers)
    compare_training(devkit, split.train, options.steps, options.fc, device, options.workers)
    compare_svms((split.train, split.test), [0.1, 1.0, 10.0, 100.0])


if __name__ == "__main__":
    main()
