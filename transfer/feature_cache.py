"""Extraction of frozen features, stored in memory or in an on-disk cache.

The cache key is a hash of everything that affects the features: weights, architecture, input, layers, pooling, images,
crops, precision and package versions.
"""

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
    """Table of contents of a cache folder: layers in order, number of rows, and SHA-256 by file name."""

    layers: list[str]
    rows: int
    files: dict[str, str]


@dataclass
class StoredFeatures:
    """Features of an image set.

    Attributes:
        images: images that could be read.
        maps: features (rows, C, g, g) float32 by layer; memory-mapped if they are on disk.
        indices: image index of each row, (rows,) int64; with ten crops, an image has ten consecutive rows.
    """

    images: ImageSet
    maps: dict[str, Tensor]
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def columns(self) -> dict[str, np.ndarray]:
        """Return names and labels of the images, as columns of a result."""
        return {"names": np.array(list(self.images.names)), "labels": self.images.labels}

    def rank_slices(self, batch: int, world: World, should_stop: Callable[[], bool]) -> Iterator[slice]:
        """Yield slices of this rank's rows, ``batch`` rows each.

        All ranks get the same number of slices, some of which may be empty, and stop at the same slice.

        Raises:
            Interrupted: ``should_stop`` returned True.
        """
        shard = world.shard(batch)
        for start in range(0, len(self), batch * world.size):
            if should_stop():
                raise Interrupted
            first = min(start + shard.start, len(self))
            yield slice(first, min(first + batch, len(self)))

    def rows(self, selection: Tensor | slice, device: torch.device) -> dict[str, Tensor]:
        """Return the features of selected rows by layer, on a device."""
        return {layer: maps[selection].to(device, non_blocking=True) for layer, maps in self.maps.items()}


def extract_features(
    measurement: Measurement, layers: Sequence[str], view: View
) -> tuple["StoredFeatures", "StoredFeatures"]:
    """Extract the features of the training and the test images, for protocols without a training loop.

    Writes the config into the run folder first, so all inputs must have been validated.

    Args:
        measurement: inputs of the protocol.
        layers: names of the layers.
        view: transform of the images; has a ``size``.

    Returns:
        features of the training images and of the test images.

    Raises:
        UserError: see :class:`Extraction`.
        Interrupted: a signal arrived.
    """
    extract, split = Extraction.from_measurement(measurement, layers, view.size), measurement.split
    measurement.world.broadcast_from_main(lambda: measurement.run.write_config(measurement.config))
    return extract(Stream(split.train, view), "training"), extract(Stream(split.test, view), "test")


