"""`crosschannel shard`: pack images into indexed tar shards in the webdataset layout."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from crosschannel.commands.progress import stderr_console
from crosschannel.data import open_images
from crosschannel.data.shards import write_shards
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


def shard(config: ShardConfig) -> None:
    """Write ``train-NNNNNN.tar`` and ``val-NNNNNN.tar``, an ``.idx`` beside each, and ``classes.txt``.

    Raises:
        UserError: no data, a key out of range, or an output folder that is not empty.
    """
    if config.size < 0:
        raise UserError(f"size must not be negative, got {config.size}")
    if config.shard_mb < 1:
        raise UserError(f"shard_mb must be at least 1, got {config.shard_mb}")
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder")
    train, val = open_images(config.data, config.val_share)
    out.mkdir(parents=True, exist_ok=True)
    if train.classes:
        (out / "classes.txt").write_text("\n".join(train.classes) + "\n")
    console = stderr_console()
    with Progress(console=console, disable=not console.is_terminal) as bars:
        for split, images in (("train", train), ("val", val)):
            bar = bars.add_task(split, total=len(images))
            count, broken = write_shards(
                images, out, split, config.size or None, config.shard_mb << 20, lambda n, bar=bar: bars.advance(bar, n)
            )
            for name, why in broken:
                console.print(f"broken image {name}: {why}", markup=False)
            console.print(f"{out}: {len(images) - len(broken)} {split} images in {count} shards", markup=False)
