"""Accuracy by layer, as in the paper's Fig. 7."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crosschannel.console import plain
from crosschannel.files import Writer, written_whole

Curve = Mapping[str, tuple[float, float]]  # layer → (mean, standard deviation over seeds), in percent

COLOURS = ("#c0392b", "#2980b9", "#27ae60", "#8e44ad", "#d35400", "#16a085", "#2c3e50", "#b7950b")
_MUTED = ("#1f2933", "#9aa5b1", "#b8860b", "#6b8e23", "#8b5a8b", "#4682b4", "#cd5c5c")


def accuracy_by_layer(
    out: Path,
    layers: Sequence[str],
    measured: Mapping[str, Curve],
    what: str,
    published: Mapping[str, Curve] | None = None,
    published_what: str = "",
    write: Writer = written_whole,
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
    _draw(panels[0], layers, measured, COLOURS, "-")
    panels[0].set_ylabel(what)
    if published:
        theirs = [layer for layer in layers if any(layer in curve for curve in published.values())]
        _draw(panels[-1], theirs if apart else layers, published, _MUTED, ":")
    if apart:
        panels[1].set_ylabel(published_what)
    for axes, shown in zip(panels, (layers, theirs) if apart else (layers,), strict=True):
        turned = len(shown) > 8
        axes.set_xticks(range(len(shown)), shown, rotation=45 if turned else 0)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb")
        columns = 2 if len(axes.lines) > 5 else 1
        axes.legend(
            frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17 if turned else -0.1), ncol=columns
        )
    with write(out) as part:
        figure.savefig(part, dpi=130, format="png")
    return out


def _draw(axes, layers: Sequence[str], curves: Mapping[str, Curve], colours: Sequence[str], style: str) -> None:
    for i, (label, curve) in enumerate(curves.items()):
        places = [place for place, layer in enumerate(layers) if layer in curve]
        if not places:
            continue
        means, spreads = zip(*(curve[layers[place]] for place in places), strict=True)
        colour = colours[i % len(colours)]
        axes.plot(
            places, means, style, color=colour, label=plain(label), marker="o" if style == "-" else ".", markersize=4
        )
        if any(spreads):
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
