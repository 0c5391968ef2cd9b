"""A run folder: one command's config, log, checkpoints and results, held by one process group at a time."""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from crosschannel.config.keys import flatten, keys_of, legacy_defaults
from crosschannel.config.load import build_stored, rename, to_yaml
from crosschannel.errors import UserError
from crosschannel.files import (
    LOCK,
    PART,
    RUN_HEADER,
    FolderLock,
    append_line,
    digest,
    is_run_folder,
    remove_partial,
    write_text,
)
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.stored import read_json, read_rows, read_yaml
from crosschannel.version import __version__

_BEGUN = {"config.yaml", "images.json", "inputs.json"}  # what is there before anything is saved
_BESIDE = {LOCK, "slurm", *(f"{name}.part" for name in _BEGUN)}  # the last: half-written ones of earlier versions


@dataclass(frozen=True)
class _Input:
    """A file that a run reads by path, as it was when the run was begun."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class RunFolder:
    """Open (or create) the folder of one run and hold it until :meth:`close`, or the end of a ``with`` block.

    Args:
        path: the folder.
        command: what runs here, such as "pretrain"; a folder of another command is refused.
        hold: take the lock; False for the ranks that follow one that has it.
        flag: the signals that tell the run to stop.

    Attributes:
        finished: the run has ended; ``result.json`` is there.
        resuming: the run was begun before, and something of it was saved.

    Raises:
        UserError: another process holds it, or it is a non-empty folder of something else.
    """

    def __init__(self, path: Path, command: str, hold: bool = True, flag: InterruptFlag | None = None):
        self.path, self.command, self.flag = path, command, flag or InterruptFlag()
        self._images = self._inputs = ""
        self._look()  # before anything is written
        self._lock = FolderLock(path) if hold else None
        if self._lock:
            try:
                self._look()
                for folder in (path, *path.iterdir()):
                    remove_partial(folder)
            except BaseException:
                self._lock.release()
                raise

    def _look(self) -> None:
        """What the folder holds."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out takes a folder")
        held = self._entries()
        is_run = is_run_folder(self.path, self.command)
        # Where nothing was saved, a killed start has left its lock too: without one, the config is somebody else's.
        is_ours = is_run and (held - _BEGUN or (self.path / LOCK).exists())
        if held and not is_ours:
            raise UserError(f"{self.path} is not empty and not a run of `{self.command}`; give another --out")
        self.resuming = bool(held - _BEGUN)
        self.finished = (self.path / "result.json").is_file()

    def _entries(self) -> set[str]:
        """Names in the folder, without what lies in any folder that is held or queued."""
        try:
            names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        except OSError as error:
            raise UserError(f"cannot read the folder {self.path}: {error.strerror}") from None
        if LOCK in names:  # what is half-written was so by a run that was killed
            names = {name for name in names if not re.fullmatch(PART, name)}
        return names - _BESIDE

    def close(self) -> None:
        """Let go. A folder in which nothing was saved is removed: the same command can start anew, or another one."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()  # where it is empty
        if not self._entries() - _BEGUN:
            remove_partial(self.path)
            for name in _BEGUN:
                (self.path / name).unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def stored_config(self) -> dict[str, Any]:
        """What ``config.yaml`` says, by the names that keys have now."""
        return rename(read_yaml(self.path / "config.yaml"))

    def check_science(self, config: Any) -> None:
        """Refuse a config whose science keys differ from the stored ones; ``auto`` agrees with anything.

        Keys that the stored file lacks (it may be older) had the defaults that such keys got: what was done before.
        """
        free = {key.name for key in keys_of(type(config)) if key.is_runtime}
        stored, asked = legacy_defaults(type(config)) | flatten(self.stored_config()), flatten(asdict(config))
        changed = [
            f"{key} was {stored[key]!r} and is now {value!r}"
            for key, value in asked.items()
            if key in stored and key not in free and value != "auto" and value != stored[key]
        ]
        if changed:
            raise UserError(
                f"{self.path} was begun with other settings: {'; '.join(changed)}; "
                "give another --out, or the same settings to resume"
            )

    def is_done(self, data: str) -> bool:
        """Whether the run is finished, on data of this name: nothing needs to be opened to say so."""
        return self.finished and self.stored_config().get("data") == data

    def check_images(self, names: Mapping[str, str], annotations: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raise a UserError if images or annotations have changed since the run started; call before `write_config`.

        Args:
            names: fingerprint of the images' names by part, "train" and "val"; their folders may have moved.
            annotations: digest of the annotations by part. Runs of earlier versions stored none.
        """
        digests = {f"{part}_annotations": digest for part, digest in annotations.items()}
        self._images = json.dumps({**names, **digests})
        if not self.resuming:
            return
        record = self.path / "images.json"
        default = {} if self.finished else names  # the checkpoint of an earlier version is compared instead
        stored = read_json(record) if record.is_file() else default
        if not isinstance(stored, dict) or any(stored.get(part) != name for part, name in names.items()):
            raise UserError(
                f"{self.path} was begun on other images than those that --data now gives; give another --out (or, if "
                "the data are the same, finish it with the version that began it: later ones read more formats, leave "
                "out hidden folders and pictures that crosschannel wrote, and know more splits than train and val)"
            )
        changed = next((key for key, digest in digests.items() if stored.get(key, digest) != digest), None)
        if changed:
            part = {"train_annotations": "training", "val_annotations": "test"}[changed]
            raise UserError(
                f"the annotations of the {part} images have changed since {self.path} was started; restore them, or "
                "give another --out"
            )

    def forget_annotations(self) -> None:
        """Accept any annotations on resume: of a run that bad input ended, such as a damaged mask, they get mended."""
        record = self.path / "images.json"
        if record.is_file():
            stored = read_json(record)
            self.write("images.json", json.dumps({part: stored[part] for part in ("train", "val")}))

    def check_files(self, files: Mapping[str, Path]) -> None:
        """Refuse files that have changed since the run was begun; to be called before `write_config`.

        Args:
            files: what the run reads by path, by key. One that is gone is not missed here.
        """
        begun = self.path / "inputs.json"
        stored = read_json(begun) if self.resuming and begun.is_file() else {}
        if not isinstance(stored, dict):
            raise UserError(f"{begun} is damaged: it holds no keys")
        known = {key: build_stored(_Input, entry, f"{begun}: {key}") for key, entry in stored.items()}
        for key, path in files.items():
            if path.is_file():
                before, now = known.get(key), path.stat()
                if before and (before.size, before.mtime_ns) == (now.st_size, now.st_mtime_ns):
                    continue
                seen = _Input(str(path), now.st_size, now.st_mtime_ns, digest(path))
                if before and before.sha256 != seen.sha256:
                    raise UserError(f"{path} ({key}) is not what it was when {self.path} was begun; give another --out")
                known[key] = seen
        texts = {key: asdict(entry) for key, entry in known.items()}
        self._inputs = json.dumps(texts, indent=2) + "\n" if texts else ""

    def write_config(self, config: Any) -> None:
        """Write ``config.yaml``, complete and enough to run again, and what images and files are to be known by."""
        text = to_yaml(config)
        if not self.resuming or self.stored_config() != yaml.safe_load(text):  # else a user's remarks in it stay
            head = f"{RUN_HEADER} {self.command} (crosschannel {__version__})\n"
            self.write("config.yaml", head + text)
        if self._images:
            self.write("images.json", self._images)
        if self._inputs:
            self.write("inputs.json", self._inputs)

    def write(self, name: str, text: str) -> Path:
        """Write a text file at once or not at all."""
        return write_text(self.path / name, text)

    def log_metrics(self, step: int, **values: Any) -> None:
        """Append a line to ``metrics.jsonl``."""
        append_line(self.path / "metrics.jsonl", {"step": step, **values})

    def forget_metrics_after(self, step: int, evaluated: bool = True) -> None:
        """Drop lines that a resumed run will write again, and a last line that was cut off.

        Args:
            step: steps done.
            evaluated: whether the evaluation at that step is done too.
        """
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        if not evaluated:
            rows = [row for row in rows if row["step"] < step or not any(key.startswith("val/") for key in row)]
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def last_pictures(run: Path) -> Path | None:
    """The last pictures of held-out images that a run has made."""
    return max((run / "samples").glob("*.png"), default=None)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``: each has its step, whatever is damaged is left out."""
    rows = read_rows(run / "metrics.jsonl")
    return [row for row in rows if isinstance(row.get("step"), int) and all(map(_is_figure, row.values()))]


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
