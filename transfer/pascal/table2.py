"""Report section of runs on PASCAL VOC, in the format of Table 2 of Zhang et al. 2016.

The table has columns for classification (fc8, fc6-8, all), detection and segmentation. Published results are included
for runs on the same images. Per-class metrics come after the table.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table as ConsoleTable

from crosschannel.console import table
from crosschannel.report import Block, Figure, Heading, Table, Text
from crosschannel.report.page import copied
from crosschannel.runs.result import Result
from transfer.groups import Group, data_label, over_seeds, test_set_label
from transfer.pascal.plots import class_names, plot_class_bars, plot_confusion_matrix
from transfer.pascal.published import ATTRIBUTION, COLUMNS, TABLE_2, UNCERTAIN

# Setup of the published results by protocol: (number of test images, (training sets, test sets), metric).
_PUBLISHED_SETUP = {
    "classify": (4952, ("2007:trainval", "2007:test"), "map"),
    "detect": (4952, ("2007:trainval", "2007:test"), "map"),
    "segment": (736, ("sbd:train", "2011:seg11valid"), "mean_iu"),
}
# Per-class metrics: protocol, prefix of the metric names, title.
_CLASS_METRICS = (
    ("classify", "ap/", "Average precision of classification"),
    ("detect", "ap/", "Average precision of detection"),
    ("segment", "iu/", "Intersection over union"),
)
# Captions of a run's sample pictures, by the start of the file name.
_PICTURES = {
    "top": "highest-scoring test images per class; frame colour: green if the class is present, red if absent, grey if "
    "difficult",
    "detected": "test images with annotated objects, each followed by its detections with a score of at least .3",
    "segmented": "test images, ground truth and predictions, in PASCAL's colours (white: ignored)",
}
_CLASSIFY_COLUMNS = {"fc8": 0, "head": 0, "fc6": 1, "pool": 1, "all": 2}


def table_column(result: Result) -> int | None:
    """Return the index of a run's column in Table 2; None if the table has no such column."""
    if result.protocol == "classify":
        return _CLASSIFY_COLUMNS.get(str(result.config.get("train_from")))
    return {"detect": 3, "segment": 4}.get(result.protocol)


def is_comparable(result: Result) -> bool:
    """Return whether a run has the same training and test images as the published results."""
    count, sets, _ = _PUBLISHED_SETUP.get(result.protocol, (0, ("", ""), ""))
    run_sets = tuple(
        result.config.get(key, default) for key, default in zip(("train_set", "test_set"), sets, strict=True)
    )
    return result.n == count and run_sets == sets


def pascal_section(groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Yield the report section of runs on one devkit.

    Runs that are comparable with the published results share a table with them. The others share a table if
    they have the same number of test images.

    Args:
        groups: groups of runs.
        plots: path prefix of the plots.
    """
    by_size: dict[int, list[Group]] = {}
    for group in groups:
        by_size.setdefault(0 if is_comparable(group.first) else group.first.n, []).append(group)
    for size, members in sorted(by_size.items()):
        yield Heading(f"PASCAL VOC on {data_label(members[0].first.data)}")
        yield Text(
            "Mean average precision for classification and detection (11-point, IoU .5), and mean intersection over "
            "union for segmentation, in percent."
        )
        yield _table(members, comparable=not size)
        prefix = plots.with_name(f"{plots.name}-{size or 'all'}")
        for protocol, metric_prefix, title in _CLASS_METRICS:
            selected = [g for g in members if g.first.protocol == protocol and class_names(g.first, metric_prefix)]
            if selected:
                counts = sorted({len(class_names(group.first, metric_prefix)) for group in selected})
                plot = prefix.with_name(f"{prefix.name}-{protocol}-{metric_prefix[:-1]}.png")
                caption = f"{title} per class, in percent; means are over {' or '.join(map(str, counts))} classes."
                axis = f"{title.lower()}, % ({test_set_label(selected[0].first, 0)})"
                yield Figure(plot, caption, partial(plot_class_bars, plot, selected, metric_prefix, axis))
                yield _class_table(
                    selected,
                    metric_prefix,
                    f"{title} per class, % ({test_set_label(selected[0].first, 0)}{over_seeds(selected)})",
                )
        for number, group in enumerate(members):
            run, result = group.runs[0]
            if "confusion" in result.rows:
                plot = prefix.with_name(f"{prefix.name}-confusion-{number}.png")
                caption = f"{group.label}: confusion matrix of pixels, in percent of each true class (row)."
                yield Figure(plot, caption, partial(plot_confusion_matrix, plot, result.rows))
            for kind, caption in _PICTURES.items():
                pictures = sorted((run / "samples").glob(f"{kind}-*.png"))
                if pictures:
                    copy = prefix.with_name(f"{prefix.name}-{kind}-{number}.png")
                    yield copied(pictures[-1], copy, f"{group.label}: {caption}.")


def _class_table(groups: Sequence[Group], prefix: str, caption: str) -> Table:
    classes = list(dict.fromkeys(name for group in groups for name in class_names(group.first, prefix)))
    rows = [[name, *(group.cell(prefix + name) for group in groups)] for name in classes]
    return Table(caption, ["class", *(group.label for group in groups)], rows)


def _table(groups: Sequence[Group], comparable: bool) -> Table:
    """Build Table 2, with the published rows if the runs are comparable.

    Each backbone has one row; runs that would share a cell get separate rows.
    """
    rows: dict[str, list[str]] = {}
    for group in groups:
        column, metric = table_column(group.first), _PUBLISHED_SETUP.get(group.first.protocol, ("map",))[-1]
        label, empty = group.backbone, ["–"] * len(COLUMNS)
        if column is None or rows.get(label, empty)[column] != "–":
            label = f"{group.label}, {_train_from(group)}"
        rows.setdefault(label, empty)[2 if column is None else column] = group.cell(metric)
    first, published = groups[0].first, []
    caption = f"{test_set_label(first, 0)}: not comparable with results on all of PASCAL VOC{over_seeds(groups)}"
    if comparable:
        caption = f"{data_label(first.data)}{over_seeds(groups)}; published: {ATTRIBUTION}"
        published = [
            [f"{name} (published)", *(_format_published(name, *cell) for cell in zip(COLUMNS, values, strict=True))]
            for name, values in TABLE_2.items()
        ]
    run_rows = [[label, *cells] for label, cells in rows.items()]
    return Table(f"PASCAL VOC, {caption}", ["pretraining", *COLUMNS], published + run_rows, len(published))


def _train_from(group: Group) -> str:
    return f"trained from {group.first.config.get('train_from', '?')}"


def _format_published(name: str, column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"~{value:.0f}" if (name, column) in UNCERTAIN else f"{value}"


def ap_table(result: Result) -> ConsoleTable:
    """Tabulate the average precision per class and its mean, in percent."""
    rows = {name: [f"{100 * result.metrics[f'ap/{name}']:.1f}"] for name in class_names(result, "ap/")}
    rows[f"mean of {len(rows)} classes"] = [f"{100 * result.metrics['map']:.1f}"]
    if "one_crop/map" in result.metrics:
        rows["mean, one crop"] = [f"{100 * result.metrics['one_crop/map']:.1f}"]
    return table(rows, ["class", "AP, %"])
