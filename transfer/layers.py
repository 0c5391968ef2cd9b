"""Figures by layer (``conv5/top1``): the section of a report that protocols on frozen layers share."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table as Printed

from crosschannel.console import table
from crosschannel.report import Block, Figure, Heading, Table, Text, accuracy_by_depth, accuracy_by_layer
from crosschannel.runs.result import Result
from transfer.groups import Group, by_test_size, data_label, over_seeds, test_set_label
from transfer.protocols import load_metric_spec

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")  # of the published figures
_WORDS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_iu": "mean IU of a linear classifier",
    "knn_mean_iu": "mean IU of nearest neighbours",
    "svm_map": "mean average precision of SVMs",
}
_NUMBERED = {  # kinds with a number after a slash
    "shots": "accuracy from {} images a class",
    "share": "accuracy from a share {} of the labels",
    "low_shot": "mean average precision from {} positives a class",
}
_PATTERNS = {  # of kinds with numbers in them
    r"knn\d+(/t.*)?": "Nearest neighbours: images whose class their nearest training images vote for",
    r"(shots|share)/.*": "Few labels: top-1 accuracy of a classifier that learns from them alone, mean over draws",
    r"low_shot/.*": "Few positives: SVMs that learn from them and the negatives, mean over draws",
}
_MEANINGS = {
    "top1": "images whose class is the one said first",
    "top5": "images whose class is among the five said first",
    "mean_iu": "intersection over union of predicted and true pixels, mean over classes, by a linear classifier",
    "knn_mean_iu": "the same by the nearest points of the training images",
    "svm_map": "linear SVMs on all labels, mean over classes",
}


def _words(kind: str) -> str:
    """A kind of figure as a plot's axis and a table's caption have it."""
    if kind in _WORDS:
        return _WORDS[kind]
    name, _, number = kind.partition("/")
    if name in _NUMBERED:
        return _NUMBERED[name].format(number)
    neighbours = re.fullmatch(r"knn(\d+)(?:/t(.*))?", kind)
    if neighbours is None:
        return kind
    k, temperature = neighbours.groups()
    words = "accuracy of the nearest neighbour" if k == "1" else f"accuracy of {k} nearest neighbours"
    return f"{words} at temperature {temperature}" if temperature else words


def _with_unit(kind: str, unit: str) -> str:
    return f"{_words(kind)}, {unit}" if unit else _words(kind)


def _meaning(kind: str) -> str:
    """A kind of figure in a sentence; empty for one that is not known."""
    if kind in _MEANINGS:
        return f"{_WORDS[kind][0].upper()}{_WORDS[kind][1:]}: {_MEANINGS[kind]}."
    return next((f"{words}." for pattern, words in _PATTERNS.items() if re.fullmatch(pattern, kind)), "")


def by_layer(metrics: Iterable[str]) -> list[str]:
    """The layers that figures are of, in order."""
    return list(dict.fromkeys(name.partition("/")[0] for name in metrics))


def layers_table(result: Result, words: Callable[[str], str]) -> Printed:
    """Figures by layer; ``words`` maps a kind of figure to the head of its column."""
    spec = load_metric_spec(result.protocol)
    kinds = list(dict.fromkeys(name.partition("/")[2] for name in result.metrics))
    rows = {
        layer: [spec.format_of(kind)(result.metrics[f"{layer}/{kind}"]) for kind in kinds]
        for layer in by_layer(result.metrics)
    }
    return table(rows, ["layer", *map(words, kinds)])


@dataclass(frozen=True)
class LayersSection:
    """A protocol's section of figures by layer: for nets of the same layers a plot of the first kind and a table of
    each; if there are others, a plot of all by relative depth first.

    Args:
        title: of the section.
        kinds: pattern of what follows the layer in a figure's name.
        published: ImageNet's top-1 (%) of the layers conv1 … conv5, by author.
        what: kind of figure.
        attribution: source of the published figures.
        note: a kind of figure and the runs of a table → the end of its caption.
    """

    title: str
    kinds: str
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    what: str = "Validation accuracy"
    attribution: str = ""
    note: Callable[[str, Sequence[Group]], str] = lambda kind, groups: ""

    def __call__(self, groups: Sequence[Group], plots: Path) -> Iterator[Block]:
        for number, members in enumerate(by_test_size(groups)):
            start = plots.with_name(f"{plots.name}{f'-{number}' if number else ''}")
            yield from _section(self, members, start)


def _section(protocol: LayersSection, groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Runs on as many images."""
    first, what = groups[0].first, protocol.what
    metrics = dict.fromkeys(metric for entry in groups for metric in entry.first.metrics)
    found = [k for k in dict.fromkeys(m.partition("/")[2] for m in metrics) if re.fullmatch(protocol.kinds, k)]
    yield Heading(f"{protocol.title} on {data_label(first.data)}")
    if not found:
        yield Text("These runs have no figures by layer.")
        return
    main = found[0]
    shown = load_metric_spec(first.protocol).format_of(main)
    curves = {entry.label: _curve(entry, main, shown.factor) for entry in groups}
    classes = sum(metric.count("/") == 2 and "/top1/" in metric for metric in first.metrics)
    classes //= max(1, len(by_layer(first.metrics)))
    where = test_set_label(first, classes)
    error = f"One figure's standard error is at most {50 / first.n**0.5:.1f} points; " if "accuracy" in what else ""
    meant = " ".join(filter(None, dict.fromkeys(_meaning(kind) for kind in found)))
    unit = {"%": " in percent", "": ""}.get(shown.unit, f" in {shown.unit}")
    yield Text(f"{what}{unit} on {where}. {error}`transfer compare` pairs runs image by image. {meant}".rstrip())
    alike: dict[tuple[str, ...], list[Group]] = {}
    for entry in groups:
        own = tuple(curves[entry.label])
        home = next((layers for layers in alike if set(own) <= set(layers) or set(layers) <= set(own)), own)
        alike.setdefault(home, []).append(entry)
    axis = f"{_with_unit(main, shown.unit)}\n({where})"
    if len(alike) > 1:
        plot = plots.with_name(f"{plots.name}-depth.png")
        caption = f"{_words(main)} by relative depth: nets whose layers are called differently."
        yield Figure(plot, caption, lambda write: accuracy_by_depth(plot, curves, axis, write))
    for number, members in enumerate(alike.values()):
        named = plots.with_name(f"{plots.name}{f'-layers-{number}' if len(alike) > 1 else ''}.png")
        own = {entry.label: curves[entry.label] for entry in members}
        yield from _alike(protocol, found, members, own, where, axis, classes == 1000, named)


