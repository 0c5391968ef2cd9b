"""Features of every image, computed once: kept in memory, or on disk under a key that changes with whatever could
change them."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from crosschannel.config.load import build_stored
from crosschannel.console import progress
from crosschannel.data import BrokenImages, ImageBatch, ImageSet, Stream, Subset, View
from crosschannel.errors import UserError
from crosschannel.files import cache_folder, digest, mark_in_use, remove_partial, sync, write_text
from crosschannel.runs.interrupts import Interrupted, InterruptFlag
from crosschannel.stored import read_json
from crosschannel.training.device import autocast
from crosschannel.training.held_out import HeldOut
from crosschannel.training.ranks import World
from crosschannel.version import __version__
from transfer.config import Cache, FeaturesConfig
from transfer.features import FrozenFeatures
from transfer.protocol import Measurement

_CONTENTS = "features.json"


@dataclass(frozen=True)
class _Contents:
    """What a folder of stored features holds: layers in order, rows, and the SHA-256 of its files."""

    layers: list[str]
    rows: int
    files: dict[str, str]


@dataclass
class StoredFeatures:
    """Features of a set of images.

    Attributes:
        images: those that could be read.
        maps: (rows, C, g, g) float32 by layer; on disk they are memory-mapped.
        indices: (rows,) int64, the image of every row; with ten crops an image has ten rows in a row.
    """

    images: ImageSet
    maps: dict[str, Tensor]
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of a result: names and labels of the images."""
        return {"names": np.array(list(self.images.names)), "labels": self.images.labels}

    def shares(self, batch: int, world: World, should_stop: Callable[[], bool]) -> Iterator[slice]:
        """This rank's rows, ``batch`` at once; all ranks get as many parts (some may be empty) and stop alike.

        Raises:
            Interrupted: told to stop.
        """
        own = world.shard(batch)
        for start in range(0, len(self), batch * world.size):
            if should_stop():
                raise Interrupted
            first = min(start + own.start, len(self))
            yield slice(first, min(first + batch, len(self)))

    def rows(self, wanted: Tensor | slice, device: torch.device) -> dict[str, Tensor]:
        """Features of some rows, on a device."""
        return {layer: maps[wanted].to(device, non_blocking=True) for layer, maps in self.maps.items()}


def features_of_both(
    measurement: Measurement, layers: Sequence[str], view: View
) -> tuple["StoredFeatures", "StoredFeatures"]:
    """Features of training and test images, for a protocol that trains on them without a loop.

    The config is written first: from here on nothing is refused any more.

    Args:
        measurement: measurement of the protocol.
        layers: names.
        view: view with a ``size``.

    Raises:
        UserError: see :class:`Extraction`.
        Interrupted: told to stop.
    """
    extract, split = Extraction.of(measurement, layers, view.size), measurement.split
    measurement.world.broadcast_from_main(lambda: measurement.run.write_config(measurement.config))
    return extract(Stream(split.train, view), "training"), extract(Stream(split.test, view), "test")


