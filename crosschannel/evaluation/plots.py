"""Plots of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crosschannel.console import escape_control
from crosschannel.evaluation.metrics import metrics
from crosschannel.evaluation.scores import MAX_THRESHOLD
from crosschannel.files import Writer
from crosschannel.report.plots import COLOURS
from crosschannel.runs.result import Rows


def error_curves(out: Path, level_counts: Mapping[str, np.ndarray], weights: np.ndarray | None, write: Writer) -> None:
    """Plot the percentage of pixels by distance to the true ab, in a raw and a rebalanced panel.

    Args:
        out: the PNG to write.
        level_counts: pixel counts by true bin and error level, (313, 152), for every method.
        weights: weight of the pixels of each bin, (313,); None gives all bins equal weight.
        write: context manager that opens the output file.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 4.2), layout="constrained")
    panels = canvas.subplots(1, 2)
    for index, (name, levels) in enumerate(level_counts.items()):
        within, total = levels.cumsum(1)[:, : MAX_THRESHOLD + 1], levels.sum(1)
        bin_weights = np.where(total > 0, 1 / np.maximum(total, 1), 0) if weights is None else weights
        for axes, w in zip(panels, (np.ones(len(total)), bin_weights), strict=True):
            axes.plot(100 * (w @ within) / (w @ total), color=COLOURS[index % len(COLOURS)], label=escape_control(name))
    rebalanced = "all ab bins have equal weight" if weights is None else "rare colours have larger weights"
    for axes, title in zip(panels, ("Raw: all pixels have equal weight", f"Rebalanced: {rebalanced}"), strict=True):
        axes.set(
            xlabel="Distance to the true ab",
            ylabel="Pixels within this distance (%)",
            title=title,
            xlim=(0, MAX_THRESHOLD),
            ylim=(0, 102),
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e7eb")
    panels[-1].legend(frameon=False)
    with write(out) as temporary:
        canvas.savefig(temporary, dpi=120, format="png")


def auc_by_image_count(out: Path, rows: Rows, names: Sequence[str], seed: int, write: Writer) -> None:
    """Plot the rebalanced AuC of random subsets of the images, by the size of the subset."""
    from matplotlib.figure import Figure as Canvas

    n = len(rows["names"])
    counts = np.unique(np.geomspace(min(10, n), n, 12).round().astype(int))
    order = np.random.default_rng(seed).permutation(n)
    columns = {name: column for name, column in rows.items() if len(column) == n}
    subsets = [
        metrics({name: column[order[:count]] for name, column in columns.items()}, np.ones((1, count)))
        for count in counts
    ]
    canvas = Canvas(figsize=(6.5, 4), layout="constrained")
    axes = canvas.subplots()
    for index, name in enumerate(names):
        curve = [100 * values[f"{name}/auc_rebalanced"][0] for values in subsets]
        axes.plot(counts, curve, marker=".", color=COLOURS[index % len(COLOURS)], label=escape_control(name))
    axes.set(xscale="log", xlabel="Number of images", ylabel="Rebalanced AuC (%)")
    ticks = counts[:: max(1, len(counts) // 5)]
    axes.set_xticks(ticks, ticks)
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb")
    axes.legend(frameon=False)
    with write(out) as temporary:
        canvas.savefig(temporary, dpi=120, format="png")


def labelled_rows(
    out: Path, pictures: Sequence[Sequence[np.ndarray]], heads: Sequence[str], labels: Sequence[str], write: Writer
) -> None:
    """Draw a grid of pictures (S, S, 3) uint8.

    Args:
        out: the PNG to write.
        pictures: rows of pictures.
        heads: titles of the columns.
        labels: labels below the rows; empty for rows without a label.
        write: context manager that opens the output file.
    """
    from matplotlib.figure import Figure as Canvas

    columns = len(heads)
    canvas = Canvas(figsize=(1.7 * columns, 2.05 * len(pictures)), layout="constrained")
    grid = canvas.subplots(len(pictures), columns, squeeze=False)
    for row, (row_pictures, label) in enumerate(zip(pictures, labels, strict=True)):
        for column, (picture, head) in enumerate(zip(row_pictures, heads, strict=True)):
            axes = grid[row, column]
            axes.imshow(picture)
            axes.set_axis_off()
            axes.set_title(escape_control(head), fontsize=9)
        if label:
            text = grid[row, 0].text(
                0, -0.04, escape_control(label), transform=grid[row, 0].transAxes, fontsize=8, va="top"
            )
            text.set_in_layout(False)
    with write(out) as temporary:
        canvas.savefig(temporary, dpi=110, format="png")