@dataclass
class Extraction:
    """Feature extractor with a cache; call it with a stream.

    Attributes:
        features: frozen backbone with pooling.
        world: ranks that share the work; every rank returns all rows.
        flag: interrupt flag.
        precision: precision of the forward pass, such as "bfloat16".
        batch: images per batch and rank.
        workers: number of loader workers.
        cache: "memory" or "disk".
        broken_limit: maximum fraction of broken images.
        console: console for progress, feature sizes and broken images.
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
    def from_measurement(cls, measurement: Measurement, layers: Sequence[str], size: int) -> "Extraction":
        """Create an extractor from the config of a protocol, for samples with a side of ``size`` pixels."""
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

    def __call__(self, stream: Stream, name: str) -> StoredFeatures:
        """Compute the features of all samples of a stream, or load them from the cache.

        Args:
            stream: evaluation stream.
            name: name of the image set in messages, such as "training".

        Raises:
            UserError: not enough memory or disk space, too many broken images, or features that are not finite.
            Interrupted: a signal arrived.
        """
        rows = stream.count
        shapes = self.features.shapes()
        size = 4 * rows * sum(int(np.prod(shape)) for shape in shapes.values())
        key = self.world.broadcast_from_main(lambda: self._key(stream)) if self.cache == "disk" else ""
        folder = cache_folder() / "features" / key if key else None
        if folder and self.world.broadcast_from_main(lambda: self._is_cached(folder, rows, shapes)):
            self.console.print(f"{name} features: {_format_size(size)} from {folder}")
            return _open(folder, stream.images)
        self.world.broadcast_from_main(lambda: self._check_space(size, name, folder))
        if folder is None:
            maps = {layer: torch.empty(rows, *shape) for layer, shape in shapes.items()}
            return _drop_unreadable(stream.images, maps, self._fill(maps, stream, name))
        with self._partial_folder(folder, rows, shapes) as partial:
            indices = self._fill(self._open_maps(partial, shapes), stream, name)
            self.world.broadcast_from_main(lambda: _publish(partial, folder, indices, list(shapes)))
        return _open(folder, stream.images)

    def _is_cached(self, folder: Path, rows: int, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Return whether a cache folder exists and is intact; delete it if it is damaged."""
        if not folder.is_dir():
            return False
        try:
            stored = build_stored(_Contents, read_json(folder / _CONTENTS), str(folder / _CONTENTS))
            names = {"indices.npy", *(f"{i}.npy" for i in range(len(shapes)))}
            is_complete = stored.layers == list(shapes) and stored.rows <= rows and stored.files.keys() == names
            if is_complete and all(digest(folder / name) == expected for name, expected in stored.files.items()):
                return True
        except (UserError, OSError):
            pass
        self.console.print(f"the cached features in {folder} are damaged and will be recomputed")
        shutil.rmtree(folder)
        return False

    def _check_space(self, size: int, name: str, folder: Path | None) -> None:
        """Print the size and the location of the features; raise a UserError if there is not enough space."""
        if folder:
            folder.parent.mkdir(parents=True, exist_ok=True)
            free, location = shutil.disk_usage(folder.parent).free, f"on disk in {folder}"
        else:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or self.world.size)  # on this machine; each holds all rows
            free = _free_memory() // ranks
            location = "in memory" if ranks == 1 else f"in memory on each of {ranks} ranks"
        self.console.print(f"{name} features: {_format_size(size)} {location}")
        if size > free:
            raise UserError(
                f"the {name} features need {_format_size(size)} {location}, but only {_format_size(free)} is free; "
                "choose fewer layers or another --cache"
            )

    @contextlib.contextmanager
    def _partial_folder(self, folder: Path, rows: int, shapes: dict[str, tuple[int, ...]]) -> Iterator[Path]:
        """Create a temporary folder next to a cache folder, with files for the maps; rank 0 marks it as in use and
        removes it on errors."""
        partial = self.world.broadcast_from_main(lambda: _allocate(folder, rows, list(shapes.values())))
        try:
            with mark_in_use(partial) if self.world.is_main else contextlib.nullcontext():
                yield partial
        except BaseException:
            if self.world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _open_maps(self, partial: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the maps to fill: memory-mapped files of ``partial`` on rank 0, empty tensors on other ranks."""
        if not self.world.is_main:
            return {layer: torch.empty(0, *shape) for layer, shape in shapes.items()}
        return {
            layer: torch.from_numpy(np.lib.format.open_memmap(partial / f"{i}.npy", "r+"))
            for i, layer in enumerate(shapes)
        }

    def _fill(self, maps: dict[str, Tensor], stream: Stream, name: str) -> Tensor:
        """Compute the features and write them to the maps; return the image index of each row."""
        world, names = self.world, stream.images.names
        indices: list[Tensor] = []
        broken_images = BrokenImages(self.broken_limit)
        is_writer = world.is_main or self.cache == "memory"
        batches = HeldOut(stream, self._batch_features, world, self.batch, self.workers, self._should_stop)
        for batch, features in progress(batches, f"{name} features", batches.steps, self.console):
            start = sum(map(len, indices))
            indices.append(world.concatenate(batch.indices.to(world.device)).cpu())
            for layer, feature in features.items():
                rows = world.concatenate(feature)
                if is_writer:
                    maps[layer][start : start + len(rows)] = rows.cpu()
            broken = [index for rank in world.gather(batch.broken) for index, _ in rank]
            broken_images.count(len(indices[-1]), [names[index] for index in broken])
        for image, reason in sorted(batches.broken.items()):
            self.console.print(f"broken image {image}: {reason}")
        return torch.cat(indices)

    def _should_stop(self) -> bool:
        return self.world.any(self.flag.is_set)

    def _batch_features(self, batch: ImageBatch) -> dict[str, Tensor]:
        device = self.world.device
        if not len(batch):  # a rank without images still participates in collective operations
            return {layer: torch.empty(0, *s, device=device) for layer, s in self.features.shapes().items()}
        with autocast(device, self.precision):
            return self.features(batch.images)

    def _key(self, stream: Stream) -> str:
        """Return the cache key of a stream's features, 32 hex digits."""
        backbone = self.features.backbone
        digest = hashlib.sha256()
        for name, tensor in backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        settings = [
            repr(backbone.net), self.features.fingerprint(), asdict(backbone.input), self.features.layers,
            self.features.pooling, self.precision, self.world.device.type, stream.images.content_key(),
            repr(stream.view), __version__, torch.__version__,
        ]  # fmt: skip
        digest.update(json.dumps(settings).encode())
        return digest.hexdigest()[:32]


def _allocate(folder: Path, rows: int, shapes: Sequence[tuple[int, ...]]) -> Path:
    """Create a temporary folder next to a cache folder, with one file per map; remove those of killed runs."""
    remove_partial(folder.parent, rf"{folder.name}\.[0-9a-f]+\.part")
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(6)}.part")
    partial.mkdir()
    try:
        for i, shape in enumerate(shapes):
            np.lib.format.open_memmap(partial / f"{i}.npy", "w+", np.float32, (rows, *shape))
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial


