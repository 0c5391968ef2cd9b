"""Accuracy by layer, as in the paper's Fig. 7."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Curve = Mapping[str, tuple[float, float]]  # layer → (mean, standard deviation over seeds), in percent

_COLOURS = ("#c0392b", "#2980b9", "#27ae60", "#8e44ad", "#d35400", "#16a085", "#2c3e50", "#b7950b")
_GREYS = ("#52606d", "#7b8794", "#9aa5b1", "#b8a88a", "#a3b8a0", "#b09fb8", "#8fa8b8")


def accuracy_by_layer(
    out: Path,
    layers: Sequence[str],
    measured: Mapping[str, Curve],
    what: str,
    published: Mapping[str, Curve] | None = None,
    published_what: str = "",
) -> Path:
    """Plot measured curves solid and published ones dotted.

    Args:
        out: a PNG.
        layers: along the axis.
        measured: curves by label.
        what: the measured axis' words.
        published: other people's curves by label.
        published_what: where they are not comparable with the measured ones, the words of an axis of their own
            beside; empty draws all on one.

    Returns:
        ``out``.
    """
    from matplotlib.figure import Figure

    apart = bool(published and published_what)
    figure = Figure(figsize=(11 if apart else 7.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2) if apart else [figure.subplots()]
    _draw(panels[0], layers, measured, _COLOURS, "-")
    panels[0].set_ylabel(what)
    if published:
        _draw(panels[-1], layers, published, _GREYS, ":")
    if apart:
        panels[1].set_ylabel(published_what)
    for axes in panels:
        axes.set_xticks(range(len(layers)), layers, rotation=45 if len(layers) > 8 else 0)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=130)
    return out


def _draw(axes, layers: Sequence[str], curves: Mapping[str, Curve], colours: Sequence[str], style: str) -> None:
    for i, (label, curve) in enumerate(curves.items()):
        places = [place for place, layer in enumerate(layers) if layer in curve]
        means, spreads = zip(*(curve[layers[place]] for place in places), strict=True)
        colour = colours[i % len(colours)]
        axes.plot(places, means, style, color=colour, label=label, marker="o" if style == "-" else ".", markersize=4)
        if any(spreads):
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
