"""Results of finished runs: metrics in ``result.json``, per-image rows in ``predictions.npz``."""

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
UNTRAINED = ("random:", "gaussian:", "kmeans:")  # prefixes of the sources of untrained baselines
_TEXT_COLUMNS = ("names", "classes")
_COUNTS_SUFFIX = "#counts"  # suffix of the array that stores the counts of a ragged column


@dataclass(frozen=True)
class Ragged:
    """A column with a varying number of values per image, such as detections.

    Attributes:
        values: (total, …), the values of all images, in image order.
        counts: (n,) int64, number of values per image.
    """

    values: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, images: np.ndarray) -> "Ragged":
        """Select images by index."""
        starts = np.cumsum(self.counts) - self.counts
        indices = [np.arange(starts[i], starts[i] + self.counts[i]) for i in images]
        return Ragged(self.values[np.concatenate([np.empty(0, np.int64), *indices])], self.counts[images])


Column = np.ndarray | Ragged
# Columns by name, (n, …) each: "names" of the images, and the values that a protocol computes its metrics from. Only
# "classes" is not per image.
Rows = Mapping[str, Column]


@dataclass(repr=False)
class Result:
    """Result of a run; its repr is a table of its metrics.

    Attributes:
        protocol: name of the protocol, such as "linear-probe".
        backbone: source of the backbone.
        data: source of the images, as passed to ``--data``.
        config: complete config, as in ``config.yaml``.
        seed: random seed of the run.
        n: number of images that the metrics are computed on.
        version: version of crosschannel.
        metrics: values by name, such as ``conv5/top1``; accuracies are fractions.
        science: config values that distinguish runs, by dotted name, except backbone, data and seed; None in results
            of versions that did not store them.
        rows: columns by name: ``names`` of the n images, and the values that the metrics are computed from (see
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
        """Format the metrics, except those per class, as a table: ``conv5/top1`` is in row conv5, column top1."""
        cells: dict[str, dict[str, str]] = {}
        classes = {str(name) for name in self.rows.get("classes", ())}
        for name, value in self.metrics.items():
            if name.rpartition("/")[2] not in classes:
                row, _, column = name.partition("/") if "/" in name else ("", "", name)
                cells.setdefault(row, {})[column] = f"{value:.4g}"
        columns = list(dict.fromkeys(column for row in cells.values() for column in row))
        table = {row: [values.get(column, "") for column in columns] for row, values in cells.items()}
        return f"{self.protocol} of {self.backbone} on {self.data}, {self.n} images\n" + as_text(table, ["", *columns])


def finish(
    run: RunFolder, config: Any, backbone: str, data: str, n: int, metrics: dict[str, float], rows: Rows | None = None
) -> Result:
    """Write ``predictions.npz`` (if there are rows) and ``result.json``, which marks the run as finished.

    Args:
        run: locked run folder, with its config written.
        config: config of the run, with a key ``seed``.
        backbone: source of the backbone.
        data: source of the images.
        n: number of images that the metrics are computed on.
        metrics: metrics by name.
        rows: columns by name; see :data:`Rows`.

    Returns:
        the result, with its rows.
    """
    columns = {
        name: column if isinstance(column, Ragged) else np.asarray(column) for name, column in (rows or {}).items()
    }
    if columns:
        _check_lengths(columns, n, f"the predictions of {run.path}")
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
    """Write ``predictions.npz`` atomically."""
    arrays: dict[str, np.ndarray] = {}
    for name, column in rows.items():
        if isinstance(column, Ragged):
            arrays |= {name: column.values, name + _COUNTS_SUFFIX: column.counts}
        else:
            arrays[name] = np.asarray(column)
    with atomic_write(run / ROWS) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_rows(run: Path, n: int) -> dict[str, Column]:
    """Read the rows that :func:`save_rows` wrote; empty if the run stored none.

    Raises:
        UserError: the file is damaged, or does not have one row for each of the ``n`` images.
    """
    path = run / ROWS
    arrays = read_arrays(path) if path.is_file() else {}
    rows: dict[str, Column] = {}
    for name, array in arrays.items():
        is_text = name in _TEXT_COLUMNS
        if array.dtype.kind not in ("U" if is_text else "biuf") or (array.ndim != 1 if is_text else array.ndim < 1):
            kind = "a list of strings" if is_text else "numbers, one row per image"
            raise UserError(f"{path} is damaged: {name} is {array.dtype} of shape {array.shape}, not {kind}")
        counts = arrays.get(name + _COUNTS_SUFFIX)
        if counts is not None and not _counts_match(counts, array):
            raise UserError(f"{path} is damaged: the counts of {name} do not match its values")
        if not name.endswith(_COUNTS_SUFFIX):
            rows[name] = array if counts is None else Ragged(array, counts.astype(np.int64))
    if rows:
        _check_lengths(rows, n, f"{path} is damaged: it")
    return rows


def _check_lengths(rows: Rows, n: int, source: str) -> None:
    lengths = {len(column) for name, column in rows.items() if name != "classes"}
    if "names" not in rows or lengths != {n}:
        raise UserError(f"{source} must have a row for each of the {n} images")


def _counts_match(counts: np.ndarray, values: np.ndarray) -> bool:
    return counts.dtype.kind in "iu" and counts.ndim == 1 and (counts >= 0).all() and counts.sum() == len(values)


def read_result(run: Path) -> Result:
    """Read the result of a finished run, without its rows.

    Raises:
        UserError: ``result.json`` is missing or damaged.
    """
    path = run / "result.json"
    if not path.is_file():
        raise UserError(missing_file(run, "result.json"))
    return build_stored(Result, read_json(path), str(path))


def load_result(run: Path | str) -> Result:
    """Load the result of a finished run, with its rows.

    Args:
        run: the run folder.

    Raises:
        UserError: the folder does not exist, the run has not finished, or a file is damaged.
    """
    path = user_path(run)
    if not path.is_dir():
        raise UserError(f"the run folder {str(run)!r} does not exist")
    result = read_result(path)
    return replace(result, rows=load_rows(path, result.n))


def finished_runs(paths: Iterable[str], console: Console) -> list[tuple[Path, Result]]:
    """Load the results of run folders; those without a result are reported and skipped.

    Raises:
        UserError: a path does not exist, a result is damaged, or no run has finished.
    """
    results, problems = [], []
    for path in map(user_path, paths):
        if not path.exists():
            raise UserError(f"the run folder {str(path)!r} does not exist")
        if (path / "result.json").is_file():
            results.append((path, load_result(path)))
        else:
            problems.append(missing_file(path, "result.json"))
    if problems and not results:
        raise UserError(problems[0])
    for problem in problems:
        console.print(f"skipped: {problem}")
    return results


def missing_file(run: Path, name: str) -> str:
    """Explain why a path lacks a file that finished runs have, and how to get it."""
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


def write_provenance(run: RunFolder, input: Any, provenance: dict[str, Any]) -> None:
    """Write ``backbone.json``: input spec and provenance of the evaluated backbone."""
    run.write("backbone.json", json.dumps({"input": asdict(input), **provenance}, indent=2) + "\n")
