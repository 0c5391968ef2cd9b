"""Plots of accuracy by layer, as in the paper's Fig. 7."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crosschannel.console import escape_control
from crosschannel.files import Writer, atomic_write

Curve = Mapping[str, tuple[float, float]]  # layer → (mean, standard deviation over seeds), in percent

COLOURS = ("#c0392b", "#2980b9", "#27ae60", "#8e44ad", "#d35400", "#16a085", "#2c3e50", "#b7950b")
_MUTED_COLOURS = (
    "#1f2933", "#9aa5b1", "#b8860b", "#6b8e23", "#8b5a8b", "#4682b4", "#cd5c5c", "#20b2aa", "#d2691e", "#c71585",
)  # fmt: skip


def accuracy_by_layer(
    out: Path,
    layers: Sequence[str],
    measured: Mapping[str, Curve],
    ylabel: str,
    published: Mapping[str, Curve] | None = None,
    published_ylabel: str = "",
    write: Writer = atomic_write,
) -> Path:
    """Plot accuracy by layer: measured curves solid, published curves dotted.

    Args:
        out: the PNG to write.
        layers: layers on the x axis; curves may lack some of them.
        measured: measured curves by label.
        ylabel: title of the y axis; may contain a line break.
        published: published curves by label, over some or all of the layers.
        published_ylabel: title of the y axis of a second panel, for published curves that are not comparable with the
            measured ones. If it is empty, all curves share one panel.
        write: context manager that opens the output file.

    Returns:
        ``out``.
    """
    from matplotlib.figure import Figure

    two_panels = bool(published and published_ylabel)
    figure = Figure(figsize=(11 if two_panels else 7.5, 5), layout="constrained")
    panels = figure.subplots(1, 2) if two_panels else [figure.subplots()]
    _draw(panels[0], measured, COLOURS, "-", _layer_positions(layers))
    panels[0].set_ylabel(ylabel)
    if published:
        published_layers = [layer for layer in layers if any(layer in curve for curve in published.values())]
        _draw(panels[-1], published, _MUTED_COLOURS, ":", _layer_positions(published_layers if two_panels else layers))
    if two_panels:
        panels[1].set_ylabel(published_ylabel)
    for axes, ticks in zip(panels, (layers, published_layers) if two_panels else (layers,), strict=True):
        is_rotated = len(ticks) > 8
        axes.set_xticks(range(len(ticks)), ticks, rotation=45 if is_rotated else 0)
        axes.set_xlabel("Layer")
        _style(axes, -0.3 if is_rotated else -0.15)
    return _save(figure, out, write)


def accuracy_by_depth(out: Path, measured: Mapping[str, Curve], ylabel: str, write: Writer = atomic_write) -> Path:
    """Plot accuracy by relative depth, for nets with different layers: 0 is the first layer of a curve, 1 the last.

    Args:
        out: the PNG to write.
        measured: curves by label, each with its layers in order.
        ylabel: title of the y axis.
        write: context manager that opens the output file.

    Returns:
        ``out``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    _draw(axes, measured, COLOURS, "-", lambda curve: {k: i / max(1, len(curve) - 1) for i, k in enumerate(curve)})
    axes.set_xlabel("Relative depth (0: first measured layer, 1: last)")
    axes.set_ylabel(ylabel)
    _style(axes, -0.15)
    return _save(figure, out, write)


def _layer_positions(layers: Sequence[str]) -> Callable[[Curve], Mapping[str, float]]:
    """Return a function that maps the layers of a curve to their indices in ``layers``."""
    return lambda curve: {layer: index for index, layer in enumerate(layers) if layer in curve}


def _save(figure, out: Path, write: Writer) -> Path:
    with write(out) as part:
        figure.savefig(part, dpi=130, format="png")
    return out


def _style(axes, legend_y: float) -> None:
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    columns = 2 if len(axes.lines) > 5 else 1
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, legend_y), ncol=columns)


def _draw(
    axes,
    curves: Mapping[str, Curve],
    colours: Sequence[str],
    style: str,
    positions_of: Callable[[Curve], Mapping[str, float]],
) -> None:
    """Draw curves with bands of ± 1 std; ``positions_of`` maps the layers of a curve to x positions."""
    for i, (label, curve) in enumerate(curves.items()):
        positions = positions_of(curve)
        if not positions:
            continue
        x = list(positions.values())
        means, stds = zip(*(curve[layer] for layer in positions), strict=True)
        colour = colours[i % len(colours)]
        axes.plot(
            x,
            means,
            style,
            color=colour,
            label=escape_control(label),
            marker="o" if style == "-" else ".",
            markersize=4,
        )
        if any(stds):
            low, high = ([mean + sign * std for mean, std in zip(means, stds, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
