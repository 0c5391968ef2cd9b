"""Proposals made of images, once: shared out among ranks and workers, kept as they are found, gone on with later."""

import contextlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
from rich.console import Console

from crosschannel.console import progress
from crosschannel.data import ImageSet, Stream
from crosschannel.data.images import Subset
from crosschannel.errors import UserError
from crosschannel.files import Writer, atomic_write, cache_folder
from crosschannel.training.held_out import HeldOut
from crosschannel.training.ranks import World
from transfer.proposals.files import Boxes, load_boxes, load_digests, picture_digests, save_boxes
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
    return make_boxes(images, mode, path, world, workers, should_stop, console)


def make_boxes(
    images: ImageSet,
    mode: Mode,
    out: Path,
    world: World,
    workers: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
    write: Writer = atomic_write,
) -> Boxes:
    """Find the boxes of images that a file does not have yet, and write them to it; what is found meanwhile lies in a
    folder beside it. Images that cannot be read are named, and left out of the file.

    Args:
        images, mode, world, workers, should_stop, console: see :func:`cached_boxes`.
        out: the ``.npz`` file.
        write: how the file is written.
    """
    check_opencv()
    parts = out.with_name(f".{out.name}.parts")
    there = _load(out, world)
    before = there | world.broadcast_from_main(lambda: _kept(parts, images))
    left = np.array([index for index, name in enumerate(images.names) if name not in before], np.int64)
    own: dict[str, np.ndarray] = {}
    if len(left):
        own = _search(Subset(images, left), mode, parts, world, workers, should_stop, console)
    found = before | {name: boxes for rank in world.gather(own) for name, boxes in rank.items()}
    if len(found) > len(there):

        def finish() -> None:
            out.parent.mkdir(parents=True, exist_ok=True)
            ordered = {name: found[name] for name in images.names if name in found}
            digests = picture_digests(images, ordered)
            save_boxes(out, ordered, {"method": f"selective-search-{mode}"}, write, digests)

        world.broadcast_from_main(finish)
    for path in parts.glob("*.npz"):  # another run may be writing its own
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        parts.rmdir()
    return found


def _load(path: Path, world: World) -> dict[str, np.ndarray]:
    """What a file has, where it is there: read by every rank that sees it, so that it need not be sent."""
    if all(world.gather(path.is_file())):
        return load_boxes(path)
    return world.broadcast_from_main(lambda: load_boxes(path) if path.is_file() else {})


def _search(
    images: ImageSet,
    mode: Mode,
    parts: Path,
    world: World,
    workers: int,
    should_stop: Callable[[], bool],
    console: Console | None,
) -> dict[str, np.ndarray]:
    """The boxes of this rank's share, which are kept as they are found."""
    found: dict[str, np.ndarray] = {}
    held_out = HeldOut(Stream(images, Searched(mode, MOST)), lambda _: None, world, _AT_ONCE, workers, should_stop)
    for batch, _ in progress(held_out, f"selective search ({mode})", held_out.steps, console):
        names = [images.names[int(index)] for index in batch.indices]
        if names:
            boxes = dict(zip(names, batch.boxes, strict=True))
            digest = sha256("\n".join(names).encode()).hexdigest()[:16]
            parts.mkdir(parents=True, exist_ok=True)
            part = Subset(images, batch.indices.numpy())
            save_boxes(parts / f"{digest}.npz", boxes, {}, digests=picture_digests(part, boxes))
            found |= boxes
    for name, why in held_out.broken.items():
        if console is not None:
            console.print(f"no proposals of {name}: {why}")
    return found


def _kept(parts: Path, images: ImageSet) -> dict[str, np.ndarray]:
    """Load the boxes that an interrupted search left for the same pictures; damaged files are deleted."""
    boxes: dict[str, np.ndarray] = {}
    stored: dict[str, str] = {}
    for path in sorted(parts.glob("*.npz")):
        try:
            boxes |= load_boxes(path)
            stored |= load_digests(path)
        except UserError:
            path.unlink(missing_ok=True)
    digests = picture_digests(images, boxes)
    return {name: boxes[name] for name, digest in digests.items() if stored.get(name) == digest}
