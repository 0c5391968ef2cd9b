"""PASCAL classification against what one would write with torchvision, and SVMs against a plain scikit-learn loop:
`python benchmarks/classify.py`. Needs voc-mini below $CROSSCHANNEL_TEST_DATA.

1. The input: crops of random scale of the same images, by our stream and by Pillow and torchvision in a DataLoader.
2. The whole step: the same AlexNet, fine-tuned whole, by `transfer classify` and by a minimal script.
3. SVMs of one layer, C by cross-validation, by `transfer svm` and by scikit-learn alone.
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
from timing import machine, race, real_data, table
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


class Files(Dataset):
    """What a user would write: Pillow, and torchvision's functional transforms on the same windows."""

    def __init__(self, images: VOCImages, length: int):
        self.paths = [images.image_path(i) for i in range(len(images))]
        self.labels, self.length = torch.from_numpy(images.labels), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = v2.functional.pil_to_tensor(Image.open(self.paths[index % len(self.paths)]).convert("RGB"))
        height, width = image.shape[1:]
        most = min(2.0, height / SIZE, width / SIZE)
        scale = float(torch.empty(1).uniform_(min(0.5, most), most))
        side = int(SIZE * scale)
        top, left = int(torch.randint(height - side + 1, (1,))), int(torch.randint(width - side + 1, (1,)))
        crop = v2.functional.resized_crop(image, top, left, side, side, [SIZE, SIZE], antialias=False)
        crop = v2.functional.horizontal_flip(crop) if torch.rand(1) < 0.5 else crop
        return crop, self.labels[index % len(self.paths)]


def input_pipeline(images: VOCImages, workers: int) -> None:
    count = 20 * len(images)
    stream = Stream(images, RandomScaleCrops(SIZE), 0)

    def ours() -> None:
        for _ in load_batches(stream, 0, count, BATCH, workers=workers):
            pass

    def theirs() -> None:
        for _ in DataLoader(Files(images, count), BATCH, num_workers=workers):
            pass

    best = race({"ours": ours, "Pillow and torchvision": theirs}, rounds=3)
    rows = [[name, count / seconds, best["Pillow and torchvision"] / seconds] for name, seconds in best.items()]
    table(f"Random-scale crops of {SIZE} px, {workers} workers", ["side", "images/s", "ratio"], rows)


class Restated(nn.Module):
    """The paper's AlexNet on lightness, as a script would have it."""

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


def by_hand(images: VOCImages, steps: int, fc: int, device: torch.device, workers: int) -> tuple[float, float]:
    """Seconds of all steps but the first few, and the part of them that waits for images."""
    net = Restated(fc).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=1e-6)
    loader = iter(DataLoader(Files(images, BATCH * steps), BATCH, num_workers=workers))
    begun, waited = 0.0, 0.0
    for step in range(steps):
        if step == 5:
            begun, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        pixels, labels = next(loader)
        waited += time.perf_counter() - asked
        labels = labels.to(device)
        losses = nn.functional.binary_cross_entropy_with_logits(
            net(pixels.to(device).float()), (labels == 1).float(), (labels >= 0).float(), reduction="sum"
        )
        optimizer.zero_grad()
        (losses / BATCH).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
    return time.perf_counter() - begun, waited


