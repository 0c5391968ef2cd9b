"""Plot of the losses and the primary metric of a run."""

from pathlib import Path

from crosschannel.files import atomic_write
from crosschannel.runs.folder import read_metrics


def validation_curve(
    run: Path, out: Path, metric: str, baseline: tuple[float, str] | None = None, label: str = ""
) -> Path:
    """Plot training and validation loss by step, and the primary metric in a second panel.

    Args:
        run: the run folder.
        out: the PNG to write.
        metric: name of the primary metric, such as "kl_share".
        baseline: baseline value of the metric, and its label.
        label: axis label of the metric; default: its name.

    Returns:
        ``out``.
    """
    from matplotlib.figure import Figure

    rows = read_metrics(run)
    figure = Figure(figsize=(9, 3.6))
    # Fixed margins, since automatic layout takes twice as long.
    left, right = figure.subplots(
        1, 2, gridspec_kw={"left": 0.08, "right": 0.98, "bottom": 0.14, "top": 0.9, "wspace": 0.25}
    )
    for key, series, colour in (("train/loss", "Training", "#9aa5b1"), ("val/loss", "Validation", "#c0392b")):
        _draw_line(left, rows, key, series, colour)
    left.set(xlabel="Step", ylabel="Loss", title="Loss")
    _draw_line(right, rows, f"val/{metric}", "Validation", "#c0392b")
    if baseline:
        right.axhline(baseline[0], color="#9aa5b1", linestyle=":", label=f"Baseline: {baseline[1]}")
    right.set(xlabel="Step", ylabel=label or metric, title="Primary metric on held-out images")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(out) as part:
        figure.savefig(part, dpi=120, format="png")
    return out


def _draw_line(axes, rows, key: str, label: str, colour: str) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="." if len(points) < 40 else None)
