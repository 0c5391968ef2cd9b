"""Report section of `crosschannel evaluate`: one table row per colorization method, from any number of runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from crosschannel.evaluation.metrics import FIGURES, metrics
from crosschannel.evaluation.page import GALLERY, cells, measured
from crosschannel.report import Block, Heading
from crosschannel.report.page import copied
from transfer.groups import Group, by_test_size, data_label, test_set_label
from transfer.protocol import MetricSpec, NumberFormat


def section(groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Yield one table per test set and image size, and the gallery of each run.

    If there are several runs, the label of a method includes its run.
    """
    for members in by_test_size(groups):
        first = members[0].first
        runs = [run for entry in members for run in entry.runs]
        yield Heading(f"Colorization of {data_label(first.data)}")
        for size in dict.fromkeys(result.science["size"] for _, result in runs):
            rows = {}
            for path, result in runs:
                if result.science["size"] == size:
                    for method in dict.fromkeys(name.partition("/")[0] for name in result.metrics):
                        label = method if len(runs) == 1 else f"{method} ({path.name})"
                        rows[label] = cells(result.metrics, method, {})
            yield measured(f"Colorization quality ({test_set_label(first, 0)} of {size} px)", rows)
        for number, (path, _) in enumerate(runs):
            if (path / GALLERY).is_file():
                gallery = plots.with_name(f"{plots.name}-pictures-{first.n}-{number}.png")
                yield copied(path / GALLERY, gallery, f"{path}: sample images coloured by each method.")


def _unit(column_title: str) -> str:
    """Return the unit at the end of a column title; empty for a dimensionless metric."""
    return column_title.rpartition(" ")[2] if column_title.endswith((" %", " dB", " MB", " ms")) else ""


EVALUATION = MetricSpec(
    metrics,
    section,
    formats={
        name: NumberFormat(factor, digits, _unit(column_title))
        for name, (column_title, factor, digits) in FIGURES.items()
    },
)
