"""A run folder: one command's config, log, checkpoints and results, held by one process group at a time."""

import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

import crosschannel
from crosschannel.data import ImageSet
from crosschannel.errors import UserError
from crosschannel.training.config import TrainConfig, defaults, flatten, runtime_keys, to_yaml
from crosschannel.training.device import resolve_auto
from crosschannel.training.ranks import World

_HEADER = "# crosschannel run:"


class RunFolder:
    """Open (or create) the folder of one run and hold it until the process ends.

    Args:
        path: the folder.
        command: what runs here, such as "pretrain"; a folder of another command is refused.
        hold: take the lock; False for the ranks that follow one that has it.

    Attributes:
        finished: the run has ended; ``result.json`` is there.
        resuming: the run was begun before.

    Raises:
        UserError: another process holds it, or it is a non-empty folder of something else.
    """

    def __init__(self, path: Path, command: str, hold: bool = True):
        self.path, self.command = path, command
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; --out takes a folder")
        foreign = path.is_dir() and any(
            entry.name not in (".lock", "slurm") and entry.suffix != ".part" for entry in path.iterdir()
        )
        self.resuming = (path / "config.yaml").is_file()
        if foreign and not (self.resuming and self._header() == f"{_HEADER} {command}"):
            raise UserError(f"{path} is not empty and not a run of `{command}`; give another --out")
        if hold:
            self._lock()
        self.finished = (path / "result.json").is_file()
        self._images = ""

    def _header(self) -> str:
        with (self.path / "config.yaml").open() as file:
            return file.readline().partition("(")[0].strip()

    def _lock(self) -> None:
        """A POSIX record lock: gone with its process however that dies, and not inherited by loader workers."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks, say
                raise UserError(f"cannot lock {self.path / '.lock'}: {error.strerror}") from None
            self._handle.seek(0)
            holder = self._handle.read().strip() or "another process"
            raise UserError(f"{self.path} is in use by {holder}") from None
        self._handle.truncate(0)
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
        self._handle.write(f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
        self._handle.flush()
        os.fsync(self._handle.fileno())  # for other nodes to read

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def stored_config(self) -> dict[str, Any]:
        """What ``config.yaml`` says."""
        try:
            stored = yaml.safe_load((self.path / "config.yaml").read_text())
        except yaml.YAMLError as error:
            raise UserError(f"{self.path / 'config.yaml'} is damaged: {str(error).splitlines()[0]}") from None
        if not isinstance(stored, dict):
            raise UserError(f"{self.path / 'config.yaml'} is damaged: it holds no keys")
        return stored

    def check_science(self, config: Any) -> None:
        """Refuse a config whose science keys differ from the stored ones; ``auto`` agrees with anything.

        Keys that the stored file lacks (it may be older) had the defaults that such keys got: what was done before.
        """
        free = runtime_keys(config)
        stored, asked = defaults(config) | flatten(self.stored_config()), flatten(asdict(config))
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

    def check_images(self, train: ImageSet, val: ImageSet) -> None:
        """Refuse other images than the run was begun on, wherever they are now; to be called before `write_config`."""
        self._images = json.dumps({"train": train.names.fingerprint(), "val": val.names.fingerprint()})
        begun = self.path / "images.json"
        known = begun.read_text() if begun.is_file() else None
        differ = self.finished if known is None else known != self._images  # of an older run the checkpoint knows
        if self.resuming and differ:
            raise UserError(
                f"{self.path} was begun on other images than those that --data now gives; give another --out"
            )

    def write_config(self, config: Any) -> None:
        """Write ``config.yaml``, complete and enough to run again, and ``images.json``, to know the images by."""
        head = f"{_HEADER} {self.command} (crosschannel {crosschannel.__version__})\n"
        self.write("config.yaml", head + to_yaml(config))
        if self._images:
            self.write("images.json", self._images)

    def write(self, name: str, text: str) -> Path:
        """Write a text file at once or not at all."""
        path = self.path / name
        part = path.with_name(path.name + ".part")
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        return path

    def log_metrics(self, step: int, **values: Any) -> None:
        """Append a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

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

    def finish(self, backbone: str, data: str, seed: int, n: int, metrics: dict[str, float]) -> None:
        """Write ``result.json``, which marks the run as finished.

        Args:
            backbone: its source.
            data: what it was measured on.
            seed: of the run.
            n: images that the metrics are over.
            metrics: a flat map of figures.
        """
        result = {
            "protocol": self.command,
            "backbone": backbone,
            "data": data,
            "config": self.stored_config(),
            "seed": seed,
            "n": n,
            "version": crosschannel.__version__,
            "metrics": metrics,
        }
        self.write("result.json", json.dumps(result, indent=2) + "\n")
        self.finished = True


def open_run(path: Path, command: str, config: Any, world: World) -> RunFolder:
    """The run folder of a command on all ranks: rank 0 takes it, and all learn whether that went well.

    Raises:
        UserError: it is taken, foreign, or was begun with other settings.
    """
    run = None

    def take() -> None:
        nonlocal run
        run = RunFolder(path, command)
        if run.resuming:
            run.check_science(config)

    world.from_main(take)
    return run or RunFolder(path, command, hold=False)


def settle_auto(train: TrainConfig, run: RunFolder, world: World) -> None:
    """Fill in every `auto`, in place: as the run began, or by the table; rank 0 decides."""
    keys = ("precision", "channels_last", "compile")
    if world.is_main and run.resuming:
        stored = flatten(run.stored_config())
        for key in keys:
            if getattr(train, key) == "auto":
                setattr(train, key, stored.get(f"train.{key}", "auto"))
    resolve_auto(train, world.device)
    for key in keys:
        setattr(train, key, world.gather(getattr(train, key))[0])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``; a line that was cut off is left out."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
