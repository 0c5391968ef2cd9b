"""What a finished run found, and how it lies in its folder: figures in ``result.json``, rows in ``predictions.npz``."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosschannel.config.keys import science
from crosschannel.config.load import build_stored
from crosschannel.config.types import Count
from crosschannel.console import Console, as_text
from crosschannel.errors import UserError
from crosschannel.files import RUN_HEADER, atomic_write, is_run_folder, read_text, user_path
from crosschannel.runs.folder import RunFolder
from crosschannel.stored import read_arrays, read_json
from crosschannel.version import __version__

ROWS = "predictions.npz"
UNTRAINED = ("random:", "gaussian:", "kmeans:")  # how sources of baselines begin
_TEXTS = ("names", "classes")  # columns of strings
_COUNTS = "#counts"  # after the name of a ragged column: how many values each image has


@dataclass(frozen=True)
class Ragged:
    """A column of which images have different numbers of values, such as detections.

    Attributes:
        values: (total, …), those of the first image first.
        counts: (n,) int64, how many each image has.
    """

    values: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, images: np.ndarray) -> "Ragged":
        """The column of some images, by index."""
        starts = np.cumsum(self.counts) - self.counts
        places = [np.arange(starts[i], starts[i] + self.counts[i]) for i in images]
        return Ragged(self.values[np.concatenate([np.empty(0, np.int64), *places])], self.counts[images])


Column = np.ndarray | Ragged
# By name: "names" of the images, whatever a protocol's figures are computed from, (n, …) each; and "classes", which is
# the one that is not by image.
Rows = Mapping[str, Column]


@dataclass(repr=False)
class Result:
    """Figures of one run; printed, a small table of them.

    Attributes:
        protocol: such as "linear-probe".
        backbone: its source.
        data: what it was measured on.
        config: the whole, as in ``config.yaml``.
        seed: of the run.
        n: images that the metrics are over.
        version: of crosschannel.
        metrics: a flat map of fractions, such as ``conv5/top1``.
        science: the keys that tell runs apart besides backbone, data and seed, by dotted name; None in files of
            versions that did not write them.
        rows: columns by name: ``names`` of the n images, and what the figures are computed from (see
            :data:`Rows`).
    """

    protocol: str
    backbone: str
    data: str
    config: dict[str, Any]
    seed: int
    n: Count
    version: str
    metrics: dict[str, float]
    science: dict[str, Any] | None = None
    rows: dict[str, Column] = field(default_factory=dict, compare=False, metadata={"stored": False})

    def __repr__(self) -> str:
        """The metrics, less those by class: ``conv5/top1`` in row conv5, column top1."""
        cells: dict[str, dict[str, str]] = {}
        classes = {str(name) for name in self.rows.get("classes", ())}
        for name, value in self.metrics.items():
            if name.rpartition("/")[2] not in classes:
                row, _, column = name.partition("/") if "/" in name else ("", "", name)
                cells.setdefault(row, {})[column] = f"{value:.4g}"
        columns = list(dict.fromkeys(column for row in cells.values() for column in row))
        shown = {row: [found.get(column, "") for column in columns] for row, found in cells.items()}
        return f"{self.protocol} of {self.backbone} on {self.data}, {self.n} images\n" + as_text(shown, ["", *columns])


def finish(
    run: RunFolder, config: Any, backbone: str, data: str, n: int, metrics: dict[str, float], rows: Rows | None = None
) -> Result:
    """Write ``predictions.npz``, if there are rows, and ``result.json``, which marks the run as finished; return them.

    Args:
        run: held, its config written.
        config: of the run; has a seed.
        backbone: its source.
        data: what it was measured on.
        n: images that the metrics are over.
        metrics: a flat map of figures.
        rows: a row per image.
    """
    columns = {name: one if isinstance(one, Ragged) else np.asarray(one) for name, one in (rows or {}).items()}
    if columns:
        _check_lengths(columns, n, f"the rows of {run.path}")
        save_rows(run.path, columns)
    stored = run.stored_config()
    result = {
        "protocol": run.command,
        "backbone": backbone,
        "data": data,
        "config": stored,
        "seed": config.seed,
        "n": n,
        "version": __version__,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "science": science(config, stored),
    }
    run.write("result.json", json.dumps(result, indent=2) + "\n")
    run.finished = True
    return Result(**result, rows=columns)


def save_rows(run: Path, rows: Rows) -> None:
    """Write ``predictions.npz`` at once or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for name, column in rows.items():
        if isinstance(column, Ragged):
            arrays |= {name: column.values, name + _COUNTS: column.counts}
        else:
            arrays[name] = np.asarray(column)
    with atomic_write(run / ROWS) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_rows(run: Path, n: int) -> dict[str, Column]:
    """What :func:`save_rows` wrote; empty where there is nothing.

    Raises:
        UserError: it is damaged, or has no row for each of ``n`` images.
    """
    path = run / ROWS
    arrays = read_arrays(path) if path.is_file() else {}
    rows: dict[str, Column] = {}
    for name, array in arrays.items():
        is_text = name in _TEXTS
        if array.dtype.kind not in ("U" if is_text else "biuf") or (array.ndim != 1 if is_text else array.ndim < 1):
            kind = "a list of strings" if is_text else "numbers, one row per image"
            raise UserError(f"{path} is damaged: {name} is {array.dtype} of shape {array.shape}, not {kind}")
        counts = arrays.get(name + _COUNTS)
        if counts is not None and not _counts_rows(counts, array):
            raise UserError(f"{path} is damaged: the rows of {name} are not those that it counts")
        if not name.endswith(_COUNTS):
            rows[name] = array if counts is None else Ragged(array, counts.astype(np.int64))
    if rows:
        _check_lengths(rows, n, f"{path} is damaged: it")
    return rows


