"""Images a second of the whole input pipeline, from encoded files to uint8 crops in the training process, against
Pillow and torchvision's transforms in a DataLoader on the same files: `python benchmarks/loader.py`.

Needs photographs: imagenet-full (as they were taken) and imagenet-256 (short side 256) below $CROSSCHANNEL_TEST_DATA.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from timing import apart, machine, real_data, table
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from crosschannel.cli import main as crosschannel
from crosschannel.data import CropConfig, Stream, TrainingCrops, load_batches, open_training_images

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from range_server import start_server

BATCH = 64
CROPS = {
    "random": CropConfig(176, 256, "random"),
    "random-resized": CropConfig(128, 144, "random-resized", (0.25, 1.0)),
}


class UsualImages(Dataset):
    """What a user would write: open with Pillow, torchvision's transforms."""

    def __init__(self, folder: Path, crop: CropConfig):
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if crop.kind == "random":
            cut = [v2.Resize(crop.resize), v2.RandomCrop(crop.size)]
        else:
            cut = [v2.RandomResizedCrop(crop.size, crop.area)]
        self.transform = v2.Compose([*cut, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def usual(folder: Path, crop: CropConfig, workers: int) -> Iterable[torch.Tensor]:
    dataset = UsualImages(folder, crop)
    sampler = torch.utils.data.RandomSampler(dataset, num_samples=10**9)
    return DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers, prefetch_factor=4 if workers else None)


def ours(data: Path | str, crop: CropConfig, workers: int) -> Iterable[torch.Tensor]:
    stream = Stream(open_training_images(str(data)), TrainingCrops(crop), 0)
    return (batch.images for batch in load_batches(stream, 0, 10**9, BATCH, workers=workers))


def speeds(sides: dict[str, Callable[[], Iterable[torch.Tensor]]], batches: int, rounds: int) -> dict[str, float]:
    """The most images a second of each side; sides take turns, and start-up is not counted."""
    best = dict.fromkeys(sides, 0.0)
    for _ in range(rounds):
        for name, make in sides.items():
            running = iter(make())
            for _ in range(4):  # workers start, caches fill
                next(running)
            begun = time.perf_counter()
            count = sum(len(images) for images in islice(running, batches))
            best[name] = max(best[name], count / (time.perf_counter() - begun))
            del running
    return best


def compare(options: argparse.Namespace, raw: Path, small: Path, shards: Path) -> None:
    for kind, crop in CROPS.items():
        for workers in options.workers:
            sides = {
                ("raw photographs", "usual"): lambda c=crop, w=workers: usual(raw, c, w),
                ("raw photographs", "crosschannel"): lambda c=crop, w=workers: ours(raw, c, w),
                ("256 px files", "usual"): lambda c=crop, w=workers: usual(small, c, w),
                ("256 px files", "crosschannel"): lambda c=crop, w=workers: ours(small, c, w),
                ("256 px shards", "crosschannel"): lambda c=crop, w=workers: ours(shards, c, w),
            }
            best = speeds(sides, options.batches, options.rounds)
            rows = []
            for (data, side), speed in best.items():
                same = best[("256 px files" if "256" in data else data, "usual")]
                rows.append((data, side, round(speed), speed / same, speed / best[("raw photographs", "usual")]))
            head = ("data", "side", "images/s", "times usual", "times usual on raw")
            table(f"{kind} crops of {crop.size} px, {workers} workers", head, rows)


def startup(options: argparse.Namespace, small: Path, shards: Path) -> None:
    crop, rows = CROPS["random"], []
    for workers in options.workers:
        for name, make, data in (("usual", usual, small), ("crosschannel", ours, shards)):
            begun = time.perf_counter()
            next(iter(make(data, crop, workers)))
            rows.append((name, workers, time.perf_counter() - begun))
    table("From opening the data to the first batch", ("side", "workers", "s"), rows)


def over_http(options: argparse.Namespace, shards: Path, port: int = 8765) -> None:
    crop, address = CROPS["random"], f"http://127.0.0.1:{port}"
    server = start_server(shards, port)
    try:
        for workers in options.workers:
            before, begun = busy(server.pid), time.perf_counter()
            sides = {"disk": lambda w=workers: ours(shards, crop, w), "http": lambda w=workers: ours(address, crop, w)}
            best = speeds(sides, options.batches, options.rounds)
            share = (busy(server.pid) - before) / (time.perf_counter() - begun)
            rows = [(name, round(speed), speed / best["disk"]) for name, speed in best.items()]
            title = f"256 px shards from the disk and from a local server, {workers} workers"
            table(f"{title} (the server took {share:.0%} of a core)", ("", "images/s", "of disk"), rows)
    finally:
        server.kill()


def busy(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of a process that no other shares, and its part of those that others share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def memory(shards: Path) -> None:
    """Run in a process of its own: memory of the process and its workers along two epochs, as JSON."""
    stream = Stream(open_training_images(str(shards)), TrainingCrops(CROPS["random"]), 0)
    per_epoch = len(stream.images) // BATCH
    seen = []
    for number, _ in enumerate(load_batches(stream, 0, 10**9, BATCH, workers=2)):
        if number in (5, per_epoch // 2, per_epoch, 2 * per_epoch, 10 * per_epoch):
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            seen.append((number * BATCH, sum(resident(int(pid)) for pid in (os.getpid(), *children)) / 2**20))
        if number > 10 * per_epoch:
            break
    print(json.dumps({"memory": seen}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the pipeline alone: no pipeline gets more than its processes
    if options.memory:
        memory(options.memory)
        return
    print(
        machine(), f"batches of {BATCH}, best of {options.rounds} runs of {options.batches} batches, in turns", sep="; "
    )
    raw, small = real_data("imagenet-full"), real_data("imagenet-256")
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        crosschannel(["shard", str(small), str(shards), "--size=256", "--shard_mb=16"])
        compare(options, raw, small, shards)
        startup(options, small, shards)
        rows = apart(sys.argv[0], "--memory", str(shards))["memory"]
        table("Memory of the process and two workers", ("images seen", "MiB"), rows)
        over_http(options, shards)


if __name__ == "__main__":
    main()
