"""Per-layer metrics (``conv5/top1``) of protocols on frozen layers: report section and result table."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table as RichTable

from crosschannel.console import table
from crosschannel.report import Block, Figure, Heading, Table, Text, accuracy_by_depth, accuracy_by_layer
from crosschannel.runs.result import Result
from transfer.groups import Group, by_test_size, data_label, over_seeds, test_set_label
from transfer.protocols import load_metric_spec

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")  # layers of the published results
_TITLES = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_iu": "Linear mean IU",
    "knn_mean_iu": "Nearest-neighbour mean IU",
    "svm_map": "Linear SVM mAP",
}
_NUMBERED_TITLES = {  # kinds that end in a slash and a number
    "shots": "Few-shot top-1 accuracy at k = {}",
    "share": "Top-1 accuracy with {} of the labels",
    "low_shot": "Low-shot SVM mAP at k = {}",
}
_NUMBERED_DEFINITIONS = {  # regular expression of the kind → definition
    r"knn\d+(/t.*)?": "k-NN: fraction of images whose k nearest training images vote for the correct class",
    r"(shots|share)/.*": "Few labels: a classifier is trained on k images or a fraction of the images per class; mean "
    "over draws",
    r"low_shot/.*": "Low-shot: SVMs are trained on k positives per class and their negatives; mean over draws",
}
_DEFINITIONS = {
    "top1": "fraction of images whose class has the highest score",
    "top5": "fraction of images whose class is among the five highest scores",
    "mean_iu": "intersection over union of a linear classifier, mean over classes",
    "knn_mean_iu": "intersection over union of nearest-neighbour predictions, mean over classes",
    "svm_map": "average precision of SVMs trained on all labels, mean over classes",
}


def _title(kind: str) -> str:
    """Return the name of a kind of metric, for axes and captions."""
    if kind in _TITLES:
        return _TITLES[kind]
    name, _, number = kind.partition("/")
    if name in _NUMBERED_TITLES:
        return _NUMBERED_TITLES[name].format(number)
    neighbours = re.fullmatch(r"knn(\d+)(?:/t(.*))?", kind)
    if neighbours is None:
        return kind
    k, temperature = neighbours.groups()
    title = "Nearest-neighbour top-1 accuracy" if k == "1" else f"{k}-NN top-1 accuracy"
    return f"{title} at temperature {temperature}" if temperature else title


def _title_with_unit(kind: str, unit: str) -> str:
    return f"{_title(kind)}, {unit}" if unit else _title(kind)


def _definition(kind: str) -> str:
    """Return a one-sentence definition of a kind of metric; empty for unknown kinds."""
    if kind in _DEFINITIONS:
        return f"{_TITLES[kind]}: {_DEFINITIONS[kind]}."
    return next((f"{text}." for pattern, text in _NUMBERED_DEFINITIONS.items() if re.fullmatch(pattern, kind)), "")


def layer_names(metrics: Iterable[str]) -> list[str]:
    """Return the layers of metric names, in order, without duplicates."""
    return list(dict.fromkeys(name.partition("/")[0] for name in metrics))


def layers_table(result: Result, column_title: Callable[[str], str]) -> RichTable:
    """Format the metrics of a result with one row per layer.

    Args:
        result: result with metrics ``LAYER/KIND``.
        column_title: kind of metric → title of its column.
    """
    spec = load_metric_spec(result.protocol)
    kinds = list(dict.fromkeys(name.partition("/")[2] for name in result.metrics))
    rows = {
        layer: [spec.format_of(kind)(result.metrics[f"{layer}/{kind}"]) for kind in kinds]
        for layer in layer_names(result.metrics)
    }
    return table(rows, ["layer", *map(column_title, kinds)])


@dataclass(frozen=True)
class LayersSection:
    """Report section of a protocol with per-layer metrics.

    Runs whose networks have the same layer names share a plot of the first kind of metric and one table per kind. If
    the networks have different layer names, a plot of all runs by relative depth comes first.

    Args:
        title: title of the section.
        kinds: regular expression for the kinds of metrics to show; a kind is the metric name without the layer.
        published: published ImageNet top-1 accuracies (%) for conv1 … conv5, by method.
        what: metric in the introduction of the section.
        attribution: source of the published results.
        note: (kind of metric, runs of a table) → text appended to the table's caption.
    """

    title: str
    kinds: str
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    what: str = "Validation accuracy"
    attribution: str = ""
    note: Callable[[str, Sequence[Group]], str] = lambda kind, groups: ""

    def __call__(self, groups: Sequence[Group], plots: Path) -> Iterator[Block]:
        for number, members in enumerate(by_test_size(groups)):
            prefix = plots.with_name(f"{plots.name}{f'-{number}' if number else ''}")
            yield from _section(self, members, prefix)


def _section(section: LayersSection, groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Yield the blocks for runs with equal numbers of test images."""
    first, what = groups[0].first, section.what
    metrics = dict.fromkeys(metric for entry in groups for metric in entry.first.metrics)
    kinds = [k for k in dict.fromkeys(m.partition("/")[2] for m in metrics) if re.fullmatch(section.kinds, k)]
    yield Heading(f"{section.title} on {data_label(first.data)}")
    if not kinds:
        yield Text("These runs have no per-layer metrics.")
        return
    main_kind = kinds[0]
    number_format = load_metric_spec(first.protocol).format_of(main_kind)
    curves = {entry.label: _curve(entry, main_kind, number_format.factor) for entry in groups}
    classes = sum(metric.count("/") == 2 and "/top1/" in metric for metric in first.metrics)
    classes //= max(1, len(layer_names(first.metrics)))
    test_set = test_set_label(first, classes)
    error = (
        f"The standard error of a value is at most {50 / first.n**0.5:.1f} percentage points; "
        if "accuracy" in what
        else ""
    )
    definitions = " ".join(filter(None, dict.fromkeys(_definition(kind) for kind in kinds)))
    unit = {"%": " in percent", "": ""}.get(number_format.unit, f" in {number_format.unit}")
    yield Text(
        f"{what}{unit} on {test_set}. {error}`transfer compare` computes paired confidence intervals of differences. "
        f"{definitions}".rstrip()
    )
    by_layers: dict[tuple[str, ...], list[Group]] = {}
    for entry in groups:
        names = tuple(curves[entry.label])
        match = next((layers for layers in by_layers if set(names) <= set(layers) or set(layers) <= set(names)), names)
        by_layers.setdefault(match, []).append(entry)
    axis_title = f"{_title_with_unit(main_kind, number_format.unit)}\n({test_set})"
    if len(by_layers) > 1:
        plot = plots.with_name(f"{plots.name}-depth.png")
        caption = f"{_title(main_kind)} by relative depth, for networks with different layer names."
        yield Figure(plot, caption, lambda write: accuracy_by_depth(plot, curves, axis_title, write))
    for number, members in enumerate(by_layers.values()):
        plot_path = plots.with_name(f"{plots.name}{f'-layers-{number}' if len(by_layers) > 1 else ''}.png")
        member_curves = {entry.label: curves[entry.label] for entry in members}
        yield from _same_layers(
            section, kinds, members, member_curves, test_set, axis_title, classes == 1000, plot_path
        )


