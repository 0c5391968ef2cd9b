"""Groups of runs that differ only in their seed; a group is one row of a report."""

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

# Keys whose values follow from the architecture. They distinguish only runs with the same backbone.
_ARCHITECTURE_KEYS = {"layer", "size", "input", "skips"}
# Keys that do not distinguish runs, for results of versions that did not store the distinguishing keys.
_IGNORED_KEYS = {"seed", "out", "device", "data", "backbone", "init_from", "batch", "workers", "broken_limit"}


@dataclass
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: the backbone, and the config values that distinguish it from other groups of the report.
        backbone: source of the backbone, without the seed.
        runs: (run folder, result) of each run.
    """

    label: str
    backbone: str
    runs: list[tuple[Path, Result]]

    @property
    def first(self) -> Result:
        """Result of the first run."""
        return self.runs[0][1]

    def mean_and_std(self, metric: str) -> tuple[float, float] | None:
        """Return mean and standard deviation of a metric over seeds; None if a run lacks the metric."""
        values = [result.metrics[metric] for _, result in self.runs if metric in result.metrics]
        if len(values) < len(self.runs):
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def cell(self, metric: str, factor: float = 100, digits: int = 1) -> str:
        """Format a metric as a table cell: its mean and, if there are several seeds, its standard deviation."""
        mean_and_std = self.mean_and_std(metric)
        if mean_and_std is None:
            return "–"
        mean, std = (factor * value for value in mean_and_std)
        return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if len(self.runs) > 1 else "")


def group(runs: list[tuple[Path, Result]]) -> list[Group]:
    """Group runs that differ only in their seed.

    Labels include the settings that distinguish a group from others on the same data: with the same backbone or, for
    protocols, with any backbone.
    """
    members_by_key: dict[str, list[tuple[Path, Result]]] = defaultdict(list)
    for path, result in runs:
        key = [result.protocol, _without_seed(result.backbone), result.data, result.n, recipe_of(result)]
        members_by_key[json.dumps(key, sort_keys=True)].append((path, result))
    by_backbone: dict[tuple, list[Result]] = defaultdict(list)
    by_protocol: dict[tuple, list[Result]] = defaultdict(list)
    for (_, first), *_others in members_by_key.values():
        by_protocol[first.protocol, first.data].append(first)
        by_backbone[first.protocol, first.data, _without_seed(first.backbone)].append(first)
    groups = []
    for members in members_by_key.values():
        first = members[0][1]
        recipe, backbone = recipe_of(first), _without_seed(first.backbone)
        differing = _differing_keys(by_backbone[first.protocol, first.data, backbone])
        if is_protocol(first.protocol):
            differing |= _differing_keys(by_protocol[first.protocol, first.data]) - _ARCHITECTURE_KEYS
        settings = ", ".join(f"{key}={value}" for key, value in recipe.items() if key in differing)
        groups.append(Group(f"{backbone} ({settings})" if settings else backbone, backbone, members))
    return groups


def _differing_keys(results: Sequence[Result]) -> set[str]:
    """Return the keys whose values are not equal in all runs."""
    recipes = [recipe_of(result) for result in results]
    keys = {key for recipe in recipes for key in recipe}
    return {key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)}


def _without_seed(source: str) -> str:
    return re.sub(r",seed=\d+", "", source)


def recipe_of(result: Result) -> dict[str, object]:
    """Return the settings that distinguish a run from others on the same backbone and images.

    Keys that were introduced after the run have their legacy default.
    """
    if result.science is not None:
        return _legacy_defaults(result.protocol, result.config.get("task")) | result.science
    return {k: v for k, v in flatten(result.config).items() if k not in _IGNORED_KEYS and not k.startswith("runtime.")}


@cache
def _legacy_defaults(protocol: str, task: str | None) -> dict[str, object]:
    """Return the implicit value of each distinguishing key before its introduction; empty for unknown commands."""
    with contextlib.suppress(UserError):  # user code that can no longer be imported
        entry = find_protocol(protocol)
        keys = entry.keys if entry else pretrain_keys(task) if protocol == "pretrain" else None
        if keys:
            config = keys(data="")
            names = science(config, asdict(config))
            return {name: value for name, value in legacy_defaults(keys).items() if name in names}
    return {}


def by_test_size(groups: Sequence[Group]) -> list[list[Group]]:
    """Partition groups by their number of test images."""
    by_size: dict[int, list[Group]] = defaultdict(list)
    for entry in groups:
        by_size[entry.first.n].append(entry)
    return list(by_size.values())


def data_label(data: str) -> str:
    """Return a short name of a data source: the last path component, or the whole source such as builtin:sample."""
    return data if ":" in data else Path(data).name or data


def test_set_label(result: Result, classes: int) -> str:
    """Describe the test images of a result: data, number of images and, unless 0, number of classes."""
    return f"{data_label(result.data)}, {result.n:,} images" + (f" of {classes:,} classes" if classes else "")


def over_seeds(groups: Sequence[Group]) -> str:
    """Return a note for captions that explains ±; empty if every group has one run."""
    return "; ± is the standard deviation over seeds" if any(len(entry.runs) > 1 for entry in groups) else ""
