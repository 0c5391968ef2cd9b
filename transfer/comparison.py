"""`transfer compare RUN RUN`: paired bootstrap confidence intervals of the differences between two runs.

Both runs must be evaluated on the same images. Every bootstrap resample applies the same image weights to both runs.
This works for any metric: means as well as average precisions.
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
    """Difference of a metric between two runs.

    Attributes:
        metric: name of the metric.
        first, second: value in each run.
        low, high: bounds of the confidence interval of first − second.
    """

    metric: str
    first: float
    second: float
    low: float
    high: float


def compare(
    first: Result | Path | str, second: Result | Path | str, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> list[Difference]:
    """Compare the metrics that two runs have in common, except per-class metrics.

    Args:
        first, second: results with rows, or finished run folders.
        resamples: number of bootstrap resamples.
        level: confidence level of the percentile intervals.
        seed: seed of the bootstrap.

    Raises:
        UserError: the runs have no such metric in common, or were evaluated on different images.
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
                "images are paired by name, so image names must be unique"
            )
    indices = {name: i for i, name in enumerate(second.rows["names"])}
    if len(indices) != len(first.rows["names"]) or any(name not in indices for name in first.rows["names"]):
        raise UserError("the two runs were evaluated on different images; only runs on the same images can be paired")
    order = np.array([indices[name] for name in first.rows["names"]])
    second_rows = {name: column if name == "classes" else column[order] for name, column in second.rows.items()}
    first_metrics, second_metrics = (load_metric_spec(result.protocol).metrics for result in (first, second))

    def differences(weights: np.ndarray) -> MetricArrays:
        try:
            first_values, second_values = first_metrics(first.rows, weights), second_metrics(second_rows, weights)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"the rows of one of the two runs are damaged: {error}") from None
        return {name: first_values[name] - second_values[name] for name in first_values if name in second_values}

    common = [name for name in differences(np.ones((1, first.n))) if name in first.metrics and name in second.metrics]
    compared = [name for name in common if not _is_per_class(name, first.rows)]
    if not compared:
        raise UserError("the two runs have no metric in common that can be computed per image")
    bounds = intervals(differences, first.n, resamples, level, seed)
    return [Difference(name, first.metrics[name], second.metrics[name], *bounds[name]) for name in compared]


def select_method(result: Result, method: str) -> Result:
    """Select the metrics and rows of one method of a multi-method run, and remove the method's prefix from their names.

    Raises:
        UserError: the run has no such method.
    """
    prefix = f"{method}/"
    if not any(name.startswith(prefix) for name in result.metrics):
        known = dict.fromkeys(name.partition("/")[0] for name in result.metrics)
        raise UserError(f"this {result.protocol} run has no method {method!r}; available: {', '.join(known)}")
    metrics = {name.removeprefix(prefix): value for name, value in result.metrics.items() if name.startswith(prefix)}
    columns = {name: column for name, column in result.rows.items() if name.startswith(prefix) or "/" not in name}
    rows = {name.removeprefix(prefix): column for name, column in columns.items()}
    return replace(result, metrics=metrics, backbone=f"{result.backbone}: {method}", rows=rows)


def _is_per_class(metric: str, rows: Rows) -> bool:
    return metric.rpartition("/")[2] in set(rows.get("classes", ()))


def _path_and_method(text: str) -> tuple[str, str]:
    """Split RUN:METHOD into run folder and method; the method is empty for a plain run folder."""
    path, colon, method = text.rpartition(":")
    return (path, method) if colon and not user_path(text).exists() else (text, "")


def main(config: CompareConfig) -> list[Difference]:
    """Run `transfer compare`: print a table of differences and return them."""
    config = check_config(config, CompareConfig)
    arguments = [_path_and_method(text) for text in config.runs]
    runs = finished_runs([path for path, _ in arguments], stderr_console())
    if len(runs) != 2:
        raise UserError(f"compare needs two finished run folders, got {len(runs)}")
    first, second = (
        select_method(result, method) if method else result
        for (_, result), (_, method) in zip(runs, arguments, strict=True)
    )
    differences = compare(first, second, config.resamples, config.level, config.seed)
    rows, spec = {}, load_metric_spec(first.protocol)
    is_percent = all(spec.format_of(d.metric).unit == "%" for d in differences)
    for d in differences:
        style = "bold" if d.low > 0 or d.high < 0 else ""
        number_format = spec.format_of(d.metric)
        interval = Text(f"{number_format(d.low, '+')} … {number_format(d.high, '+')}", style)
        name = d.metric if is_percent or not number_format.unit else f"{d.metric}, {number_format.unit}"
        rows[name] = [number_format(d.first), number_format(d.second), number_format(d.first - d.second, "+"), interval]
    header = ["metric", "A", "B", "A − B", f"{100 * config.level:g} % CI"]
    names = [first.backbone, second.backbone]
    if names[0] == names[1]:
        names = [f"{name} ({run})" for name, run in zip(names, config.runs, strict=True)]
    unit = ", in %" if is_percent else ""
    print_captioned(f"A {names[0]}\nB {names[1]}\n{first.n} images{unit}", table(rows, header))
    return differences
