"""`transfer compare RUN RUN`: do two runs differ by more than the choice of images explains?

Both were scored on the same images, so every resample weighs the images of both alike: a figure's difference, whatever
the figure (a mean, an average precision), has an interval of its own.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from crosschannel.console import stderr_console
from crosschannel.errors import UserError
from crosschannel.runs.result import Result, Rows, finished_runs
from transfer.config import CompareConfig
from transfer.protocol import Figures, Protocol, print_captioned, table
from transfer.protocols import PROTOCOLS

_AT_ONCE = 10_000_000  # weights drawn at once


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
    first: Result, second: Result, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> list[Difference]:
    """Differences of the metrics that two runs share, those of single classes left out.

    Args:
        first, second: results with rows.
        resamples: of the bootstrap.
        level: of the percentile interval.
        seed: of the bootstrap.

    Raises:
        UserError: the runs share no such metric, or were scored on other images.
    """
    for result in (first, second):
        if result.protocol not in PROTOCOLS or not result.rows:
            raise UserError(f"a {result.protocol} run has no predictions to compare image by image")
    places = {name: i for i, name in enumerate(second.rows["names"])}
    if len(places) != len(first.rows["names"]) or any(name not in places for name in first.rows["names"]):
        raise UserError("the two runs were scored on different images; only runs on the same images can be paired")
    order = np.array([places[name] for name in first.rows["names"]])
    theirs = {name: column if name == "classes" else column[order] for name, column in second.rows.items()}
    ours, others = (_protocol(result).metrics for result in (first, second))

    def both(weights: np.ndarray) -> Figures:
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


def _protocol(result: Result) -> Protocol:
    return PROTOCOLS[result.protocol].load()


def _is_of_one_class(metric: str, rows: Rows) -> bool:
    return metric.rpartition("/")[2] in set(rows.get("classes", ()))


def intervals(
    figures: Callable[[np.ndarray], Figures], n: int, resamples: int, level: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of figures under resampling of the images.

    Args:
        figures: weights (R, n) of the images → figures by name, (R,) each.
        n: images.
        resamples: how many.
        level: such as 0.95.
        seed: of the draws.

    Returns:
        (low, high) by name.
    """
    drawn: dict[str, list[np.ndarray]] = {}
    for weights in resampled(n, resamples, seed):
        for name, values in figures(weights).items():
            drawn.setdefault(name, []).append(values)
    tail = (1 - level) / 2
    found = {}
    for name, parts in drawn.items():
        low, high = np.nanquantile(np.concatenate(parts), (tail, 1 - tail))
        found[name] = (float(low), float(high))
    return found


def resampled(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn in a resample of n: (R, n) float64, in parts of bounded memory."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // n)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        draws = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(draws.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def main(config: CompareConfig) -> list[Difference]:
    """`transfer compare`: print a table."""
    runs = finished_runs(config.runs, stderr_console())
    if len(runs) != 2:
        raise UserError(f"compare takes two run folders that have finished, got {len(runs)}")
    (_, first), (_, second) = runs
    differences = compare(first, second, config.resamples, config.level, config.seed)
    rows = {}
    for d in differences:
        clear = "[bold]" if d.low > 0 or d.high < 0 else ""
        rows[d.metric] = [
            f"{100 * d.first:.1f}",
            f"{100 * d.second:.1f}",
            f"{100 * (d.first - d.second):+.1f}",
            f"{clear}{100 * d.low:+.1f} … {100 * d.high:+.1f}",
        ]
    head = ["metric", "A", "B", "A − B", f"{100 * config.level:g} % interval"]
    print_captioned(f"A {first.backbone}\nB {second.backbone}\n{first.n} images, in %", table(rows, head))
    return differences
