"""`crosschannel shard`: pack images into indexed tar shards in the webdataset layout."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from crosschannel.console import stderr_console
from crosschannel.data import open_images
from crosschannel.data.shards import CLASSES, LISTING
from crosschannel.data.write_shards import write_shards
from crosschannel.errors import UserError


@dataclass
class ShardConfig:
    """Pack images into tar shards (webdataset layout) with an index, optionally reduced in size."""

    data: str = field(metadata={"help": "a folder of images, tar shards, builtin:sample or torchvision:imagenette"})
    out: str = field(metadata={"help": "an empty or new folder"})
    size: int = 0
    """reduce larger images to this short side; 0 keeps the files as they are"""
    shard_mb: int = 256
    """megabytes of a shard"""
    val_share: float = 0.05
    """share held out for validation where the data has no val/"""
    seed: int = 0
    """of the order in which images are packed"""
    device: str = "auto"
    """taken as by every command; packing is the CPU's work"""


def shard(config: ShardConfig) -> None:
    """Write ``train-NNNNNN.tar`` and ``val-NNNNNN.tar``, an ``.idx`` beside each, and ``classes.txt``.

    All is written to ``OUT.part``, which becomes OUT once it is whole.

    Raises:
        UserError: no data, a key out of range, an output folder that is not empty, or no image that can be read.
    """
    if config.size < 0:
        raise UserError(f"size must not be negative, got {config.size}")
    if config.shard_mb < 1:
        raise UserError(f"shard_mb must be at least 1, got {config.shard_mb}")
    out = Path(config.out)
    if not out.name:
        raise UserError(f"out must name a new folder, got {config.out!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder")
    splits = dict(zip(("train", "val"), open_images(config.data, config.val_share), strict=True))
    part = _new_folder(out.with_name(out.name + ".part"))
    console, written = stderr_console(), []
    with Progress(console=console, disable=not console.is_terminal) as bars:
        for split, images in splits.items():
            bar = bars.add_task(split, total=len(images))
            shards, broken = write_shards(
                images,
                part,
                split,
                config.size or None,
                config.shard_mb << 20,
                config.seed,
                lambda n, bar=bar: bars.advance(bar, n),
            )
            for name, why in broken:
                console.print(f"broken image {name}: {why}", markup=False)
            if not shards:
                shutil.rmtree(part)
                raise UserError(f"none of the {len(images)} {split} images of {config.data!r} can be read")
            console.print(f"{len(images) - len(broken)} {split} images in {len(shards)} shards", markup=False)
            written += shards
    (part / LISTING).write_text("".join(f"{path.name}\n" for path in written))
    if splits["train"].classes:
        (part / CLASSES).write_text("\n".join(splits["train"].classes) + "\n")
    part.replace(out)
    console.print(f"shards: {out}", markup=False)


def _new_folder(part: Path) -> Path:
    """An empty folder; what an earlier, killed command left in it is dropped."""
    if part.is_dir() and any(not p.name.endswith((".tar", ".idx", ".txt")) for p in part.iterdir()):
        raise UserError(f"{part} is in the way: it holds more than a `crosschannel shard` that was killed leaves")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part
