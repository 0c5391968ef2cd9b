"""Plots of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crosschannel.console import escape_control
from crosschannel.evaluation.metrics import metrics
from crosschannel.evaluation.scores import FARTHEST
from crosschannel.files import Writer
from crosschannel.report.plots import COLOURS
from crosschannel.runs.result import Rows


def error_curves(out: Path, curves: Mapping[str, np.ndarray], weights: np.ndarray | None, write: Writer) -> None:
    """The share of pixels within a distance, raw and rebalanced.

    Args:
        out: a PNG.
        curves: by method, pixels by true bin and level of error, (313, 152).
        weights: of a pixel of each bin, (313,); None: every bin counts the same.
        write: what opens the file.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 4.2), layout="constrained")
    panels = canvas.subplots(1, 2)
    for number, (name, levels) in enumerate(curves.items()):
        within, total = levels.cumsum(1)[:, : FARTHEST + 1], levels.sum(1)
        of_bins = np.where(total > 0, 1 / np.maximum(total, 1), 0) if weights is None else weights
        for axes, w in zip(panels, (np.ones(len(total)), of_bins), strict=True):
            axes.plot(
                100 * (w @ within) / (w @ total), color=COLOURS[number % len(COLOURS)], label=escape_control(name)
            )
    rebalanced = "every bin of ab counts the same" if weights is None else "a pixel counts by how rare its colour is"
    for axes, title in zip(panels, ("raw: every pixel counts the same", f"rebalanced: {rebalanced}"), strict=True):
        axes.set(xlabel="distance in ab", ylabel="pixels within it, %", title=title, xlim=(0, FARTHEST), ylim=(0, 102))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e7eb")
    panels[-1].legend(frameon=False)
    with write(out) as part:
        canvas.savefig(part, dpi=120, format="png")


def over_photographs(out: Path, rows: Rows, names: Sequence[str], seed: int, write: Writer) -> None:
    """Rebalanced AuC of some photographs, chosen at random, against how many."""
    from matplotlib.figure import Figure as Canvas

    n = len(rows["names"])
    counts = np.unique(np.geomspace(min(10, n), n, 12).round().astype(int))
    order = np.random.default_rng(seed).permutation(n)
    columns = {name: column for name, column in rows.items() if len(column) == n}
    found = [
        metrics({name: column[order[:count]] for name, column in columns.items()}, np.ones((1, count)))
        for count in counts
    ]
    canvas = Canvas(figsize=(6.5, 4), layout="constrained")
    axes = canvas.subplots()
    for number, name in enumerate(names):
        curve = [100 * one[f"{name}/auc_rebalanced"][0] for one in found]
        axes.plot(counts, curve, marker=".", color=COLOURS[number % len(COLOURS)], label=escape_control(name))
    axes.set(xscale="log", xlabel="photographs", ylabel="rebalanced AuC, %")
    ticks = counts[:: max(1, len(counts) // 5)]
    axes.set_xticks(ticks, ticks)
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb")
    axes.legend(frameon=False)
    with write(out) as part:
        canvas.savefig(part, dpi=120, format="png")


def labelled_rows(
    out: Path, pictures: Sequence[Sequence[np.ndarray]], heads: Sequence[str], labels: Sequence[str], write: Writer
) -> None:
    """Pictures (S, S, 3) uint8 in a grid: words over every column, and over every row."""
    from matplotlib.figure import Figure as Canvas

    columns = len(heads)
    canvas = Canvas(figsize=(1.7 * columns, 2.05 * len(pictures)), layout="constrained")
    grid = canvas.subplots(len(pictures), columns, squeeze=False)
    for row, (shown, label) in enumerate(zip(pictures, labels, strict=True)):
        for column, (picture, head) in enumerate(zip(shown, heads, strict=True)):
            axes = grid[row, column]
            axes.imshow(picture)
            axes.set_axis_off()
            axes.set_title(escape_control(head), fontsize=9)
        if label:
            words = grid[row, 0].text(
                0, -0.04, escape_control(label), transform=grid[row, 0].transAxes, fontsize=8, va="top"
            )
            words.set_in_layout(False)
    with write(out) as part:
        canvas.savefig(part, dpi=110, format="png")
