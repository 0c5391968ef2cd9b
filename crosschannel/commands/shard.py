"""`crosschannel shard`: pack images into indexed tar shards in the webdataset layout."""

import os
import re
from pathlib import Path

from rich.progress import Progress

from crosschannel.commands.config import ShardConfig
from crosschannel.console import stderr_console
from crosschannel.data import ImageSet, open_images
from crosschannel.data.shards import CLASSES, LISTING
from crosschannel.data.write_shards import write_shards
from crosschannel.errors import UserError
from crosschannel.files import atomic_folder, partial_path, write_text


def shard(config: ShardConfig) -> None:
    """Write ``train-NNNNNN.tar`` and ``val-NNNNNN.tar``, each with an ``.idx`` file, and ``classes.txt``.

    The files are written to ``OUT.part``, which is renamed to OUT when it is complete.

    Raises:
        UserError: no data, a non-empty output folder, or no readable image.
    """
    out = Path(config.out)
    splits = dict(zip(("train", "val"), open_images(config.data, config.val_share), strict=True))
    for name in splits["train"].classes:
        if re.search("[\n\ud800-\udfff]", name):
            raise UserError(f"the class name {name!r} cannot be written to {CLASSES}; rename its folder")
    part = partial_path(out)
    if os.path.realpath(part) in (
        os.path.realpath(config.data),
        *map(str, Path(os.path.realpath(config.data)).parents),
    ):
        raise UserError(f"{config.data} is in {part}, where the shards are written first; choose another out")
    with atomic_folder(out, "crosschannel shard", rf"(train|val)-\d{{6,}}\.tar(\.idx)?|{CLASSES}|{LISTING}") as part:
        _write(config, splits, part)
    stderr_console().print(f"shards: {out}")


def _write(config: ShardConfig, splits: dict[str, ImageSet], part: Path) -> None:
    """Write the contents of the output folder to ``part``."""
    console, shard_paths = stderr_console(), []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for split, images in splits.items():
            task = progress.add_task(split, total=len(images))
            shards, broken = write_shards(
                images,
                part,
                split,
                config.size or None,
                config.shard_mb << 20,
                config.seed,
                lambda n, task=task: progress.advance(task, n),
            )
            for name, reason in broken:
                console.print(f"broken image {name}: {reason}")
            if not shards:
                raise UserError(f"none of the {len(images)} {split} images of {config.data!r} can be read")
            console.print(f"{len(images) - len(broken)} {split} images in {len(shards)} shards")
            shard_paths += shards
    write_text(part / LISTING, "".join(f"{path.name}\n" for path in shard_paths))
    if splits["train"].classes:
        write_text(part / CLASSES, "\n".join(splits["train"].classes) + "\n")
