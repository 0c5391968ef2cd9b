"""PASCAL segmentation and dense neighbours compared with torchvision and faiss: `python benchmarks/segment.py`.

Needs voc-mini below $CROSSCHANNEL_TEST_DATA, and faiss-cpu for part 3.

1. Evaluation on whole images, compared with its forward passes only, and its memory.
2. Training step on crops, by `transfer segment` and by a minimal script.
3. Nearest training feature vectors of test feature vectors, by our search and by faiss's exact index.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import describe_machine, print_table, race, real_data
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


def resident_mib() -> float:
    """Return the resident memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def compare_evaluation(images: MaskedImages, count: int, fc: int, device: torch.device, workers: int) -> None:
    """Evaluate on ``count`` whole images, repeating the data set."""
    repeated = Subset(images, np.arange(count) % len(images))
    repeated.classes = images.classes
    net = Segmenter(load_backbone(f"gaussian:alexnet,fc={fc}", device=device), CLASSES, stride=8).to(device).eval()
    memory: list[float] = []
    task = Segmentation(
        net=net,
        init_weights=lambda _: None,
        test=repeated,
        classes=images.classes,
        world=join_world(device),
        workers=workers,
    )

    def record_memory() -> bool:
        memory.append(resident_mib())
        return False

    with torch.inference_mode():
        forward_seconds = time_forward(task, net, images, count, device)
        start = time.perf_counter()
        task.evaluate(net, record_memory)
        total_seconds = time.perf_counter() - start
    rows = [
        ["forward passes only", count / forward_seconds, 1.0],
        ["complete evaluation", count / total_seconds, total_seconds / forward_seconds],
    ]
    title = f"{count} whole test images, FCN-8s on AlexNet (fc {fc}); workers: {workers}"
    print_table(title, ["", "images/s", "relative time"], rows)
    print(
        f"memory after a quarter of the images: {memory[len(memory) // 4]:.0f} MiB, at the end: {memory[-1]:.0f} MiB, "
        f"maximum: {max(memory):.0f} MiB"
    )


def time_forward(task: Segmentation, net: Segmenter, images: MaskedImages, count: int, device: torch.device) -> float:
    """Return the time of the forward passes of ``count`` images, up to the logits of all classes, in seconds.

    The images are preprocessed beforehand, and grouped by size as in an evaluation.
    """
    groups = []
    for batch in load_batches(Stream(images, WholeImages(CLASSES)), 0, min(count, len(images)), 4):
        groups += [task.preprocess_group(group) for group in batch.groups]
    net([groups[0]])
    start, image_count, index = time.perf_counter(), 0, 0
    while image_count < count:
        x = groups[index % len(groups)]
        net([x])
        image_count, index = image_count + len(x), index + 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * count / image_count


class BaselineImages(Dataset):
    """Input pipeline of a typical script: Pillow, and torchvision's joint transforms of image and mask."""

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
        index %= len(self.images)
        image = tv_tensors.Image(v2.functional.pil_to_tensor(Image.open(self.images.images[index]).convert("RGB")))
        mask = tv_tensors.Mask(torch.from_numpy(np.array(Image.open(self.images.masks[index].path))))
        return self.transform(image, mask)


class BaselineNet(nn.Module):
    """FCN-32s on the paper's AlexNet, as a minimal script would define it."""

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


