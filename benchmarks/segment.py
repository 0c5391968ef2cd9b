"""PASCAL segmentation against what one would write with torchvision, and dense neighbours against faiss:
`python benchmarks/segment.py`. Needs voc-mini below $CROSSCHANNEL_TEST_DATA, and faiss-cpu for the last part.

1. An evaluation over whole images against the forward passes alone, and the memory that it holds on the way.
2. A training step on crops: `transfer segment`'s task and loop against a minimal script.
3. Neighbours of the points of test images among those of training images: ours against faiss' exact index.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import machine, race, real_data, table
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import transfer
from crosschannel import load_backbone
from crosschannel.config.training import OptimConfig, RuntimeConfig, TrainConfig
from crosschannel.data import Stream, Subset, load_batches
from crosschannel.data.views import Squashed
from crosschannel.training.device import find_device
from crosschannel.training.memory import keep_freed_memory
from crosschannel.training.ranks import join_world
from transfer.cli import PROGRAM
from transfer.neighbours import neighbours
from transfer.pascal.masks import MaskedImages, open_masks
from transfer.protocols.segment.net import Segmenter
from transfer.protocols.segment.task import Segmentation
from transfer.protocols.segment.views import WholeImages

CROP, BATCH, CLASSES = 224, 8, 21


def resident() -> float:
    """MiB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def evaluation(images: MaskedImages, count: int, fc: int, device: torch.device, workers: int) -> None:
    """Whole images again and again."""
    many = Subset(images, np.arange(count) % len(images))
    many.classes = images.classes
    net = Segmenter(load_backbone(f"gaussian:alexnet,fc={fc}", device=device), CLASSES, stride=8).to(device).eval()
    held: list[float] = []
    task = Segmentation(
        net=net,
        init_weights=lambda _: None,
        test=many,
        classes=images.classes,
        world=join_world(device),
        workers=workers,
    )

    def watch() -> bool:
        held.append(resident())
        return False

    with torch.inference_mode():
        passes = alone(task, net, images, count, device)
        begun = time.perf_counter()
        task.evaluate(net, watch)
        whole = time.perf_counter() - begun
    rows = [["forward passes alone", count / passes, 1.0], ["evaluation", count / whole, whole / passes]]
    table(f"{count} whole images, FCN-8s, fc {fc}, {workers} workers", ["what", "images/s", "cost"], rows)
    print(
        f"held after a quarter of the images {held[len(held) // 4]:.0f} MiB, at the end {held[-1]:.0f} MiB, "
        f"at most {max(held):.0f} MiB"
    )


def alone(task: Segmentation, net: Segmenter, images: MaskedImages, count: int, device: torch.device) -> float:
    """Seconds of the forward passes (logits of all classes) over images that are there, preprocessed, and grouped by
    size as evaluations do."""
    groups = []
    for batch in load_batches(Stream(images, WholeImages(CLASSES)), 0, min(count, len(images)), 4):
        groups += [task.preprocess_group(group) for group in batch.groups]
    net([groups[0]])
    begun, seen, place = time.perf_counter(), 0, 0
    while seen < count:
        x = groups[place % len(groups)]
        net([x])
        seen, place = seen + len(x), place + 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begun) * count / seen