def ours(devkit: Path, steps: int, fc: int, device: torch.device, workers: int, precision: str) -> tuple[float, float]:
    """Seconds of all steps but the first few, and those inside the task's forward pass."""
    marks: list[float] = []
    inside: list[float] = []
    original, evaluate = Classification.step, Classification.evaluate

    def step(*arguments):
        marks.append(time.perf_counter())
        found = original(*arguments)
        inside.append(time.perf_counter() - marks[-1])
        return found

    def ended(*arguments):
        marks.append(time.perf_counter())
        return evaluate(*arguments)

    config = ClassifyConfig(
        "", "", test_crops=1, calibrate=False, fc=fc, device=str(device), test_set="2007:test",
        optim=OptimConfig("sgd", 1e-3, weight_decay=1e-6, bias_lr=2, bias_decay=True, clip=10),
        train=TrainConfig(BATCH, steps=steps, precision=precision, compile=False),
        runtime=RuntimeConfig(workers, log_every=10**9, checkpoint_every=10**9, eval_every=10**9, tensorboard=False),
    )  # fmt: skip
    Classification.step, Classification.evaluate = step, ended
    try:
        backbone = load_backbone("gaussian:alexnet,fc=0", device=device)
        split = open_devkit(str(devkit), PascalConfig("", ""))
        with tempfile.TemporaryDirectory() as out:
            transfer.classify(backbone, split, "all", config, out=Path(out) / "run")
    finally:
        Classification.step, Classification.evaluate = original, evaluate
    return marks[-1] - marks[5], sum(inside[5:])


def whole_step(devkit: Path, images: VOCImages, steps: int, fc: int, device: torch.device, workers: int) -> None:
    rows, count = [], BATCH * (steps - 5)
    theirs, waited = by_hand(images, steps, fc, device, workers)
    rows.append(["a script with torchvision, float32", count / theirs, 1.0, f"{100 * waited / theirs:.0f} % waiting"])
    for precision in ("float32", "auto"):
        seconds, inside = ours(devkit, steps, fc, device, workers, precision)
        share = f"{100 * inside / seconds:.0f} % forward"
        rows.append([f"transfer classify, {precision}", count / seconds, theirs / seconds, share])
    table(f"Fine-tuning all of an AlexNet (fc {fc}), batch {BATCH}", ["side", "images/s", "ratio", "share"], rows)


def svms(images: tuple[VOCImages, VOCImages], costs: list[float]) -> None:
    """On conv5 of a random AlexNet, pooled to 6² positions: 9,216 numbers."""
    backbone = load_backbone("random:alexnet,fc=0")
    features = []
    for part in images:
        batches = load_batches(Stream(part, RandomScaleCrops(SIZE)), 0, len(part), 64)
        with torch.no_grad():
            maps = torch.cat([backbone(batch.images, ["conv5"])["conv5"] for batch in batches])
        flat = nn.functional.adaptive_avg_pool2d(maps, 6).flatten(1)
        features.append((flat / flat.norm(dim=1, keepdim=True)).numpy())
    labels, options = images[0].labels == 1, {"class_weight": {1: 2, -1: 1}, "max_iter": 2000}

    begun = time.perf_counter()
    for number in range(20):
        y = np.where(labels[:, number], 1, -1)
        folds = min(3, int(labels[:, number].sum()))
        scores = [
            cross_val_score(LinearSVC(C=c, **options), features[0], y, cv=folds, scoring="average_precision").mean()
            for c in costs
        ]
        LinearSVC(C=costs[int(np.argmax(scores))], **options).fit(features[0], y).decision_function(features[1])
    plain = time.perf_counter() - begun

    rows = [["a scikit-learn loop", plain, 1.0]]
    for jobs in (1, 2):
        begun = time.perf_counter()
        with Processes(jobs) as processes:
            short, directions = project_onto_span(features[0])
            shared = [processes.share(array) for array in (short, features[1] @ directions)]
            tasks = [(labels[:, number].astype(np.int8), costs, 3, 0) for number in range(20)]
            processes.run(cross_validated_scores, shared, tasks)
        seconds = time.perf_counter() - begun
        rows.append([f"ours, {jobs} process{'es' * (jobs > 1)}", seconds, plain / seconds])
    table(
        f"20 SVMs on {len(images[0])} images of 9,216 numbers, {len(costs)} values of C", ["side", "s", "ratio"], rows
    )


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
    print(machine())
    input_pipeline(split.train, options.workers)
    whole_step(devkit, split.train, options.steps, options.fc, device, options.workers)
    svms((split.train, split.test), [0.1, 1.0, 10.0, 100.0])


if __name__ == "__main__":
    main()