def _curve(entry: Group, kind: str, factor: float) -> dict[str, tuple[float, float]]:
    """Mean and deviation of a kind of figure by layer, times a factor."""
    found = {layer: entry.over_seeds(f"{layer}/{kind}") for layer in by_layer(entry.first.metrics)}
    return {layer: (factor * spread[0], factor * spread[1]) for layer, spread in found.items() if spread is not None}


def _alike(
    protocol: LayersSection,
    found: Sequence[str],
    groups: Sequence[Group],
    curves: dict[str, dict[str, tuple[float, float]]],
    where: str,
    axis: str,
    many_classes: bool,
    plot: Path,
) -> Iterator[Block]:
    """Runs of nets with the same layers, beside published figures of such nets."""
    first, main = groups[0].first, found[0]
    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    is_imagenet = many_classes and first.n >= 49_000
    published = _curves(protocol.published) if set(LAYERS) <= set(layers) else {}
    shown = LAYERS if published and all(set(LAYERS) & set(curve) for curve in curves.values()) else layers
    caption = f"{_words(main)} by layer." + (
        f" Dotted: published figures ({protocol.attribution})." if published else ""
    )
    if published and not is_imagenet:
        caption += " The two panels are of different data: their heights cannot be compared."
    apart = "" if is_imagenet else "top-1 accuracy, %\n(published: ImageNet, 1,000 classes)"
    yield Figure(plot, caption, lambda write: accuracy_by_layer(plot, shown, curves, axis, published, apart, write))
    spec = load_metric_spec(first.protocol)
    for kind in found:
        show = spec.format_of(kind)
        rows = [
            [entry.label, *(entry.cell(f"{layer}/{kind}", show.factor, show.decimals) for layer in layers)]
            for entry in groups
        ]
        other = []
        if kind == "top1" and is_imagenet:
            other = [
                [name, *(f"{curve[layer][0]:.1f}" if layer in curve else "–" for layer in layers)]
                for name, curve in published.items()
            ]
        caption = f"{_with_unit(kind, show.unit)}, by layer ({where}{over_seeds(groups)})"
        caption += f"; published: {protocol.attribution}" if other else ""
        yield Table(caption + protocol.note(kind, groups), ["backbone", *layers], other + rows, len(other))


def _curves(published: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        f"{name} (published)": {layer: (value, 0.0) for layer, value in zip(LAYERS, values, strict=True)}
        for name, values in published.items()
    }
