"""Runs of `crosschannel evaluate` in a report: a row a method, of any number of runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from crosschannel.evaluation.page import cells, measured
from crosschannel.report import Block, Heading
from transfer.groups import Group, by_size, called, setting


def section(groups: Sequence[Group], _plots: Path) -> Iterator[Block]:
    """A table for each number of images; where there are several runs, a method says which one it is of."""
    for members in by_size(groups):
        first = members[0].first
        rows = {}
        for entry in members:
            for path, result in entry.runs:
                for method in dict.fromkeys(name.partition("/")[0] for name in result.metrics):
                    label = method if len(members) == len(entry.runs) == 1 else f"{method} ({path.name})"
                    rows[label] = cells(result.metrics, method, {})
        yield Heading(f"Colours of {called(first.data)}")
        yield measured(f"Colours: {setting(first, 0)}", rows)
