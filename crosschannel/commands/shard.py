"""`crosschannel shard`: pack images into indexed tar shards in the webdataset layout."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress

from crosschannel.commands.config import ShardConfig
from crosschannel.console import stderr_console
from crosschannel.data import ImageSet, open_images
from crosschannel.data.shards import CLASSES, LISTING
from crosschannel.data.write_shards import write_shards
from crosschannel.errors import UserError
from crosschannel.files import LOCK, NOTES, PART, FolderLock, append_line, write_text
from crosschannel.stored import read_rows

_COMMAND = "crosschannel shard"


def shard(config: ShardConfig) -> None:
    """Write ``train-NNNNNN.tar`` and ``val-NNNNNN.tar``, an ``.idx`` beside each, and ``classes.txt``.

    All is written to ``OUT.part``, which becomes OUT once it is whole.

    Raises:
        UserError: no data, a key out of range, an output folder that is not empty, or no image that can be read.
    """
    out = Path(config.out)
    if not out.name:
        raise UserError(f"out must name a new folder, got {config.out!r}")
    _check_empty(out)
    splits = dict(zip(("train", "val"), open_images(config.data, config.val_share), strict=True))
    for name in splits["train"].classes:
        if re.search("[\n\ud800-\udfff]", name):
            raise UserError(f"the class {name!r} cannot be a line of {CLASSES}; rename its folder")
    part = out.with_name(out.name + ".part")
    if os.path.realpath(part) in (
        os.path.realpath(config.data),
        *map(str, Path(os.path.realpath(config.data)).parents),
    ):
        raise UserError(f"{config.data} lies in {part}, where the shards are written first; give another out")
    with _held(part):
        _check_empty(out)
        append_line(part / NOTES, {"command": _COMMAND})
        _write(config, splits, part)
        (part / NOTES).unlink()  # whole: no leftover any more
        part.replace(out)
        (out / LOCK).unlink()
    stderr_console().print(f"shards: {out}", markup=False)


def _write(config: ShardConfig, splits: dict[str, ImageSet], part: Path) -> None:
    """All that the folder of shards holds."""
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
                raise UserError(f"none of the {len(images)} {split} images of {config.data!r} can be read")
            console.print(f"{len(images) - len(broken)} {split} images in {len(shards)} shards", markup=False)
            written += shards
    write_text(part / LISTING, "".join(f"{path.name}\n" for path in written))
    if splits["train"].classes:
        write_text(part / CLASSES, "\n".join(splits["train"].classes) + "\n")


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder")
    if out.is_symlink() or out.is_mount():
        raise UserError(f"{out} is a link or a mount point; name a new folder")


@contextlib.contextmanager
def _held(part: Path) -> Iterator[None]:
    """A new folder that is this process's own, and is gone if the shards do not become whole. One that a killed command
    has left is known by its notes."""
    own = {NOTES, LOCK, CLASSES, LISTING}
    if part.exists():
        names = {path.name for path in part.iterdir()} if part.is_dir() else {""}
        rest = {name for name in names - own if not re.fullmatch(rf"(train|val)-\d{{6,}}\.tar(\.idx)?|{PART}", name)}
        if rest or {row.get("command") for row in read_rows(part / NOTES)} != {_COMMAND}:
            raise UserError(f"{part} is in the way: no `{_COMMAND}` that was killed has left it")
    with FolderLock(part):
        for path in part.iterdir():
            if path.name != LOCK:
                path.unlink()
        try:
            yield
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
