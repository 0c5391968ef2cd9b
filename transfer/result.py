"""What a protocol gives back, and how it lies in a run folder: ``result.json`` and ``predictions.npz``."""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from crosschannel.errors import UserError


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
    part = run / "predictions.npz.part"
    with part.open("wb") as file:
        np.savez_compressed(file, **rows)
    part.replace(run / "predictions.npz")


def load_result(run: Path | str) -> Result:
    """The result of a finished run folder.

    Raises:
        UserError: no such folder, not finished, or damaged.
    """
    path = Path(run).expanduser()
    if not path.is_dir():
        raise UserError(f"no run folder {str(run)!r}")
    if not (path / "result.json").is_file():
        hint = "it has not finished" if (path / "config.yaml").is_file() else "it is no run folder"
        raise UserError(f"{run} has no result.json: {hint}")
    try:
        stored = json.loads((path / "result.json").read_text())
        rows = {}
        if (path / "predictions.npz").is_file():
            with np.load(path / "predictions.npz", allow_pickle=False) as file:
                rows = {name: file[name] for name in file.files}
        return Result(**stored, rows=rows)
    except (ValueError, TypeError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"the result of {run} is damaged: {error}") from None


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