def _publish(partial: Path, folder: Path, indices: Tensor, layers: list[str]) -> None:
    """Rename a complete temporary folder to the cache folder, atomically; keep the folder if another process has
    published it in the meantime."""
    np.save(partial / "indices.npy", indices.numpy())
    files = {path.name: digest(path) for path in partial.glob("*.npy")}
    for path in partial.glob("*.npy"):
        sync(path)
    write_text(partial / _CONTENTS, json.dumps(asdict(_Contents(layers, len(indices), files))))
    try:
        partial.rename(folder)
        sync(folder.parent)
    except OSError:
        shutil.rmtree(partial)
        if not folder.is_dir():
            raise


def _open(folder: Path, images: ImageSet) -> StoredFeatures:
    """Open a cache folder that :func:`_publish` wrote, memory-mapped."""
    indices = torch.from_numpy(np.load(folder / "indices.npy"))
    layers = read_json(folder / _CONTENTS)["layers"]
    files = (folder / f"{i}.npy" for i in range(len(layers)))
    # Copy-on-write protects the files: torch has no read-only tensors.
    maps = {layer: torch.from_numpy(np.load(file, mmap_mode="c")) for layer, file in zip(layers, files, strict=True)}
    return _drop_unreadable(images, maps, indices)


def _drop_unreadable(images: ImageSet, maps: dict[str, Tensor], indices: Tensor) -> StoredFeatures:
    """Return features without the unused rows of ``maps`` and without the images that could not be read."""
    readable = np.unique(indices.numpy())
    if len(readable) < len(images):
        images, indices = Subset(images, readable), torch.from_numpy(np.searchsorted(readable, indices.numpy()))
    return StoredFeatures(images, {layer: rows[: len(indices)] for layer, rows in maps.items()}, indices)


def _free_memory() -> int:
    """Return the available memory in bytes: the minimum over the machine and the control groups of this process."""
    lines = _lines(Path("/proc/meminfo"))
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    root = Path("/sys/fs/cgroup")
    for line in _lines(Path("/proc/self/cgroup")):
        if line.startswith("0::"):
            cgroup = root / line.removeprefix("0::/")
            free += [_free_in_group(group) for group in (cgroup, *cgroup.parents) if group.is_relative_to(root)]
    return max(0, min(free, default=2**63))


def _free_in_group(group: Path) -> int:
    """Return the bytes left below the memory limit of a control group, counting inactive page cache as free."""
    limit = next(iter(_lines(group / "memory.max")), "max")
    used = next(iter(_lines(group / "memory.current")), "0")
    cached = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith("inactive_file ")]
    return 2**63 if limit == "max" else int(limit) - int(used) + sum(cached)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _format_size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:.1f} MiB"
