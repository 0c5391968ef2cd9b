"""Runs on PASCAL VOC as the paper's Table 2 has them: a column each of classification (fc8, fc6-8, all), detection and
segmentation, beside the published figures where they are over the same images; and average precision by class."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table as Printed

from crosschannel.files import Writer
from crosschannel.report import Block, Figure, Heading, Table, Text
from crosschannel.runs.result import Result
from transfer.groups import Group, called, over_seeds, setting
from transfer.pascal.published import COLUMNS, TABLE_2, UNCERTAIN
from transfer.protocol import table

# protocol: (images that the published figures are over, its figure)
_OF = {"classify": (4952, "map"), "detect": (4952, "map"), "segment": (736, "mean_iu")}
_CLASSIFY = {"fc8": 0, "head": 0, "fc6": 1, "pool": 1, "all": 2}


def column_of(result: Result) -> int | None:
    """The column of Table 2 that a run belongs to."""
    if result.protocol == "classify":
        return _CLASSIFY.get(str(result.config.get("train_from")))
    return {"detect": 3, "segment": 4}.get(result.protocol)


def is_whole(result: Result) -> bool:
    """Whether a run is over the images that the published figures are over, and learned from those that they did."""
    learned = result.config.get("train_set", "2007:trainval") == "2007:trainval"
    return result.protocol in _OF and result.n == _OF[result.protocol][0] and learned


def pascal_section(groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Runs on the same devkit: those over all images beside the published figures, others apart by their number."""
    parts: dict[int, list[Group]] = {}
    for entry in groups:
        parts.setdefault(0 if is_whole(entry.first) else entry.first.n, []).append(entry)
    for size, members in sorted(parts.items()):
        yield Heading(f"PASCAL VOC on {called(members[0].first.data)}")
        yield Text("Mean average precision, and mean intersection over union for segmentation, in percent.")
        yield _table(members, whole=not size)
        by_class = [entry for entry in members if _classes(entry.first)]
        if by_class:
            counts = sorted({len(_classes(entry.first)) for entry in by_class})
            plot = plots.with_name(f"{plots.name}-{size or 'all'}.png")
            words = f"Average precision by class, in percent; means are over {' or '.join(map(str, counts))} classes."
            yield Figure(plot, words, partial(_draw, plot, by_class))
        for number, entry in enumerate(members):
            pictures = sorted((entry.runs[0][0] / "samples").glob("top-*.png"))
            if pictures:
                copy = plots.with_name(f"{plots.name}-{size or 'all'}-top-{number}.png")
                words = f"{entry.label}: the likeliest images of each class, framed green where it is there."
                yield Figure(copy, words, partial(_copy, pictures[-1], copy))


def _classes(result: Result) -> list[str]:
    return [name.removeprefix("ap/") for name in result.metrics if name.startswith("ap/")]


def _copy(picture: Path, out: Path, write: Writer) -> None:
    with write(out) as part:
        shutil.copyfile(picture, part)


def _table(groups: Sequence[Group], whole: bool) -> Table:
    """A row a backbone; where two of its runs are of one column, each has a row of its own."""
    rows: dict[str, list[str]] = {}
    for entry in groups:
        column, figure = column_of(entry.first), _OF.get(entry.first.protocol, (0, "map"))[1]
        label, empty = entry.backbone, ["–"] * len(COLUMNS)
        if column is None or rows.get(label, empty)[column] != "–":
            label = f"{entry.label}, {_words(entry)}"
        rows.setdefault(label, empty)[2 if column is None else column] = entry.cell(figure)
    first, theirs = groups[0].first, []
    caption = f"{setting(first, 0)}: not comparable with figures on all of PASCAL VOC{over_seeds(groups)}"
    if whole:
        caption = f"as in the paper's Table 2 ({called(first.data)}{over_seeds(groups)}); ~ is uncertain"
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
    return f"~{value}" if (name, column) in UNCERTAIN else f"{value}"


def _draw(out: Path, groups: Sequence[Group], write: Writer) -> None:
    """Bars by class, a colour a run."""
    from matplotlib.figure import Figure as Canvas

    from crosschannel.console import plain
    from crosschannel.report.plots import COLOURS

    classes = list(dict.fromkeys(name for entry in groups for name in _classes(entry.first)))
    canvas = Canvas(figsize=(9, 0.26 * len(classes) * max(1.0, len(groups) / 3) + 1.2), layout="constrained")
    axes, height = canvas.subplots(), 0.8 / len(groups)
    for number, entry in enumerate(groups):
        found = [entry.over_seeds(f"ap/{name}") for name in classes]
        places = [i + (number - (len(groups) - 1) / 2) * height for i, one in enumerate(found) if one]
        axes.barh(
            places,
            [100 * one[0] for one in found if one],
            height,
            xerr=[100 * one[1] for one in found if one] if len(entry.runs) > 1 else None,
            color=COLOURS[number % len(COLOURS)],
            label=plain(entry.label),
        )
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set_xlabel(f"average precision, % ({setting(groups[0].first, 0)})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06 - 0.6 / len(classes)))
    with write(out) as part:
        canvas.savefig(part, dpi=120, format="png")


def ap_table(result: Result) -> Printed:
    """Average precision by class, in percent, and the mean."""
    rows = {name: [f"{100 * result.metrics[f'ap/{name}']:.1f}"] for name in _classes(result)}
    rows[f"mean of {len(rows)} classes"] = [f"{100 * result.metrics['map']:.1f}"]
    if "one_crop/map" in result.metrics:
        rows["mean, one crop"] = [f"{100 * result.metrics['one_crop/map']:.1f}"]
    return table(rows, ["class", "AP, %"])
