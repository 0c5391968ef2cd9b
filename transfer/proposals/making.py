"""Proposals made of images, once: shared out among ranks and workers, kept as they are found, gone on with later."""

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
from rich.console import Console

from crosschannel.console import progress
from crosschannel.data import ImageSet, Stream
from crosschannel.data.images import Subset
from crosschannel.data.open import cache_folder
from crosschannel.errors import UserError
from crosschannel.files import Writer, written_whole
from crosschannel.training.held_out import HeldOut
from crosschannel.training.ranks import World
from transfer.proposals.files import Boxes, load_boxes, save_boxes
from transfer.proposals.selective_search import MOST, Mode, Searched, check_opencv

_AT_ONCE = 8  # images of a rank between two files


def cached_boxes(
    images: ImageSet,
    mode: Mode,
    world: World,
    workers: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> Boxes:
    """Selective search's boxes of images: from the user's cache folder, or made and kept there.

    Args:
        images: what they are of; another time of change of a file makes other ones of them.
        mode: "fast" or "quality".
        world, workers: share the work.
        should_stop: asked between images, on all ranks.
        console: for progress.

    Raises:
        UserError: OpenCV is missing.
        Interrupted: told to stop; what was found is kept, and the same call goes on.
    """
    key = sha256(f"{images.names.fingerprint()} {images.content_key()}".encode()).hexdigest()[:16]
    path = cache_folder() / "proposals" / f"selective-search-{mode}-{key}.npz"
    found = world.from_main(lambda: load_boxes(path) if path.is_file() else None)
    if found is None:
        found = make_boxes(images, mode, path, world, workers, should_stop, console)
    return found


def make_boxes(
    images: ImageSet,
    mode: Mode,
    out: Path,
    world: World,
    workers: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
    write: Writer = written_whole,
) -> Boxes:
    """Find the boxes of images, and write them to a file; what is found meanwhile lies in a folder beside it.

    Args:
        images, mode, world, workers, should_stop, console: see :func:`cached_boxes`.
        out: the ``.npz`` file.
        write: how the file is written.
    """
    check_opencv()
    parts = out.with_name(f".{out.name}.parts")
    before = world.from_main(lambda: _kept(parts, images))
    left = np.array([index for index, name in enumerate(images.names) if name not in before], np.int64)
    if len(left):
        parts.mkdir(parents=True, exist_ok=True)
        _search(Subset(images, left), mode, parts, world, workers, should_stop, console)
    # Each rank has written its own; they may not see each other's folders.
    found = {name: boxes for rank in world.gather(_kept(parts, images)) for name, boxes in rank.items()} | before
    ordered = {name: found.get(name, np.empty((0, 4), np.int32)) for name in images.names}

    def finish() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_boxes(out, ordered, {"method": f"selective-search-{mode}"}, write)

    world.from_main(finish)
    shutil.rmtree(parts, ignore_errors=True)
    return ordered


def _search(
    images: ImageSet,
    mode: Mode,
    parts: Path,
    world: World,
    workers: int,
    should_stop: Callable[[], bool],
    console: Console | None,
) -> None:
    held_out = HeldOut(Stream(images, Searched(mode, MOST)), lambda _: None, world, _AT_ONCE, workers, should_stop)
    for batch, _ in progress(held_out, f"selective search ({mode})", held_out.steps, console):
        names = [images.names[int(index)] for index in batch.indices]
        if names:
            digest = sha256("\n".join(names).encode()).hexdigest()[:16]
            save_boxes(parts / f"{digest}.npz", dict(zip(names, batch.boxes, strict=True)), {})
    for name, why in held_out.broken.items():
        if console is not None:
            console.print(f"no proposals of {name}: {why}", markup=False)


def _kept(parts: Path, images: ImageSet) -> dict[str, np.ndarray]:
    """What an interrupted search has left; a file that is damaged is searched for again."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(parts.glob("*.npz")):
        try:
            found |= load_boxes(path)
        except UserError:
            path.unlink(missing_ok=True)
    names = set(images.names)
    return {name: boxes.astype(np.int32) for name, boxes in found.items() if name in names}
