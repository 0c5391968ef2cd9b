"""Plots of PASCAL VOC results: bars per class, and confusion matrices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crosschannel.console import escape_control
from crosschannel.files import Writer
from crosschannel.report.plots import COLOURS
from crosschannel.runs.result import Result, Rows
from transfer.groups import Group
from transfer.pascal.segmentation import sum_confusions

_MAX_CLASSES = 40  # maximum number of classes of a confusion matrix; the plot is unreadable with more


def class_names(result: Result, prefix: str) -> list[str]:
    """Return the names of the classes with a metric that starts with ``prefix``, such as ``ap/``."""
    return [name.removeprefix(prefix) for name in result.metrics if name.startswith(prefix)]


def plot_class_bars(out: Path, groups: Sequence[Group], prefix: str, axis: str, write: Writer) -> None:
    """Plot a metric as bars per class, in one colour per group of runs.

    Args:
        out: PNG file to write.
        groups: groups of runs; bars show the mean over seeds.
        prefix: start of the metric names, such as ``ap/``.
        axis: label of the metric axis.
        write: writer of output files.
    """
    from matplotlib.figure import Figure as Canvas

    classes = list(dict.fromkeys(name for group in groups for name in class_names(group.first, prefix)))
    canvas = Canvas(figsize=(9, 0.26 * len(classes) * max(1.0, len(groups) / 3) + 1.2), layout="constrained")
    axes, height = canvas.subplots(), 0.8 / len(groups)
    for number, group in enumerate(groups):
        values = [group.mean_and_std(prefix + name) for name in classes]
        positions = [i + (number - (len(groups) - 1) / 2) * height for i, value in enumerate(values) if value]
        axes.barh(
            positions,
            [100 * value[0] for value in values if value],
            height,
            xerr=[100 * value[1] for value in values if value] if len(group.runs) > 1 else None,
            color=COLOURS[number % len(COLOURS)],
            label=escape_control(group.label),
        )
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06 - 0.6 / len(classes)))
    with write(out) as file:
        canvas.savefig(file, dpi=120, format="png")


def plot_confusion_matrix(out: Path, rows: Rows, write: Writer) -> None:
    """Plot the pixels of all images by true class (rows, normalised to 100 %) and predicted class (columns)."""
    from matplotlib.figure import Figure as Canvas

    names, column = list(rows["classes"]), rows["confusion"]
    pixels = sum_confusions(column, np.ones((1, len(column))), len(names))[0]
    largest = np.sort(np.argsort(-pixels.sum(1), kind="stable")[:_MAX_CLASSES])
    percent = (100 * pixels / np.maximum(pixels.sum(1, keepdims=True), 1))[np.ix_(largest, largest)]
    title = f"the {_MAX_CLASSES} of {len(names)} classes with the most pixels" if len(names) > _MAX_CLASSES else ""
    names = [names[label] for label in largest]
    side = 0.36 * len(names) + 2
    canvas = Canvas(figsize=(side, side), layout="constrained")
    axes = canvas.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for i, j in zip(*np.nonzero(percent >= 1), strict=True):
        colour = "white" if percent[i, j] > 55 else "black"
        text = axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        text.set_in_layout(False)  # the text lies inside the axes, and measuring it is slow
    with write(out) as file:
        canvas.savefig(file, dpi=120, format="png")
