"""Runs on PASCAL VOC as the paper's Table 2 has them: a column each of classification (fc8, fc6-8, all), detection and
segmentation, beside the published figures where they are over the same images; and figures by class."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table as Printed

from crosschannel.console import table
from crosschannel.report import Block, Figure, Heading, Table, Text
from crosschannel.report.page import copied
from crosschannel.runs.result import Result
from transfer.groups import Group, data_label, over_seeds, test_set_label
from transfer.pascal.plots import bars_by_class, classes_of, confusion_matrix
from transfer.pascal.published import ATTRIBUTION, COLUMNS, TABLE_2, UNCERTAIN

# protocol: (images that the published figures are over, the sets that they learned from and are over, its figure)
_OF = {
    "classify": (4952, ("2007:trainval", "2007:test"), "map"),
    "detect": (4952, ("2007:trainval", "2007:test"), "map"),
    "segment": (736, ("sbd:train", "2011:seg11valid"), "mean_iu"),
}
# Figures of single classes: protocol, what their names begin with, in words.
_BY_CLASS = (
    ("classify", "ap/", "Average precision of classification"),
    ("detect", "ap/", "Average precision of detection"),
    ("segment", "iu/", "Intersection over union"),
)
# Pictures of a run, in words.
_PICTURES = {
    "top": "the likeliest images of each class; a frame is green if it is there, red if not, grey if it is difficult",
    "detected": "test images with their objects and, beside them, what is found (from a score of .3 on)",
    "segmented": "test images, their masks and what is predicted, in PASCAL's colours (white is left out)",
}
_CLASSIFY = {"fc8": 0, "head": 0, "fc6": 1, "pool": 1, "all": 2}


def column_of(result: Result) -> int | None:
    """The column of Table 2 that a run belongs to."""
    if result.protocol == "classify":
        return _CLASSIFY.get(str(result.config.get("train_from")))
    return {"detect": 3, "segment": 4}.get(result.protocol)


def is_whole(result: Result) -> bool:
    """Whether a run is over the images that the published figures are over, and learned from those that they did."""
    images, sets, _ = _OF.get(result.protocol, (0, ("", ""), ""))
    own = tuple(result.config.get(key, named) for key, named in zip(("train_set", "test_set"), sets, strict=True))
    return result.n == images and own == sets


def pascal_section(groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Runs on the same devkit: those over all images beside the published figures, others apart by their number."""
    parts: dict[int, list[Group]] = {}
    for entry in groups:
        parts.setdefault(0 if is_whole(entry.first) else entry.first.n, []).append(entry)
    for size, members in sorted(parts.items()):
        yield Heading(f"PASCAL VOC on {data_label(members[0].first.data)}")
        yield Text(
            "Mean average precision (of detection by 11 points at an overlap of .5), and mean intersection over union "
            "for segmentation, in percent."
        )
        yield _table(members, whole=not size)
        start = plots.with_name(f"{plots.name}-{size or 'all'}")
        for protocol, prefix, words in _BY_CLASS:
            found = [e for e in members if e.first.protocol == protocol and classes_of(e.first, prefix)]
            if found:
                counts = sorted({len(classes_of(entry.first, prefix)) for entry in found})
                plot = start.with_name(f"{start.name}-{protocol}-{prefix[:-1]}.png")
                caption = f"{words} by class, in percent; means are over {' or '.join(map(str, counts))} classes."
                axis = f"{words.lower()}, % ({test_set_label(found[0].first, 0)})"
                yield Figure(plot, caption, partial(bars_by_class, plot, found, prefix, axis))
                yield _by_class(
                    found, prefix, f"{words} by class, % ({test_set_label(found[0].first, 0)}{over_seeds(found)})"
                )
        for number, entry in enumerate(members):
            run, result = entry.runs[0]
            if "confusion" in result.rows:
                plot = start.with_name(f"{start.name}-confusion-{number}.png")
                words = f"{entry.label}: of the pixels of each class (rows), the share that is called so, in percent."
                yield Figure(plot, words, partial(confusion_matrix, plot, result.rows))
            for kind, words in _PICTURES.items():
                pictures = sorted((run / "samples").glob(f"{kind}-*.png"))
                if pictures:
                    copy = start.with_name(f"{start.name}-{kind}-{number}.png")
                    yield copied(pictures[-1], copy, f"{entry.label}: {words}.")


def _by_class(groups: Sequence[Group], prefix: str, caption: str) -> Table:
    classes = list(dict.fromkeys(name for entry in groups for name in classes_of(entry.first, prefix)))
    rows = [[name, *(entry.cell(prefix + name) for entry in groups)] for name in classes]
    return Table(caption, ["class", *(entry.label for entry in groups)], rows)


def _table(groups: Sequence[Group], whole: bool) -> Table:
    """A row a backbone; where two of its runs are of one column, each has a row of its own."""
    rows: dict[str, list[str]] = {}
    for entry in groups:
        column, figure = column_of(entry.first), _OF.get(entry.first.protocol, ("map",))[-1]
        label, empty = entry.backbone, ["–"] * len(COLUMNS)
        if column is None or rows.get(label, empty)[column] != "–":
            label = f"{entry.label}, {_words(entry)}"
        rows.setdefault(label, empty)[2 if column is None else column] = entry.cell(figure)
    first, theirs = groups[0].first, []
    caption = f"{test_set_label(first, 0)}: not comparable with figures on all of PASCAL VOC{over_seeds(groups)}"
    if whole:
        caption = f"{data_label(first.data)}{over_seeds(groups)}; published: {ATTRIBUTION}"
        theirs = [
            [f"{name} (published)", *(_published(name, *cell) for cell in zip(COLUMNS, values, strict=True))]
            for name, values in TABLE_2.items()
        ]
    own = [[label, *cells] for label, cells in rows.items()]
    return Table(f"PASCAL VOC, {caption}", ["pretraining", *COLUMNS], theirs + own, len(theirs))


def _words(entry: Group) -> str:
    return f"trained from {entry.first.config.get('train_from', '?')}"


def _published(name: str, column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"~{value:.0f}" if (name, column) in UNCERTAIN else f"{value}"


def ap_table(result: Result) -> Printed:
    """Average precision by class, in percent, and the mean."""
    rows = {name: [f"{100 * result.metrics[f'ap/{name}']:.1f}"] for name in classes_of(result, "ap/")}
    rows[f"mean of {len(rows)} classes"] = [f"{100 * result.metrics['map']:.1f}"]
    if "one_crop/map" in result.metrics:
        rows["mean, one crop"] = [f"{100 * result.metrics['one_crop/map']:.1f}"]
    return table(rows, ["class", "AP, %"])
