"""What a protocol gives back, and how it lies in a run folder: ``result.json`` and ``predictions.npz``."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from crosschannel.errors import UserError
from crosschannel.files import is_run_folder, user_path, written_whole
from crosschannel.stored import read_arrays
from crosschannel.training.run_folder import read_result

ROWS = "predictions.npz"


@dataclass
class Result:
    """Figures of one run.

    Attributes:
        protocol: such as "linear-probe".
        backbone: its source.
        data: what it was measured on.
        config: the whole, as in ``config.yaml``.
        seed: of the run.
        n: images that the metrics are over.
        version: of crosschannel.
        metrics: a flat map of fractions, such as ``conv5/top1``.
        rows: arrays of length n: ``names``, ``labels``, a prediction a layer (``conv5/prediction``), and for every
            metric that is a mean over images its row per image under the metric's name.
    """

    protocol: str
    backbone: str
    data: str
    config: dict[str, Any]
    seed: int
    n: int
    version: str
    metrics: dict[str, float]
    rows: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def scores(self) -> dict[str, np.ndarray]:
        """The per-image rows of metrics that are means over images."""
        return {name: row for name, row in self.rows.items() if name in self.metrics}


def save_rows(run: Path, rows: dict[str, np.ndarray]) -> None:
    """Write ``predictions.npz`` at once or not at all."""
    with written_whole(run / ROWS) as part, part.open("wb") as file:
        np.savez_compressed(file, **rows)


def load_result(run: Path | str) -> Result:
    """The result of a finished run folder.

    Raises:
        UserError: no such folder, not finished, or damaged.
    """
    path = user_path(run)
    if not path.is_dir():
        raise UserError(f"no run folder {str(run)!r}")
    stored = read_result(path)
    rows = read_arrays(path / ROWS) if (path / ROWS).is_file() else {}
    numeric = all(rows[name].dtype.kind in "biuf" for name in rows if name in stored.metrics or name == "labels")
    complete = not rows or ({"names", "labels"} <= rows.keys() and rows["names"].dtype.kind == "U")
    if not (numeric and complete and all(row.shape == (stored.n,) for row in rows.values())):
        raise UserError(f"{path / ROWS} is damaged: it does not hold a row for each of the {stored.n} images")
    return Result(**vars(stored), rows=rows)


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
            without.append(f"{path}: {'it has not finished' if is_run_folder(path) else 'it is no run folder'}")
    if without and not found:
        raise UserError(f"no result in {without[0]}")
    for words in without:
        console.print(f"left out {words}", markup=False)
    return found


def classification_rows(layer: str, ranked: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of one layer's classifier.

    Args:
        layer: its name.
        ranked: (n, k) class numbers, the most likely first.
        labels: (n,).

    Returns:
        ``LAYER/prediction``, ``LAYER/top1`` and, where k is 5, ``LAYER/top5``.
    """
    hits = ranked == labels[:, None]
    rows = {f"{layer}/prediction": ranked[:, 0], f"{layer}/top1": hits[:, 0]}
    if ranked.shape[1] >= 5:
        rows[f"{layer}/top5"] = hits[:, :5].any(1)
    return rows


def class_accuracy(metric: str, hits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """``METRIC/CLASS``: accuracy within every class that has images."""
    return {f"{metric}/{name}": float(hits[labels == i].mean()) for i, name in enumerate(classes) if i in labels}
