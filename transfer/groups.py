"""Runs of a report: those that differ in their seed alone are one row."""

import contextlib
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from crosschannel.commands.config import pretrain_keys
from crosschannel.config.keys import flatten, legacy_defaults, science
from crosschannel.errors import UserError
from crosschannel.runs.result import Result
from transfer.protocols import find_protocol, is_protocol

# Keys that follow from the net: they distinguish runs of one backbone, but not those of several.
_OF_THE_NET = {"layer", "size", "input", "skips"}
# Keys that do not tell runs apart, of results that do not say which do.
_OLD_FREE = {"seed", "out", "device", "data", "backbone", "init_from", "batch", "workers", "broken_limit"}


@dataclass
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        label: the backbone, and what its config has that others of the page have not.
        backbone: its source, without the seed.
        runs: (folder, result).
    """

    label: str
    backbone: str
    runs: list[tuple[Path, Result]]

    @property
    def first(self) -> Result:
        return self.runs[0][1]

    def over_seeds(self, metric: str) -> tuple[float, float] | None:
        """Mean and standard deviation of a metric; None where a run lacks it."""
        values = [result.metrics[metric] for _, result in self.runs if metric in result.metrics]
        if len(values) < len(self.runs):
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def cell(self, metric: str, factor: float = 100, digits: int = 1) -> str:
        """A metric as a table has it; of several seeds with its deviation."""
        found = self.over_seeds(metric)
        if found is None:
            return "–"
        mean, spread = (factor * value for value in found)
        return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(self.runs) > 1 else "")


def group(runs: list[tuple[Path, Result]]) -> list[Group]:
    """Runs by everything but their seeds, labelled by the keys in which those of one backbone differ, and those of one
    protocol on the same images."""
    found: dict[str, list[tuple[Path, Result]]] = defaultdict(list)
    for path, result in runs:
        key = [result.protocol, _without_seed(result.backbone), result.data, result.n, science_of(result)]
        found[json.dumps(key, sort_keys=True)].append((path, result))
    by_backbone: dict[tuple, list[Result]] = defaultdict(list)
    by_protocol: dict[tuple, list[Result]] = defaultdict(list)
    for (_, first), *_others in found.values():
        by_protocol[first.protocol, first.data].append(first)
        by_backbone[first.protocol, first.data, _without_seed(first.backbone)].append(first)
    groups = []
    for members in found.values():
        first = members[0][1]
        science, backbone = science_of(first), _without_seed(first.backbone)
        differing = _differing(by_backbone[first.protocol, first.data, backbone])
        if is_protocol(first.protocol):
            differing |= _differing(by_protocol[first.protocol, first.data]) - _OF_THE_NET
        words = ", ".join(f"{key}={value}" for key, value in science.items() if key in differing)
        groups.append(Group(f"{backbone} ({words})" if words else backbone, backbone, members))
    return groups


def _differing(results: Sequence[Result]) -> set[str]:
    """Keys that do not have one value in the recipes of all runs."""
    recipes = [science_of(result) for result in results]
    keys = {key for recipe in recipes for key in recipe}
    return {key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)}


def _without_seed(source: str) -> str:
    return re.sub(r",seed=\d+", "", source)


def science_of(result: Result) -> dict[str, object]:
    """Settings that distinguish a run from others on the same backbone and images. Keys added after the run get their
    legacy default."""
    if result.science is not None:
        return _legacy_defaults(result.protocol, result.config.get("task")) | result.science
    return {k: v for k, v in flatten(result.config).items() if k not in _OLD_FREE and not k.startswith("runtime.")}


@cache
def _legacy_defaults(protocol: str, task: str | None) -> dict[str, object]:
    """Value that each science key implicitly had before it existed; empty for unknown commands."""
    with contextlib.suppress(UserError):  # a user's code that is not here any more
        entry = find_protocol(protocol)
        keys = entry.keys if entry else pretrain_keys(task) if protocol == "pretrain" else None
        if keys:
            config = keys(data="")
            names = science(config, asdict(config))
            return {name: value for name, value in legacy_defaults(keys).items() if name in names}
    return {}


def by_test_size(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups by the number of images that their figures are over."""
    found: dict[int, list[Group]] = defaultdict(list)
    for entry in groups:
        found[entry.first.n].append(entry)
    return list(found.values())


def data_label(data: str) -> str:
    """Images in a word."""
    return data if ":" in data else Path(data).name or data


def test_set_label(result: Result, classes: int) -> str:
    """What figures are over, in words."""
    return f"{data_label(result.data)}, {result.n:,} images" + (f" of {classes:,} classes" if classes else "")


def over_seeds(groups: Sequence[Group]) -> str:
    """What ± means in a table, where it stands."""
    return "; ± is the standard deviation over seeds" if any(len(entry.runs) > 1 for entry in groups) else ""
