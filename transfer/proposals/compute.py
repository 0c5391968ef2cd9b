"""Computation of proposals, distributed over ranks and workers; partial results are saved for resuming."""

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
from transfer.proposals.selective_search import MAX_BOXES, Mode, SelectiveSearch, check_opencv

_BATCH = 8  # images per rank in each partial file


def cached_boxes(
    images: ImageSet,
    mode: Mode,
    world: World,
    workers: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> Boxes:
    """Load selective search boxes from the user's cache folder, or compute and cache them.

    Args:
        images: images to compute boxes for. The cache is keyed by their names, sizes and mtimes.
        mode: "fast" or "quality".
        world: ranks that share the images.
        workers: worker processes per rank.
        should_stop: whether to stop; called between batches, on all ranks.
        console: console for the progress bar; None: no progress bar.

    Raises:
        UserError: OpenCV is missing.
        Interrupted: ``should_stop`` returned True. Partial results are saved; the same call resumes.
    """
    key = sha256(f"{images.names.fingerprint()} {images.content_key()}".encode()).hexdigest()[:16]
    path = cache_folder() / "proposals" / f"selective-search-{mode}-{key}.npz"
    return compute_boxes(images, mode, path, world, workers, should_stop, console)


def compute_boxes(
    images: ImageSet,
    mode: Mode,
    out: Path,
    world: World,
    workers: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
    write: Writer = atomic_write,
) -> Boxes:
    """Compute the boxes of images that a file lacks, add them to the file, and return all of its boxes.

    Partial results are saved in a hidden folder next to the file, which is removed at the end. Unreadable images are
    reported and excluded from the file.

    Args:
        images, mode, world, workers, should_stop, console: see :func:`cached_boxes`.
        out: ``.npz`` file, which may exist.
        write: writer of the file.
    """
    check_opencv()
    partial_folder = out.with_name(f".{out.name}.parts")
    existing = _load(out, world)
    available = existing | world.broadcast_from_main(lambda: _load_partial(partial_folder, images))
    missing = np.array([index for index, name in enumerate(images.names) if name not in available], np.int64)
    rank_boxes: dict[str, np.ndarray] = {}
    if len(missing):
        rank_boxes = _search(Subset(images, missing), mode, partial_folder, world, workers, should_stop, console)
    all_boxes = available | {name: boxes for rank in world.gather(rank_boxes) for name, boxes in rank.items()}
    if len(all_boxes) > len(existing):

        def finish() -> None:
            out.parent.mkdir(parents=True, exist_ok=True)
            ordered = {name: all_boxes[name] for name in images.names if name in all_boxes}
            digests = picture_digests(images, ordered)
            save_boxes(out, ordered, {"method": f"selective-search-{mode}"}, write, digests)

        world.broadcast_from_main(finish)
    for path in partial_folder.glob("*.npz"):  # not the whole folder: another run may be writing to it
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        partial_folder.rmdir()
    return all_boxes


def _load(path: Path, world: World) -> dict[str, np.ndarray]:
    """Load the boxes of a file; return an empty dict if it does not exist.

    Every rank reads the file if all ranks see it, which avoids a broadcast of the boxes.
    """
    if all(world.gather(path.is_file())):
        return load_boxes(path)
    return world.broadcast_from_main(lambda: load_boxes(path) if path.is_file() else {})


def _search(
    images: ImageSet,
    mode: Mode,
    partial_folder: Path,
    world: World,
    workers: int,
    should_stop: Callable[[], bool],
    console: Console | None,
) -> dict[str, np.ndarray]:
    """Compute the boxes of this rank's images, and save each batch to a partial file."""
    rank_boxes: dict[str, np.ndarray] = {}
    held_out = HeldOut(
        Stream(images, SelectiveSearch(mode, MAX_BOXES)), lambda _: None, world, _BATCH, workers, should_stop
    )
    for batch, _ in progress(held_out, f"selective search ({mode})", held_out.steps, console):
        names = [images.names[int(index)] for index in batch.indices]
        if names:
            boxes = dict(zip(names, batch.boxes, strict=True))
            digest = sha256("\n".join(names).encode()).hexdigest()[:16]
            partial_folder.mkdir(parents=True, exist_ok=True)
            batch_images = Subset(images, batch.indices.numpy())
            save_boxes(partial_folder / f"{digest}.npz", boxes, {}, digests=picture_digests(batch_images, boxes))
            rank_boxes |= boxes
    for name, reason in held_out.broken.items():
        if console is not None:
            console.print(f"no proposals for {name}: {reason}")
    return rank_boxes


def _load_partial(partial_folder: Path, images: ImageSet) -> dict[str, np.ndarray]:
    """Load the partial results of an interrupted search, except for images that have changed; delete damaged files."""
    boxes: dict[str, np.ndarray] = {}
    stored_digests: dict[str, str] = {}
    for path in sorted(partial_folder.glob("*.npz")):
        try:
            boxes |= load_boxes(path)
            stored_digests |= load_digests(path)
        except UserError:
            path.unlink(missing_ok=True)
    digests = picture_digests(images, boxes)
    return {name: boxes[name] for name, digest in digests.items() if stored_digests.get(name) == digest}