def _check_lengths(rows: Rows, n: int, source: str) -> None:
    lengths = {len(column) for name, column in rows.items() if name != "classes"}
    if "names" not in rows or lengths != {n}:
        raise UserError(f"{source} does not hold a row for each of the {n} images")


def _counts_rows(counts: np.ndarray, values: np.ndarray) -> bool:
    return counts.dtype.kind in "iu" and counts.ndim == 1 and (counts >= 0).all() and counts.sum() == len(values)


def read_result(run: Path) -> Result:
    """The figures of a finished run folder, without its rows.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = run / "result.json"
    if not path.is_file():
        raise UserError(missing_file(run, "result.json"))
    return build_stored(Result, read_json(path), str(path))


def load_result(run: Path | str) -> Result:
    """The result of a finished run folder, with its rows.

    Raises:
        UserError: no such folder, not finished, or damaged.
    """
    path = user_path(run)
    if not path.is_dir():
        raise UserError(f"no run folder {str(run)!r}")
    result = read_result(path)
    return replace(result, rows=load_rows(path, result.n))


def finished_runs(paths: Iterable[str], console: Console) -> list[tuple[Path, Result]]:
    """The results of run folders; those that have none (yet) are named and left out.

    Raises:
        UserError: a path is not there, a result is damaged, or none is finished.
    """
    found, without = [], []
    for path in map(user_path, paths):
        if not path.exists():
            raise UserError(f"no run folder {str(path)!r}")
        if (path / "result.json").is_file():
            found.append((path, load_result(path)))
        else:
            without.append(missing_file(path, "result.json"))
    if without and not found:
        raise UserError(without[0])
    for words in without:
        console.print(f"left out: {words}")
    return found


def missing_file(run: Path, name: str) -> str:
    """Explain in one sentence why a path lacks a file that a finished run has, and name the remedy."""
    if not run.is_dir():
        return f"{run} is not a run folder: it {'is a file' if run.exists() else 'does not exist'}"
    if not is_run_folder(run):
        return f"{run} has no {name}: it is not a run folder"
    header = read_text(run / "config.yaml").partition("\n")[0]
    command = header.removeprefix(RUN_HEADER).partition("(")[0].strip()
    if (run / "result.json").is_file():
        return f"{run} has no {name}: it is a finished run of `{command}`"
    program = "crosschannel" if command in ("pretrain", "evaluate") else "transfer"
    resume = shlex.join([program, command, "--config", str(run / "config.yaml"), "--out", str(run)])
    return f"{run} has no {name}: the run has not finished; `{resume}` resumes it"


def write_provenance(run: RunFolder, input: Any, described: dict[str, Any]) -> None:
    """Write ``backbone.json``: what a measured backbone is fed, and where its weights come from."""
    run.write("backbone.json", json.dumps({"input": asdict(input), **described}, indent=2) + "\n")