def _curve(entry: Group, kind: str, factor: float) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation over seeds per layer, times ``factor``."""
    by_layer = {layer: entry.mean_and_std(f"{layer}/{kind}") for layer in layer_names(entry.first.metrics)}
    return {layer: (factor * value[0], factor * value[1]) for layer, value in by_layer.items() if value is not None}


def _same_layers(
    section: LayersSection,
    kinds: Sequence[str],
    groups: Sequence[Group],
    curves: dict[str, dict[str, tuple[float, float]]],
    test_set: str,
    axis_title: str,
    has_1000_classes: bool,
    plot: Path,
) -> Iterator[Block]:
    """Yield a plot and tables for runs whose networks have the same layer names, with published results if there are
    any for these layers."""
    first, main_kind = groups[0].first, kinds[0]
    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    is_imagenet = has_1000_classes and first.n >= 49_000
    published = _published_curves(section.published) if set(LAYERS) <= set(layers) else {}
    plotted = LAYERS if published and all(set(LAYERS) & set(curve) for curve in curves.values()) else layers
    caption = f"{_title(main_kind)} by layer." + (
        f" Dotted lines: published results, {section.attribution}." if published else ""
    )
    if published and not is_imagenet:
        caption += " The panels show different data sets; their values are not comparable."
    published_title = "" if is_imagenet else "Top-1 accuracy, %\n(published results, ImageNet, 1,000 classes)"
    yield Figure(
        plot,
        caption,
        lambda write: accuracy_by_layer(plot, plotted, curves, axis_title, published, published_title, write),
    )
    spec = load_metric_spec(first.protocol)
    for kind in kinds:
        number_format = spec.format_of(kind)
        rows = [
            [
                entry.label,
                *(entry.cell(f"{layer}/{kind}", number_format.factor, number_format.decimals) for layer in layers),
            ]
            for entry in groups
        ]
        published_rows = []
        if kind == "top1" and is_imagenet:
            published_rows = [
                [name, *(f"{curve[layer][0]:.1f}" if layer in curve else "–" for layer in layers)]
                for name, curve in published.items()
            ]
        caption = f"{_title_with_unit(kind, number_format.unit)}, by layer ({test_set}{over_seeds(groups)})"
        caption += f"; published: {section.attribution}" if published_rows else ""
        yield Table(
            caption + section.note(kind, groups), ["backbone", *layers], published_rows + rows, len(published_rows)
        )


def _published_curves(published: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        f"{name} (published)": {layer: (value, 0.0) for layer, value in zip(LAYERS, values, strict=True)}
        for name, values in published.items()
    }
