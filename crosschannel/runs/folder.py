"""A run folder: config, log, checkpoints and results of one command, locked by one job at a time."""

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

_INITIAL_FILES = {"config.yaml", "images.json", "inputs.json"}  # written before the run saves any progress
_IGNORED = {LOCK, "slurm", *(f"{name}.part" for name in _INITIAL_FILES)}  # .part: partial files of earlier versions


@dataclass(frozen=True)
class _InputFile:
    """Fingerprint of an input file at the start of a run."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class RunFolder:
    """Run folder, created if it does not exist, and locked until :meth:`close` or the end of a ``with`` block.

    Args:
        path: path of the folder.
        command: command of the run, such as "pretrain"; folders of other commands are rejected.
        hold: whether to acquire the lock; False if another rank holds it, or for read-only access.
        flag: interrupt flag of the run.

    Attributes:
        finished: whether the run has finished, that is, has a ``result.json``.
        resuming: whether an earlier process has saved progress of this run.

    Raises:
        UserError: another process holds the lock, or the folder is not empty and not a run of this command.
    """

    def __init__(self, path: Path, command: str, hold: bool = True, flag: InterruptFlag | None = None):
        self.path, self.command, self.flag = path, command, flag or InterruptFlag()
        self._images = self._inputs = ""
        self._scan()  # before anything is written
        self._lock = FolderLock(path) if hold else None
        if self._lock:
            try:
                self._scan()
                for folder in (path, *path.iterdir()):
                    remove_partial(folder)
            except BaseException:
                self._lock.release()
                raise

    def _scan(self) -> None:
        """Check the content of the folder, and set ``resuming`` and ``finished``."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out must be a folder")
        entries = self._entries()
        is_run = is_run_folder(self.path, self.command)
        # A run killed before its first save still has its lock file; a config.yaml without one is not ours.
        is_ours = is_run and (entries - _INITIAL_FILES or (self.path / LOCK).exists())
        if entries and not is_ours:
            raise UserError(f"{self.path} is not empty and not a run of `{self.command}`; choose another --out")
        self.resuming = bool(entries - _INITIAL_FILES)
        self.finished = (self.path / "result.json").is_file()

    def _entries(self) -> set[str]:
        """Return the names of the folder's entries, without the lock, job files and partial files."""
        try:
            names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        except OSError as error:
            raise UserError(f"could not read the folder {self.path}: {error.strerror}") from None
        if LOCK in names:  # partial files were left by a killed run
            names = {name for name in names if not re.fullmatch(PART, name)}
        return names - _IGNORED

    def close(self) -> None:
        """Release the lock. If no progress was saved, remove the run's files, so that the folder can be reused."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()  # fails unless it is empty
        if not self._entries() - _INITIAL_FILES:
            remove_partial(self.path)
            for name in _INITIAL_FILES:
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
        """Read ``config.yaml``, with renamed keys under their current names."""
        return rename(read_yaml(self.path / "config.yaml"))

    def check_fixed_keys(self, config: Any) -> None:
        """Raise a UserError if a key that may not change on resume differs from the stored config.

        "auto" matches any value. A key that the stored config of an earlier version lacks has its legacy default.
        """
        runtime_keys = {key.name for key in keys_of(type(config)) if key.is_runtime}
        stored, requested = legacy_defaults(type(config)) | flatten(self.stored_config()), flatten(asdict(config))
        changed = [
            f"{key} was {stored[key]!r} and is now {value!r}"
            for key, value in requested.items()
            if key in stored and key not in runtime_keys and value != "auto" and value != stored[key]
        ]
        if changed:
            raise UserError(
                f"{self.path} was started with other settings: {'; '.join(changed)}; "
                "choose another --out, or use the same settings to resume"
            )

    def is_done(self, data: str) -> bool:
        """Whether the run is finished and its data have this name; does not open the data."""
        return self.finished and self.stored_config().get("data") == data

    def check_images(self, names: Mapping[str, str], annotations: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raise a UserError if images or annotations have changed since the run started; call before `write_config`.

        Args:
            names: fingerprints of the image names by split, "train" and "val"; they do not depend on the folder.
            annotations: digests of the annotations by split. Runs of earlier versions did not store them.
        """
        digests = {f"{split}_annotations": digest for split, digest in annotations.items()}
        self._images = json.dumps({**names, **digests})
        if not self.resuming:
            return
        record = self.path / "images.json"
        default = {} if self.finished else names  # unfinished runs of earlier versions record them in the checkpoint
        stored = read_json(record) if record.is_file() else default
        if not isinstance(stored, dict) or any(stored.get(split) != name for split, name in names.items()):
            raise UserError(
                f"{self.path} was started on other images than those of --data; choose another --out. If the data have "
                "not changed, finish the run with the version that started it: later versions read more formats, skip "
                "hidden folders and pictures written by crosschannel, and support more splits than train and val"
            )
        changed = next((key for key, digest in digests.items() if stored.get(key, digest) != digest), None)
        if changed:
            split = {"train_annotations": "training", "val_annotations": "test"}[changed]
            raise UserError(
                f"the annotations of the {split} images have changed since {self.path} was started; restore them, or "
                "choose another --out"
            )

    def forget_annotations(self) -> None:
        """Accept changed annotations on resume; for runs that failed on bad input, such as a mask that needs repair."""
        record = self.path / "images.json"
        if record.is_file():
            stored = read_json(record)
            self.write("images.json", json.dumps({split: stored[split] for split in ("train", "val")}))

    def check_files(self, files: Mapping[str, Path]) -> None:
        """Raise a UserError if input files have changed since the run started; call before `write_config`.

        Args:
            files: paths of the files that the run reads, by config key. Missing files are not checked here.
        """
        record = self.path / "inputs.json"
        stored = read_json(record) if self.resuming and record.is_file() else {}
        if not isinstance(stored, dict):
            raise UserError(f"{record} is damaged: it is not a JSON object")
        recorded = {key: build_stored(_InputFile, entry, f"{record}: {key}") for key, entry in stored.items()}
        for key, path in files.items():
            if path.is_file():
                initial, status = recorded.get(key), path.stat()
                if initial and (initial.size, initial.mtime_ns) == (status.st_size, status.st_mtime_ns):
                    continue
                current = _InputFile(str(path), status.st_size, status.st_mtime_ns, digest(path))
                if initial and initial.sha256 != current.sha256:
                    raise UserError(
                        f"{path} ({key}) has changed since {self.path} was started; restore it, or choose another --out"
                    )
                recorded[key] = current
        entries = {key: asdict(entry) for key, entry in recorded.items()}
        self._inputs = json.dumps(entries, indent=2) + "\n" if entries else ""

    def write_config(self, config: Any) -> None:
        """Write the complete ``config.yaml``, and the fingerprints of the images and input files."""
        text = to_yaml(config)
        if not self.resuming or self.stored_config() != yaml.safe_load(text):  # else keep the user's comments
            header = f"{RUN_HEADER} {self.command} (crosschannel {__version__})\n"
            self.write("config.yaml", header + text)
        if self._images:
            self.write("images.json", self._images)
        if self._inputs:
            self.write("inputs.json", self._inputs)

    def write(self, name: str, text: str) -> Path:
        """Write a text file atomically."""
        return write_text(self.path / name, text)

    def log_metrics(self, step: int, **values: Any) -> None:
        """Append a row to ``metrics.jsonl``."""
        append_line(self.path / "metrics.jsonl", {"step": step, **values})

    def forget_metrics_after(self, step: int, evaluated: bool = True) -> None:
        """Drop the rows of ``metrics.jsonl`` that a resumed run will write again, and an incomplete last row.

        Args:
            step: number of completed steps.
            evaluated: whether the evaluation at that step is also complete.
        """
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        if not evaluated:
            rows = [row for row in rows if row["step"] < step or not any(key.startswith("val/") for key in row)]
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def last_pictures(run: Path) -> Path | None:
    """Return the path of a run's latest pictures of held-out images, or None."""
    return max((run / "samples").glob("*.png"), default=None)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's ``metrics.jsonl``, each with its ``step``; damaged rows are skipped."""
    rows = read_rows(run / "metrics.jsonl")
    return [row for row in rows if isinstance(row.get("step"), int) and all(map(_is_number, row.values()))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
