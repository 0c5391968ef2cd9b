"""`transfer compare RUN RUN`: do two runs differ by more than the choice of images explains?

Both were scored on the same images, so every resample weighs the images of both alike: a figure's difference, whatever
the figure (a mean, an average precision), has an interval of its own.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.text import Text

from crosschannel.config.load import check_config
from crosschannel.console import stderr_console, table
from crosschannel.errors import UserError
from crosschannel.files import user_path
from crosschannel.runs.resampling import intervals
from crosschannel.runs.result import Result, Rows, finished_runs
from transfer.config import CompareConfig
from transfer.inputs import as_result
from transfer.protocol import MetricArrays, print_captioned
from transfer.protocols import load_metric_spec


class Difference(NamedTuple):
    """A metric of two runs.

    Attributes:
        metric: its name.
        first, second: what each run has.
        low, high: interval of first − second.
    """

    metric: str
    first: float
    second: float
    low: float
    high: float


def compare(
    first: Result | Path | str, second: Result | Path | str, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> list[Difference]:
    """Differences of the metrics that two runs share, those of single classes left out.

    Args:
        first, second: results with rows, or finished run folders.
        resamples: of the bootstrap.
        level: of the percentile interval.
        seed: of the bootstrap.

    Raises:
        UserError: the runs share no such metric, or were scored on other images.
    """
    check_config(CompareConfig([], resamples, level, seed=seed))
    first, second = as_result(first), as_result(second)
    for result in (first, second):
        if load_metric_spec(result.protocol) is None or not result.rows:
            raise UserError(f"a {result.protocol} run has no predictions to compare image by image")
    for result in (first, second):
        name, count = Counter(result.rows["names"].tolist()).most_common(1)[0]
        if count > 1:
            raise UserError(
                f"{result.protocol} of {result.backbone} on {result.data} has {count} rows for the image {name!r}; "
                "images are paired by name, so each must be scored once"
            )
    places = {name: i for i, name in enumerate(second.rows["names"])}
    if len(places) != len(first.rows["names"]) or any(name not in places for name in first.rows["names"]):
        raise UserError("the two runs were scored on different images; only runs on the same images can be paired")
    order = np.array([places[name] for name in first.rows["names"]])
    theirs = {name: column if name == "classes" else column[order] for name, column in second.rows.items()}
    ours, others = (load_metric_spec(result.protocol).metrics for result in (first, second))

    def both(weights: np.ndarray) -> MetricArrays:
        try:
            mine, yours = ours(first.rows, weights), others(theirs, weights)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"the rows of one of the two runs are damaged: {error}") from None
        return {name: mine[name] - yours[name] for name in mine if name in yours}

    shared = [name for name in both(np.ones((1, first.n))) if name in first.metrics and name in second.metrics]
    shown = [name for name in shared if not _is_of_one_class(name, first.rows)]
    if not shown:
        raise UserError("the two runs share no metric that can be computed of their images")
    found = intervals(both, first.n, resamples, level, seed)
    return [Difference(name, first.metrics[name], second.metrics[name], *found[name]) for name in shown]


def select_method(result: Result, method: str) -> Result:
    """What a run of several methods found of one: its columns and figures, called as if there were no other.

    Raises:
        UserError: the run has no such method.
    """
    mine = f"{method}/"
    if not any(name.startswith(mine) for name in result.metrics):
        known = dict.fromkeys(name.partition("/")[0] for name in result.metrics)
        raise UserError(f"a {result.protocol} run has no method {method!r}; it has {', '.join(known)}")
    metrics = {name.removeprefix(mine): value for name, value in result.metrics.items() if name.startswith(mine)}
    own = {name: column for name, column in result.rows.items() if name.startswith(mine) or "/" not in name}
    rows = {name.removeprefix(mine): column for name, column in own.items()}
    return replace(result, metrics=metrics, backbone=f"{result.backbone}: {method}", rows=rows)


def _is_of_one_class(metric: str, rows: Rows) -> bool:
    return metric.rpartition("/")[2] in set(rows.get("classes", ()))


def _path_and_method(text: str) -> tuple[str, str]:
    """A run folder, and the method after a colon, where one is named."""
    path, colon, method = text.rpartition(":")
    return (path, method) if colon and not user_path(text).exists() else (text, "")


def main(config: CompareConfig) -> list[Difference]:
    """`transfer compare`: print a table."""
    config = check_config(config, CompareConfig)
    given = [_path_and_method(text) for text in config.runs]
    runs = finished_runs([path for path, _ in given], stderr_console())
    if len(runs) != 2:
        raise UserError(f"compare takes two run folders that have finished, got {len(runs)}")
    first, second = (
        select_method(result, method) if method else result
        for (_, result), (_, method) in zip(runs, given, strict=True)
    )
    differences = compare(first, second, config.resamples, config.level, config.seed)
    rows, spec = {}, load_metric_spec(first.protocol)
    is_percent = all(spec.format_of(d.metric).unit == "%" for d in differences)
    for d in differences:
        style = "bold" if d.low > 0 or d.high < 0 else ""
        show = spec.format_of(d.metric)
        interval = Text(f"{show(d.low, '+')} … {show(d.high, '+')}", style)
        name = d.metric if is_percent or not show.unit else f"{d.metric}, {show.unit}"
        rows[name] = [show(d.first), show(d.second), show(d.first - d.second, "+"), interval]
    head = ["metric", "A", "B", "A − B", f"{100 * config.level:g} % interval"]
    names = [first.backbone, second.backbone]
    if names[0] == names[1]:
        names = [f"{name} ({run})" for name, run in zip(names, config.runs, strict=True)]
    unit = ", in %" if is_percent else ""
    print_captioned(f"A {names[0]}\nB {names[1]}\n{first.n} images{unit}", table(rows, head))
    return differences
