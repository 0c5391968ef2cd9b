"""Accuracy by layer, as in the paper's Fig. 7."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crosschannel.console import escape_control
from crosschannel.files import Writer, atomic_write

Curve = Mapping[str, tuple[float, float]]  # layer → (mean, standard deviation over seeds), in percent

COLOURS = ("#c0392b", "#2980b9", "#27ae60", "#8e44ad", "#d35400", "#16a085", "#2c3e50", "#b7950b")
_MUTED = (
    "#1f2933", "#9aa5b1", "#b8860b", "#6b8e23", "#8b5a8b", "#4682b4", "#cd5c5c", "#20b2aa", "#d2691e", "#c71585",
)  # fmt: skip


def accuracy_by_layer(
    out: Path,
    layers: Sequence[str],
    measured: Mapping[str, Curve],
    what: str,
    published: Mapping[str, Curve] | None = None,
    published_what: str = "",
    write: Writer = atomic_write,
) -> Path:
    """Plot measured curves solid and published ones dotted.

    Args:
        out: a PNG.
        layers: along the axis; a curve may lack some of them.
        measured: curves by label.
        what: the measured axis' words; a line break keeps them short.
        published: other people's curves by label, over some or all of the layers.
        published_what: where they are not comparable with the measured ones, the words of an axis of their own
            beside; empty draws all on one.
        write: what opens the file.

    Returns:
        ``out``.
    """
    from matplotlib.figure import Figure

    apart = bool(published and published_what)
    figure = Figure(figsize=(11 if apart else 7.5, 5), layout="constrained")
    panels = figure.subplots(1, 2) if apart else [figure.subplots()]
    _draw(panels[0], measured, COLOURS, "-", _places(layers))
    panels[0].set_ylabel(what)
    if published:
        theirs = [layer for layer in layers if any(layer in curve for curve in published.values())]
        _draw(panels[-1], published, _MUTED, ":", _places(theirs if apart else layers))
    if apart:
        panels[1].set_ylabel(published_what)
    for axes, shown in zip(panels, (layers, theirs) if apart else (layers,), strict=True):
        turned = len(shown) > 8
        axes.set_xticks(range(len(shown)), shown, rotation=45 if turned else 0)
        _finish(axes, -0.17 if turned else -0.1)
    return _saved(figure, out, write)


def accuracy_by_depth(out: Path, measured: Mapping[str, Curve], what: str, write: Writer = atomic_write) -> Path:
    """Plot curves of nets whose layers are called differently: each net's from 0, the first, to 1, the last.

    Args:
        out: a PNG.
        measured: curves by label, their layers in order.
        what: the words of the upright axis.
        write: what opens the file.

    Returns:
        ``out``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    _draw(axes, measured, COLOURS, "-", lambda curve: {k: i / max(1, len(curve) - 1) for i, k in enumerate(curve)})
    axes.set_xlabel("relative depth: a layer's place among those measured")
    axes.set_ylabel(what)
    _finish(axes, -0.15)
    return _saved(figure, out, write)


def _places(layers: Sequence[str]) -> Callable[[Curve], Mapping[str, float]]:
    """Each layer at its number among all."""
    return lambda curve: {layer: place for place, layer in enumerate(layers) if layer in curve}


def _saved(figure, out: Path, write: Writer) -> Path:
    with write(out) as part:
        figure.savefig(part, dpi=130, format="png")
    return out


def _finish(axes, below: float) -> None:
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    columns = 2 if len(axes.lines) > 5 else 1
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, below), ncol=columns)


def _draw(
    axes,
    curves: Mapping[str, Curve],
    colours: Sequence[str],
    style: str,
    placed: Callable[[Curve], Mapping[str, float]],
) -> None:
    """Curves where ``placed`` has their layers."""
    for i, (label, curve) in enumerate(curves.items()):
        found = placed(curve)
        if not found:
            continue
        places = list(found.values())
        means, spreads = zip(*(curve[layer] for layer in found), strict=True)
        colour = colours[i % len(colours)]
        axes.plot(
            places,
            means,
            style,
            color=colour,
            label=escape_control(label),
            marker="o" if style == "-" else ".",
            markersize=4,
        )
        if any(spreads):
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
