"""Plots of PASCAL's classes: figures by class, and which class is taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crosschannel.console import escape_control
from crosschannel.files import Writer
from crosschannel.report.plots import COLOURS
from crosschannel.runs.result import Result, Rows
from transfer.groups import Group
from transfer.pascal.segmentation import summed

_SHOWN = 40  # classes of a confusion matrix, which has a row and a column for each


def classes_of(result: Result, prefix: str) -> list[str]:
    """The classes that have figures of a prefix such as ``ap/``."""
    return [name.removeprefix(prefix) for name in result.metrics if name.startswith(prefix)]


def bars_by_class(out: Path, groups: Sequence[Group], prefix: str, axis: str, write: Writer) -> None:
    """Bars by class, a colour a run."""
    from matplotlib.figure import Figure as Canvas

    classes = list(dict.fromkeys(name for entry in groups for name in classes_of(entry.first, prefix)))
    canvas = Canvas(figsize=(9, 0.26 * len(classes) * max(1.0, len(groups) / 3) + 1.2), layout="constrained")
    axes, height = canvas.subplots(), 0.8 / len(groups)
    for number, entry in enumerate(groups):
        found = [entry.over_seeds(prefix + name) for name in classes]
        places = [i + (number - (len(groups) - 1) / 2) * height for i, one in enumerate(found) if one]
        axes.barh(
            places,
            [100 * one[0] for one in found if one],
            height,
            xerr=[100 * one[1] for one in found if one] if len(entry.runs) > 1 else None,
            color=COLOURS[number % len(COLOURS)],
            label=escape_control(entry.label),
        )
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06 - 0.6 / len(classes)))
    with write(out) as part:
        canvas.savefig(part, dpi=120, format="png")


def confusion_matrix(out: Path, rows: Rows, write: Writer) -> None:
    """The pixels of all images by true class (rows, each of 100 %) and predicted class."""
    from matplotlib.figure import Figure as Canvas

    names, column = list(rows["classes"]), rows["confusion"]
    pixels = summed(column, np.ones((1, len(column))), len(names))[0]
    largest = np.sort(np.argsort(-pixels.sum(1), kind="stable")[:_SHOWN])
    shares = (100 * pixels / np.maximum(pixels.sum(1, keepdims=True), 1))[np.ix_(largest, largest)]
    title = f"the {_SHOWN} of {len(names)} classes with the most pixels" if len(names) > _SHOWN else ""
    names = [names[number] for number in largest]
    side = 0.36 * len(names) + 2
    canvas = Canvas(figsize=(side, side), layout="constrained")
    axes = canvas.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for i, j in zip(*np.nonzero(shares >= 1), strict=True):
        colour = "white" if shares[i, j] > 55 else "black"
        number = axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        number.set_in_layout(False)  # it is inside the axes: to measure it takes time
    with write(out) as part:
        canvas.savefig(part, dpi=120, format="png")
