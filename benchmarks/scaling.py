"""What grows with what: opening, shuffling and resuming against the number of images; training against batch, crop,
workers and ranks: `python benchmarks/scaling.py [--images 10000 100000 1300000]`.

The images of the first part are empty files and the shards sparse ones: only their names and places are read.
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
from timing import apart, machine, peak_memory, real_data, table

from crosschannel.data import CropConfig, Stream, TrainingCrops, open_training_images
from crosschannel.data.shards import Row, format_index
from crosschannel.runs.folder import read_metrics

BYTES = 110_000  # of an ImageNet photograph
PER_SHARD = 10_000


def make_folder(root: Path, count: int) -> None:
    """``count`` empty files in 1,000 classes, named as ImageNet's are."""
    for label in range(1000):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for i in range(count // 1000):
            (folder / f"n{label:08d}_{i}.JPEG").touch()


def make_shards(root: Path, count: int) -> None:
    """Sparse tars with true headers for their last members, and their indices."""
    root.mkdir()
    step = 512 + (BYTES + 511) // 512 * 512
    for shard, first in enumerate(range(0, count, PER_SHARD)):
        rows = []
        for i in range(min(PER_SHARD, count - first)):
            rows.append(Row(512 + i * step, BYTES, i % 1000, f"{first + i:08d}_n{i % 1000:08d}_{i}.jpg"))
        path = root / f"train-{shard:06d}.tar"
        info = tarfile.TarInfo(rows[-1].name)
        info.size = BYTES
        with path.open("wb") as file:
            file.truncate(rows[-1].offset + step)
            file.seek(rows[-1].offset - 512)
            file.write(info.tobuf())
        path.with_name(path.name + ".idx").write_text(format_index(rows, path.stat().st_size))


def opening(data: str) -> None:
    """In a process of its own: seconds and bytes of opening, shuffling and going on in the middle, as JSON."""
    open_training_images("builtin:sample")  # imports
    before, seconds = peak_memory(), []

    def measure(call) -> object:
        begun = time.perf_counter()
        made = call()
        seconds.append(time.perf_counter() - begun)
        return made

    images = measure(lambda: open_training_images(data))
    opened = peak_memory()
    stream = Stream(images, TrainingCrops(CropConfig()), 0)
    measure(lambda: stream.image_index(0, 0))
    measure(lambda: stream.image_index(30 * len(images) + len(images) // 2, 0))  # another epoch, half of it done
    extra = [(opened - before) / 2**20, (peak_memory() - opened) / 2**20]
    print(json.dumps({"images": len(images), "seconds": seconds, "mib": extra}))


def by_images(counts: list[int]) -> None:
    rows = []
    for count in counts:
        for kind, make in (("folder", make_folder), ("shards", make_shards)):
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder) / "data", count)
                got = apart(sys.argv[0], "--opening", str(Path(folder) / "data"))
            rows.append((f"{got['images']:,}", kind, *got["seconds"], *(round(mib, 1) for mib in got["mib"])))
    head = ("images", "kept in", "open, s", "shuffle, s", "resume mid-epoch, s", "list, MiB", "an epoch's order, MiB")
    table("Opening, shuffling, resuming", head, rows)


def speed(data: Path, *flags: str, ranks: int = 1, steps: int = 24) -> float:
    """Training images a second of `crosschannel pretrain --config imagenette`, start-up left out."""
    command = [sys.executable, "-m", "crosschannel.cli"]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m", "crosschannel.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks))}
    with tempfile.TemporaryDirectory() as folder:
        common = ["--config=imagenette", f"--data={data}", f"--out={folder}/run", "--val_images=16"]
        quick = [f"--train.steps={steps}", f"--runtime.log_every={steps // 4}", "--runtime.tensorboard=false"]
        subprocess.run(
            [*command, "pretrain", *common, *quick, *flags], check=True, env=environment, capture_output=True
        )
        rows = [row["train/images_per_s"] for row in read_metrics(Path(folder) / "run") if "train/loss" in row]
    return max(rows[1:])


def by_setting(data: Path) -> None:
    rows = [("batch", batch, speed(data, f"--train.batch={batch}")) for batch in (16, 64, 256)]
    rows += [
        ("crop", crop, speed(data, f"--crop.size={crop}", f"--crop.resize={crop * 9 // 8}")) for crop in (96, 128, 176)
    ]
    rows += [("workers", workers, speed(data, f"--runtime.workers={workers}")) for workers in (0, 1, 2)]
    rows += [("ranks, one worker each", ranks, speed(data, "--runtime.workers=1", ranks=ranks)) for ranks in (1, 2)]
    shown = [(what, value, round(images)) for what, value, images in rows]
    table("Training, `--config imagenette` with one key changed", ("key", "value", "images/s"), shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000, 1_300_000])
    parser.add_argument("--training", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--opening", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.opening:
        opening(options.opening)
        return
    print(machine())
    by_images(options.images)
    if options.training:
        by_setting(real_data("imagenette"))


if __name__ == "__main__":
    main()