def time_script(images: MaskedImages, steps: int, fc: int, device: torch.device, workers: int) -> float:
    """Return the time of all steps after the first five, in seconds."""
    net = BaselineNet(fc).to(device).train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1e-4, momentum=0.9, weight_decay=5e-4)
    start = 0.0
    loader = DataLoader(BaselineImages(images, BATCH * steps), BATCH, num_workers=workers)
    for step, (pixels, masks) in enumerate(loader):
        if step == 5:
            start = time.perf_counter()
        loss = F.cross_entropy(net(pixels.to(device).float()), masks.to(device).long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def time_protocol(devkit: Path, steps: int, fc: int, device: torch.device, workers: int, precision: str) -> float:
    """Return the time of all steps after the first five, in seconds."""
    starts: list[float] = []
    original_step, original_evaluate = Segmentation.step, Segmentation.evaluate

    def timed_step(*arguments):
        starts.append(time.perf_counter())
        return original_step(*arguments)

    def timed_evaluate(*arguments):
        starts.append(time.perf_counter())
        return original_evaluate(*arguments)

    config = PROGRAM.parse("segment", ["--config=voc-mini", f"--data={devkit}", "--backbone=x", f"--device={device}"])
    config.crop, config.pad, config.stride, config.upsampling, config.scale = CROP, 100, 0, "deconvolution", (0.5, 2.0)
    config.fc, config.calibrate, config.optim = fc, False, OptimConfig("sgd", 1e-4, weight_decay=5e-4, bias_lr=2)
    config.train = TrainConfig(BATCH, steps=steps, precision=precision, compile=False)
    config.runtime = RuntimeConfig(workers, 10**9, 2, 10**9, 10**9, tensorboard=False)
    split = open_masks(str(devkit), config)
    test = Subset(split.test, np.arange(2))
    test.classes = split.classes
    Segmentation.step, Segmentation.evaluate = timed_step, timed_evaluate
    try:
        backbone = load_backbone("gaussian:alexnet,fc=0", device=device)
        with tempfile.TemporaryDirectory() as out:
            transfer.segment(backbone, (split.train, test), config, out=Path(out) / "run")
    finally:
        Segmentation.step, Segmentation.evaluate = original_step, original_evaluate
    return starts[-1] - starts[5]


def compare_training(
    devkit: Path, images: MaskedImages, steps: int, fc: int, device: torch.device, workers: int
) -> None:
    count = BATCH * (steps - 5)
    baseline_seconds = time_script(images, steps, fc, device, workers)
    rows = [["script with torchvision, float32", count / baseline_seconds, 1.0]]
    for precision in ("float32", "auto"):
        seconds = time_protocol(devkit, steps, fc, device, workers, precision)
        rows.append([f"transfer segment, {precision}", count / seconds, baseline_seconds / seconds])
    title = f"FCN-32s on AlexNet (fc {fc}), crops of {CROP} px, batch {BATCH}"
    print_table(title, ["", "images/s", "speed-up"], rows)


def compare_neighbours(images: tuple[MaskedImages, MaskedImages], device: torch.device) -> None:
    """Search among the conv5 features of a random AlexNet at 227 px: 13 × 13 points per image."""
    try:
        import faiss
    except ImportError:
        print("\nfaiss is not installed; pip install faiss-cpu for part 3")
        return
    faiss.omp_set_num_threads(torch.get_num_threads())
    backbone = load_backbone("random:alexnet,fc=0,data=builtin:sample")
    features = []
    with torch.no_grad():
        for split in images:
            batches = load_batches(Stream(split, Squashed(227)), 0, len(split), 32)
            maps = torch.cat([backbone(batch.images, ["conv5"])["conv5"] for batch in batches])
            features.append(maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]))
    bank, queries = features
    unit_bank, unit_queries = (F.normalize(vectors, dim=1).numpy() for vectors in features)
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(unit_bank)
    results = {}
    device_bank = bank.to(device)

    def search_ours() -> None:
        results["ours"] = neighbours(queries, device_bank, 30, device)

    def search_faiss() -> None:
        results["faiss"] = index.search(unit_queries, 30)

    best = race({"crosschannel": search_ours, "faiss, IndexFlatIP": search_faiss}, rounds=3)
    (indices, cosines), (faiss_cosines, faiss_indices) = results["ours"], results["faiss"]
    agreement = (indices.numpy() == faiss_indices).mean()
    rows = [[name, seconds, best["faiss, IndexFlatIP"] / seconds] for name, seconds in best.items()]
    title = f"30 neighbours of {len(queries):,} points among {len(bank):,} points, {bank.shape[1]} channels"
    print_table(title, ["", "s", "speed-up"], rows)
    difference = np.abs(cosines.numpy() - faiss_cosines).max()
    print(f"{100 * agreement:.2f} % of the neighbours agree; maximum difference of the cosines: {difference:.1e}")


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
    print(describe_machine())
    compare_evaluation(split.test, options.images, options.fc, device, options.workers)
    compare_training(devkit, split.train, options.steps, options.fc, device, options.workers)
    compare_neighbours((split.train, split.test), device)


if __name__ == "__main__":
    main()
