"""Images/s of the input pipeline compared with Pillow and torchvision in a DataLoader: `python benchmarks/loader.py`.

Both sides turn the same encoded files into uint8 crops in the training process. Needs imagenet-full (original sizes)
and imagenet-256 (short side 256) below $CROSSCHANNEL_TEST_DATA.
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
from timing import describe_machine, print_table, real_data, run_in_subprocess
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from crosschannel.cli import main as crosschannel
from crosschannel.data import CropConfig, Stream, TrainingCrops, load_batches, open_training_images

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from range_server import start_server

BATCH = 64
BASELINE = "Pillow + torchvision"
CROPS = {
    "random": CropConfig(176, 256, "random"),
    "random-resized": CropConfig(128, 144, "random-resized", (0.25, 1.0)),
}


class BaselineImages(Dataset):
    """Input pipeline of a typical script: Pillow and torchvision's transforms."""

    def __init__(self, folder: Path, crop: CropConfig):
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if crop.kind == "random":
            crops = [v2.Resize(crop.resize), v2.RandomCrop(crop.size)]
        else:
            crops = [v2.RandomResizedCrop(crop.size, crop.area)]
        self.transform = v2.Compose([*crops, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def load_baseline(folder: Path, crop: CropConfig, workers: int) -> Iterable[torch.Tensor]:
    dataset = BaselineImages(folder, crop)
    sampler = torch.utils.data.RandomSampler(dataset, num_samples=10**9)
    return DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers, prefetch_factor=4 if workers else None)


def load_ours(data: Path | str, crop: CropConfig, workers: int) -> Iterable[torch.Tensor]:
    stream = Stream(open_training_images(str(data)), TrainingCrops(crop), 0)
    return (batch.images for batch in load_batches(stream, 0, 10**9, BATCH, workers=workers))


def best_speeds(
    loaders: dict[str, Callable[[], Iterable[torch.Tensor]]], batches: int, rounds: int
) -> dict[str, float]:
    """Return the highest images/s of each loader over alternating rounds, start-up excluded."""
    best = dict.fromkeys(loaders, 0.0)
    for _ in range(rounds):
        for name, create_loader in loaders.items():
            loader = iter(create_loader())
            for _ in range(4):  # workers start and caches fill
                next(loader)
            start = time.perf_counter()
            count = sum(len(images) for images in islice(loader, batches))
            best[name] = max(best[name], count / (time.perf_counter() - start))
            del loader
    return best


def compare(options: argparse.Namespace, raw: Path, small: Path, shards: Path) -> None:
    for kind, crop in CROPS.items():
        for workers in options.workers:
            loaders = {
                ("raw photographs", BASELINE): lambda c=crop, w=workers: load_baseline(raw, c, w),
                ("raw photographs", "crosschannel"): lambda c=crop, w=workers: load_ours(raw, c, w),
                ("256 px files", BASELINE): lambda c=crop, w=workers: load_baseline(small, c, w),
                ("256 px files", "crosschannel"): lambda c=crop, w=workers: load_ours(small, c, w),
                ("256 px shards", "crosschannel"): lambda c=crop, w=workers: load_ours(shards, c, w),
            }
            best = best_speeds(loaders, options.batches, options.rounds)
            rows = []
            for (data, name), speed in best.items():
                baseline = best[("256 px files" if "256" in data else data, BASELINE)]
                rows.append((data, name, round(speed), speed / baseline, speed / best[("raw photographs", BASELINE)]))
            head = ("data", "loader", "images/s", "speed-up", "speed-up over the baseline on raw photographs")
            print_table(f"{kind} crops of {crop.size} px; workers: {workers}", head, rows)


def time_startup(options: argparse.Namespace, small: Path, shards: Path) -> None:
    crop, rows = CROPS["random"], []
    for workers in options.workers:
        for name, load, data in ((BASELINE, load_baseline, small), ("crosschannel", load_ours, shards)):
            start = time.perf_counter()
            next(iter(load(data, crop, workers)))
            rows.append((name, workers, time.perf_counter() - start))
    print_table("From opening the data to the first batch", ("loader", "workers", "s"), rows)


def compare_http(options: argparse.Namespace, shards: Path, port: int = 8765) -> None:
    crop, address = CROPS["random"], f"http://127.0.0.1:{port}"
    server = start_server(shards, port)
    try:
        for workers in options.workers:
            cpu_before, start = cpu_seconds(server.pid), time.perf_counter()
            loaders = {
                "disk": lambda w=workers: load_ours(shards, crop, w),
                "http": lambda w=workers: load_ours(address, crop, w),
            }
            best = best_speeds(loaders, options.batches, options.rounds)
            cpu_load = (cpu_seconds(server.pid) - cpu_before) / (time.perf_counter() - start)
            rows = [(name, round(speed), speed / best["disk"]) for name, speed in best.items()]
            title = f"256 px shards from disk and from a local HTTP server; workers: {workers}"
            print_table(
                f"{title} (the server used {cpu_load:.0%} of a core)", ("", "images/s", "relative to disk"), rows
            )
    finally:
        server.kill()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_set_size(pid: int) -> int:
    """Return the memory of a process in bytes, where shared pages count proportionally."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def measure_memory(shards: Path) -> None:
    """Print the memory of this process and its workers over ten epochs, as JSON.

    Must run in a new process.
    """
    stream = Stream(open_training_images(str(shards)), TrainingCrops(CROPS["random"]), 0)
    batches_per_epoch = len(stream.images) // BATCH
    measurements = []
    for step, _ in enumerate(load_batches(stream, 0, 10**9, BATCH, workers=2)):
        if step in (5, batches_per_epoch // 2, batches_per_epoch, 2 * batches_per_epoch, 10 * batches_per_epoch):
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            pids = (os.getpid(), *children)
            measurements.append((step * BATCH, sum(proportional_set_size(int(pid)) for pid in pids) / 2**20))
        if step > 10 * batches_per_epoch:
            break
    print(json.dumps({"memory": measurements}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that neither pipeline uses more cores than it has processes
    if options.memory:
        measure_memory(options.memory)
        return
    print(
        describe_machine(),
        f"batches of {BATCH}, best of {options.rounds} alternating runs of {options.batches} batches",
        sep="; ",
    )
    raw, small = real_data("imagenet-full"), real_data("imagenet-256")
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        crosschannel(["shard", str(small), str(shards), "--size=256", "--shard_mb=16"])
        compare(options, raw, small, shards)
        time_startup(options, small, shards)
        rows = run_in_subprocess(sys.argv[0], "--memory", str(shards))["memory"]
        print_table("Memory of the process and two workers", ("images read", "MiB"), rows)
        compare_http(options, shards)


if __name__ == "__main__":
    main()