@dataclass
class Extraction:
    """How features are computed and where they are kept.

    Attributes:
        features: the frozen backbone.
        world: its ranks share the work, and each gets all rows.
        flag: set by the signals that tell the run to stop.
        precision: of the forward pass, by name.
        batch: images a rank computes at once.
        workers: that decode.
        cache: "memory" or "disk".
        broken_limit: greatest share of broken images.
        console: says what is kept where.
    """

    features: FrozenFeatures
    world: World
    flag: InterruptFlag
    precision: str
    batch: int
    workers: int
    cache: Cache
    broken_limit: float
    console: Console

    @classmethod
    def of(cls, measurement: Measurement, layers: Sequence[str], size: int) -> "Extraction":
        """That of a protocol's keys, for samples of ``size`` pixels."""
        config: FeaturesConfig = measurement.config
        features = FrozenFeatures(measurement.backbone, layers, config.pooling, measurement.world.device, size)
        return cls(
            features,
            measurement.world,
            measurement.run.flag,
            config.precision,
            config.batch,
            config.workers,
            config.cache,
            config.broken_limit,
            measurement.console,
        )

    def __call__(self, stream: Stream, what: str) -> StoredFeatures:
        """Compute (or find) the features of all samples of a stream.

        Args:
            stream: of an evaluation.
            what: the images, in a word, for messages.

        Raises:
            UserError: not enough memory or disk, too many broken images, features that are not finite.
            Interrupted: told to stop.
        """
        rows = stream.count
        shapes = self.features.shapes()
        size = 4 * rows * sum(int(np.prod(shape)) for shape in shapes.values())
        key = self.world.broadcast_from_main(lambda: self._key(stream)) if self.cache == "disk" else ""
        folder = cache_folder() / "features" / key if key else None
        if folder and self.world.broadcast_from_main(lambda: self._is_whole(folder, rows, shapes)):
            self.console.print(f"{what} features: {_gib(size)} from {folder}")
            return _open(folder, stream.images)
        self.world.broadcast_from_main(lambda: self._announce(size, what, folder))
        if folder is None:
            maps = {layer: torch.empty(rows, *shape) for layer, shape in shapes.items()}
            return _readable(stream.images, maps, self._fill(maps, stream, what))
        with self._part_of(folder, rows, shapes) as part:
            indices = self._fill(self._maps(part, shapes), stream, what)
            self.world.broadcast_from_main(lambda: _publish(part, folder, indices, list(shapes)))
        return _open(folder, stream.images)

    def _is_whole(self, folder: Path, rows: int, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Whether features are there as they were written; damaged ones are dropped, to be computed anew."""
        if not folder.is_dir():
            return False
        try:
            stored = build_stored(_Contents, read_json(folder / _CONTENTS), str(folder / _CONTENTS))
            names = {"indices.npy", *(f"{i}.npy" for i in range(len(shapes)))}
            whole = stored.layers == list(shapes) and stored.rows <= rows and stored.files.keys() == names
            if whole and all(digest(folder / name) == found for name, found in stored.files.items()):
                return True
        except (UserError, OSError):
            pass
        self.console.print(f"the features in {folder} are damaged; they are computed anew")
        shutil.rmtree(folder)
        return False

    def _announce(self, size: int, what: str, folder: Path | None) -> None:
        """Say how much is to be kept where; refuse what does not fit."""
        if folder:
            folder.parent.mkdir(parents=True, exist_ok=True)
            free, place = shutil.disk_usage(folder.parent).free, f"on disk in {folder}"
        else:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or self.world.size)  # on this machine; each holds all rows
            free, place = _free_memory() // ranks, "in memory" if ranks == 1 else f"in memory on each of {ranks} ranks"
        self.console.print(f"{what} features: {_gib(size)} {place}")
        if size > free:
            raise UserError(
                f"the {what} features take {_gib(size)} {place} where {_gib(free)} are free; "
                "ask for fewer layers, or another --cache"
            )

    @contextlib.contextmanager
    def _part_of(self, folder: Path, rows: int, shapes: dict[str, tuple[int, ...]]) -> Iterator[Path]:
        """A new folder beside one of the cache, with files for maps; rank 0 marks it as in use, and removes it on
        errors."""
        part = self.world.broadcast_from_main(lambda: _allocate(folder, rows, list(shapes.values())))
        try:
            with mark_in_use(part) if self.world.is_main else contextlib.nullcontext():
                yield part
        except BaseException:
            if self.world.is_main:
                shutil.rmtree(part, ignore_errors=True)
            raise

    def _maps(self, part: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Maps to be filled: rank 0's are in the files of ``part``, those of other ranks empty."""
        if not self.world.is_main:
            return {layer: torch.empty(0, *shape) for layer, shape in shapes.items()}
        return {
            layer: torch.from_numpy(np.lib.format.open_memmap(part / f"{i}.npy", "r+"))
            for i, layer in enumerate(shapes)
        }

    def _fill(self, maps: dict[str, Tensor], stream: Stream, what: str) -> Tensor:
        """Write the maps row by row; returns the image of every row."""
        world, names = self.world, stream.images.names
        indices: list[Tensor] = []
        tally = BrokenImages(self.broken_limit)
        writes = world.is_main or self.cache == "memory"
        computed = HeldOut(stream, self._batch_features, world, self.batch, self.workers, self._should_stop)
        for batch, features in progress(computed, f"{what} features", computed.steps, self.console):
            start = sum(map(len, indices))
            indices.append(world.concatenate(batch.indices.to(world.device)).cpu())
            for layer, feature in features.items():
                rows = world.concatenate(feature)
                if writes:
                    maps[layer][start : start + len(rows)] = rows.cpu()
            broken = [index for rank in world.gather(batch.broken) for index, _ in rank]
            tally.count(len(indices[-1]), [names[index] for index in broken])
        for name, reason in sorted(computed.broken.items()):
            self.console.print(f"broken image {name}: {reason}")
        return torch.cat(indices)

    def _should_stop(self) -> bool:
        return self.world.any(self.flag.is_set)

    def _batch_features(self, batch: ImageBatch) -> dict[str, Tensor]:
        device = self.world.device
        if not len(batch):  # a rank without a share still takes part in the collectives
            return {layer: torch.empty(0, *s, device=device) for layer, s in self.features.shapes().items()}
        with autocast(device, self.precision):
            return self.features(batch.images)

    def _key(self, stream: Stream) -> str:
        """32 hex digits that change with the weights, the net, what it computes, its input, the layers, the pooling,
        the images and their crops, and the arithmetic."""
        backbone = self.features.backbone
        digest = hashlib.sha256()
        for name, tensor in backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        rest = [
            repr(backbone.net), self.features.fingerprint(), asdict(backbone.input), self.features.layers,
            self.features.pooling, self.precision, self.world.device.type, stream.images.content_key(),
            repr(stream.view), __version__, torch.__version__,
        ]  # fmt: skip
        digest.update(json.dumps(rest).encode())
        return digest.hexdigest()[:32]


def _allocate(folder: Path, rows: int, shapes: Sequence[tuple[int, ...]]) -> Path:
    """Make a folder beside one of the cache, with a file for each map; those of killed runs are removed."""
    remove_partial(folder.parent, rf"{folder.name}\.[0-9a-f]+\.part")
    part = folder.with_name(f"{folder.name}.{secrets.token_hex(6)}.part")
    part.mkdir()
    try:
        for i, shape in enumerate(shapes):
            np.lib.format.open_memmap(part / f"{i}.npy", "w+", np.float32, (rows, *shape))
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return part


def _publish(part: Path, folder: Path, indices: Tensor, layers: list[str]) -> None:
    """One rename makes the whole folder there; if another process was faster, its folder stays."""
    np.save(part / "indices.npy", indices.numpy())
    files = {path.name: digest(path) for path in part.glob("*.npy")}
    for path in part.glob("*.npy"):
        sync(path)
    write_text(part / _CONTENTS, json.dumps(asdict(_Contents(layers, len(indices), files))))
    try:
        part.rename(folder)
        sync(folder.parent)
    except OSError:
        shutil.rmtree(part)
        if not folder.is_dir():
            raise


def _open(folder: Path, images: ImageSet) -> StoredFeatures:
    """What :func:`_publish` wrote, memory-mapped."""
    indices = torch.from_numpy(np.load(folder / "indices.npy"))
    layers = read_json(folder / _CONTENTS)["layers"]
    files = (folder / f"{i}.npy" for i in range(len(layers)))
    # Copy-on-write: torch knows no read-only tensors, and nothing is to reach the file.
    maps = {layer: torch.from_numpy(np.load(file, mmap_mode="c")) for layer, file in zip(layers, files, strict=True)}
    return _readable(images, maps, indices)


def _readable(images: ImageSet, maps: dict[str, Tensor], indices: Tensor) -> StoredFeatures:
    """Rows that were filled, and the images that they show."""
    shown = np.unique(indices.numpy())
    if len(shown) < len(images):
        images, indices = Subset(images, shown), torch.from_numpy(np.searchsorted(shown, indices.numpy()))
    return StoredFeatures(images, {layer: filled[: len(indices)] for layer, filled in maps.items()}, indices)


def _free_memory() -> int:
    """Bytes that this machine, and every control group that this process is in, can still give."""
    lines = _lines(Path("/proc/meminfo"))
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    root = Path("/sys/fs/cgroup")
    for line in _lines(Path("/proc/self/cgroup")):
        if line.startswith("0::"):
            own = root / line.removeprefix("0::/")
            free += [_free_in_group(group) for group in (own, *own.parents) if group.is_relative_to(root)]
    return max(0, min(free, default=2**63))


def _free_in_group(group: Path) -> int:
    """Bytes up to the limit of a control group; files that are only cached give way."""
    limit = next(iter(_lines(group / "memory.max")), "max")
    used = next(iter(_lines(group / "memory.current")), "0")
    cached = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith("inactive_file ")]
    return 2**63 if limit == "max" else int(limit) - int(used) + sum(cached)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:.1f} MiB"