class Files(Dataset):
    """What a user would write: Pillow, and torchvision's transforms of image and mask together."""

    def __init__(self, images: MaskedImages, length: int):
        self.images, self.length = images, length
        self.transform = v2.Compose(
            [
                v2.ScaleJitter((CROP, CROP), (0.5, 2.0), antialias=True),
                v2.RandomCrop(CROP, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = index % len(self.images)
        image = tv_tensors.Image(v2.functional.pil_to_tensor(Image.open(self.images.images[place]).convert("RGB")))
        mask = tv_tensors.Mask(torch.from_numpy(np.array(Image.open(self.images.masks[place].path))))
        return self.transform(image, mask)


class Restated(nn.Module):
    """FCN-32s on the paper's AlexNet, as a script would have it."""

    def __init__(self, fc: int):
        super().__init__()
        pool, relu = nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(inplace=True)
        self.net = nn.Sequential(
            nn.Conv2d(1, 96, 11, 4, 100), relu, pool, nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, pool,
            nn.Conv2d(256, 384, 3, padding=1), relu, nn.Conv2d(384, 384, 3, padding=1, groups=2), relu,
            nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool,
            nn.Conv2d(256, fc, 6), relu, nn.Dropout(), nn.Conv2d(fc, fc, 1), relu, nn.Dropout(),
            nn.Conv2d(fc, CLASSES, 1),
        )  # fmt: skip
        self.up = nn.ConvTranspose2d(CLASSES, CLASSES, 63, 32, groups=CLASSES, bias=False).requires_grad_(False)

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        up = self.up(self.net(v2.functional.rgb_to_grayscale(rgb) / 2.55 - 50))
        return up[:, :, 18 : 18 + rgb.shape[2], 18 : 18 + rgb.shape[3]]


def by_hand(images: MaskedImages, steps: int, fc: int, device: torch.device, workers: int) -> float:
    """Seconds of all steps but the first few."""
    net = Restated(fc).to(device).train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1e-4, momentum=0.9, weight_decay=5e-4)
    begun = 0.0
    for step, (pixels, masks) in enumerate(DataLoader(Files(images, BATCH * steps), BATCH, num_workers=workers)):
        if step == 5:
            begun = time.perf_counter()
        loss = F.cross_entropy(net(pixels.to(device).float()), masks.to(device).long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def ours(devkit: Path, steps: int, fc: int, device: torch.device, workers: int, precision: str) -> float:
    """Seconds of all steps but the first few."""
    marks: list[float] = []
    original, evaluate = Segmentation.step, Segmentation.evaluate

    def step(*arguments):
        marks.append(time.perf_counter())
        return original(*arguments)

    def ended(*arguments):
        marks.append(time.perf_counter())
        return evaluate(*arguments)

    config = PROGRAM.parse("segment", ["--config=voc-mini", f"--data={devkit}", "--backbone=x", f"--device={device}"])
    config.crop, config.pad, config.stride, config.upsampling, config.scale = CROP, 100, 0, "deconvolution", (0.5, 2.0)
    config.fc, config.calibrate, config.optim = fc, False, OptimConfig("sgd", 1e-4, weight_decay=5e-4, bias_lr=2)
    config.train = TrainConfig(BATCH, steps=steps, precision=precision, compile=False)
    config.runtime = RuntimeConfig(workers, 10**9, 2, 10**9, 10**9, tensorboard=False)
    split = open_masks(str(devkit), config)
    few = Subset(split.test, np.arange(2))
    few.classes = split.classes
    Segmentation.step, Segmentation.evaluate = step, ended
    try:
        backbone = load_backbone("gaussian:alexnet,fc=0", device=device)
        with tempfile.TemporaryDirectory() as out:
            transfer.segment(backbone, (split.train, few), config, out=Path(out) / "run")
    finally:
        Segmentation.step, Segmentation.evaluate = original, evaluate
    return marks[-1] - marks[5]


def training(devkit: Path, images: MaskedImages, steps: int, fc: int, device: torch.device, workers: int) -> None:
    count = BATCH * (steps - 5)
    theirs = by_hand(images, steps, fc, device, workers)
    rows = [["a script with torchvision, float32", count / theirs, 1.0]]
    for precision in ("float32", "auto"):
        seconds = ours(devkit, steps, fc, device, workers, precision)
        rows.append([f"transfer segment, {precision}", count / seconds, theirs / seconds])
    table(f"FCN-32s on AlexNet (fc {fc}), crops of {CROP} px, batch {BATCH}", ["side", "images/s", "ratio"], rows)


def dense_neighbours(images: tuple[MaskedImages, MaskedImages], device: torch.device) -> None:
    """Points of conv5 of a random AlexNet at 227 px: 13 × 13 an image."""
    try:
        import faiss
    except ImportError:
        print("\nno faiss: pip install faiss-cpu for the last part")
        return
    faiss.omp_set_num_threads(torch.get_num_threads())
    backbone = load_backbone("random:alexnet,fc=0,data=builtin:sample")
    sides = []
    with torch.no_grad():
        for part in images:
            batches = load_batches(Stream(part, Squashed(227)), 0, len(part), 32)
            maps = torch.cat([backbone(batch.images, ["conv5"])["conv5"] for batch in batches])
            sides.append(maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]))
    bank, queries = sides
    unit = [F.normalize(side, dim=1).numpy() for side in sides]
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(unit[0])
    found = {}
    held = bank.to(device)

    def by_us() -> None:
        found["ours"] = neighbours(queries, held, 30, device)

    def by_faiss() -> None:
        found["faiss"] = index.search(unit[1], 30)

    best = race({"ours": by_us, "faiss, IndexFlatIP": by_faiss}, rounds=3)
    (where, cosines), (theirs, places) = found["ours"], found["faiss"]
    same = (where.numpy() == places).mean()
    rows = [[name, seconds, best["faiss, IndexFlatIP"] / seconds] for name, seconds in best.items()]
    title = f"30 neighbours of {len(queries):,} points among {len(bank):,}, {bank.shape[1]} channels"
    table(title, ["side", "s", "ratio"], rows)
    print(
        f"greatest difference of cosines {np.abs(cosines.numpy() - theirs).max():.1e}; {100 * same:.2f} % the same ones"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--fc", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    keep_freed_memory()
    device, devkit = find_device(options.device), real_data("voc-mini") / "VOCdevkit"
    split = open_masks(str(devkit), PROGRAM.parse("segment", ["--config=voc-mini", f"--data={devkit}", "--backbone=x"]))
    print(machine())
    evaluation(split.test, options.images, options.fc, device, options.workers)
    training(devkit, split.train, options.steps, options.fc, device, options.workers)
    dense_neighbours((split.train, split.test), device)


if __name__ == "__main__":
    main()
