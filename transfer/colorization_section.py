"""Runs of `crosschannel evaluate` in a report: a row a method, of any number of runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from crosschannel.evaluation.metrics import FIGURES, metrics
from crosschannel.evaluation.page import GALLERY, cells, measured
from crosschannel.report import Block, Heading
from crosschannel.report.page import copied
from transfer.groups import Group, by_test_size, data_label, test_set_label
from transfer.protocol import MetricSpec, NumberFormat


def section(groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """A table for each number and size of images, and the gallery of every run; where there are several, a method says
    which one it is of."""
    for members in by_test_size(groups):
        first = members[0].first
        runs = [run for entry in members for run in entry.runs]
        yield Heading(f"Colours of {data_label(first.data)}")
        for size in dict.fromkeys(result.science["size"] for _, result in runs):
            rows = {}
            for path, result in runs:
                if result.science["size"] == size:
                    for method in dict.fromkeys(name.partition("/")[0] for name in result.metrics):
                        label = method if len(runs) == 1 else f"{method} ({path.name})"
                        rows[label] = cells(result.metrics, method, {})
            yield measured(f"Colours: {test_set_label(first, 0)} of {size} px", rows)
        for number, (path, _) in enumerate(runs):
            if (path / GALLERY).is_file():
                shown = plots.with_name(f"{plots.name}-pictures-{first.n}-{number}.png")
                yield copied(path / GALLERY, shown, f"Photographs coloured by the methods of {path}.")


def _unit(head: str) -> str:
    """Unit at the end of a column's head; empty for a number without one."""
    return head.rpartition(" ")[2] if head.endswith((" %", " dB", " MB", " ms")) else ""


EVALUATION = MetricSpec(
    metrics,
    section,
    formats={name: NumberFormat(factor, digits, _unit(head)) for name, (head, factor, digits) in FIGURES.items()},
)
