"""Scaling with the number of images and with training settings: `python benchmarks/scaling.py [--images 10000 …]`.

Part 1 opens, shuffles and resumes data sets of different sizes. Image files are empty and shards are sparse files,
since only names and offsets are read. Part 2 trains with different batch sizes, crop sizes and numbers of
workers and ranks.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from timing import describe_machine, peak_memory, print_table, real_data, run_in_subprocess

from crosschannel.data import CropConfig, Stream, TrainingCrops, open_training_images
from crosschannel.data.shards import Row, format_index
from crosschannel.runs.folder import read_metrics

IMAGE_BYTES = 110_000  # size of a typical ImageNet photograph
IMAGES_PER_SHARD = 10_000


def create_folder(root: Path, count: int) -> None:
    """Create ``count`` empty files in 1,000 class folders, with names like ImageNet's."""
    for label in range(1000):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for i in range(count // 1000):
            (folder / f"n{label:08d}_{i}.JPEG").touch()


def create_shards(root: Path, count: int) -> None:
    """Create sparse tar files, in which only the last member has a valid header, and their index files."""
    root.mkdir()
    step = 512 + (IMAGE_BYTES + 511) // 512 * 512
    for shard, first in enumerate(range(0, count, IMAGES_PER_SHARD)):
        rows = []
        for i in range(min(IMAGES_PER_SHARD, count - first)):
            rows.append(Row(512 + i * step, IMAGE_BYTES, i % 1000, f"{first + i:08d}_n{i % 1000:08d}_{i}.jpg"))
        path = root / f"train-{shard:06d}.tar"
        info = tarfile.TarInfo(rows[-1].name)
        info.size = IMAGE_BYTES
        with path.open("wb") as file:
            file.truncate(rows[-1].offset + step)
            file.seek(rows[-1].offset - 512)
            file.write(info.tobuf())
        path.with_name(path.name + ".idx").write_text(format_index(rows, path.stat().st_size))


def measure_opening(data: str) -> None:
    """Print the time and memory of opening a data set, shuffling it and resuming within an epoch, as JSON.

    Must run in a new process.
    """
    open_training_images("builtin:sample")  # loads the modules, which should not count
    initial_memory, seconds = peak_memory(), []

    def measure(call) -> object:
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
        return result

    images = measure(lambda: open_training_images(data))
    after_opening = peak_memory()
    stream = Stream(images, TrainingCrops(CropConfig()), 0)
    measure(lambda: stream.image_index(0, 0))
    measure(lambda: stream.image_index(30 * len(images) + len(images) // 2, 0))  # the middle of another epoch
    extra = [(after_opening - initial_memory) / 2**20, (peak_memory() - after_opening) / 2**20]
    print(json.dumps({"images": len(images), "seconds": seconds, "mib": extra}))


def compare_sizes(counts: list[int]) -> None:
    rows = []
    for count in counts:
        for kind, create_data in (("folder", create_folder), ("shards", create_shards)):
            with tempfile.TemporaryDirectory() as folder:
                create_data(Path(folder) / "data", count)
                result = run_in_subprocess(sys.argv[0], "--opening", str(Path(folder) / "data"))
            mib = (round(value, 1) for value in result["mib"])
            rows.append((f"{result['images']:,}", kind, *result["seconds"], *mib))
    head = (
        "images", "storage", "open, s", "shuffle, s", "seek to the middle of an epoch, s", "file list, MiB",
        "order of an epoch, MiB",
    )  # fmt: skip
    print_table("Opening, shuffling, resuming", head, rows)


def training_speed(data: Path, *overrides: str, ranks: int = 1, steps: int = 24) -> float:
    """Return the images/s of `crosschannel pretrain --config imagenette`, start-up excluded."""
    command = [sys.executable, "-m", "crosschannel.cli"]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m", "crosschannel.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks))}
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--config=imagenette", f"--data={data}", f"--out={folder}/run", "--val_images=16"]
        flags += [f"--train.steps={steps}", f"--runtime.log_every={steps // 4}", "--runtime.tensorboard=false"]
        subprocess.run([*command, "pretrain", *flags, *overrides], check=True, env=environment, capture_output=True)
        rows = [row["train/images_per_s"] for row in read_metrics(Path(folder) / "run") if "train/loss" in row]
    return max(rows[1:])


def compare_settings(data: Path) -> None:
    rows = [("batch", batch, training_speed(data, f"--train.batch={batch}")) for batch in (16, 64, 256)]
    rows += [
        ("crop", crop, training_speed(data, f"--crop.size={crop}", f"--crop.resize={crop * 9 // 8}"))
        for crop in (96, 128, 176)
    ]
    rows += [("workers", workers, training_speed(data, f"--runtime.workers={workers}")) for workers in (0, 1, 2)]
    rows += [
        ("ranks, one worker each", ranks, training_speed(data, "--runtime.workers=1", ranks=ranks)) for ranks in (1, 2)
    ]
    rounded = [(setting, value, round(speed)) for setting, value, speed in rows]
    print_table("`--config imagenette` with one setting changed", ("setting", "value", "images/s"), rounded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000, 1_300_000])
    parser.add_argument("--training", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--opening", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.opening:
        measure_opening(options.opening)
        return
    print(describe_machine())
    compare_sizes(options.images)
    if options.training:
        compare_settings(real_data("imagenette"))


if __name__ == "__main__":
    main()
