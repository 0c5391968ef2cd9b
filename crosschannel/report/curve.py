"""The validation curve of a pretraining run, as a PNG."""

from pathlib import Path

from crosschannel.files import atomic_write
from crosschannel.runs.folder import read_metrics


def validation_curve(run: Path, out: Path, figure_name: str, reference: tuple[float, str] | None = None) -> Path:
    """Plot training and validation loss against steps, and the figure that a task is judged by beside them.

    Args:
        run: the run folder.
        out: the picture.
        figure_name: such as kl_share.
        reference: a value of it to compare with, and what gives that.
    """
    from matplotlib.figure import Figure

    rows = read_metrics(run)
    figure = Figure(figsize=(9, 3.6))
    # Fixed margins: matplotlib takes twice the time to find them.
    left, right = figure.subplots(
        1, 2, gridspec_kw={"left": 0.08, "right": 0.98, "bottom": 0.14, "top": 0.9, "wspace": 0.25}
    )
    for name, colour in (("train/loss", "#9aa5b1"), ("val/loss", "#c0392b")):
        _line(left, rows, name, colour)
    left.set(xlabel="step", ylabel="loss", title="loss")
    _line(right, rows, f"val/{figure_name}", "#c0392b")
    if reference:
        right.axhline(reference[0], color="#9aa5b1", linestyle=":", label=reference[1])
    right.set(xlabel="step", ylabel=figure_name, title="held-out images")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(out) as part:
        figure.savefig(part, dpi=120, format="png")
    return out


def _line(axes, rows, name: str, colour: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=name, marker="." if len(points) < 40 else None)
