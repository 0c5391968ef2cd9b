"""`transfer compare RUN RUN`: do two runs differ by more than the choice of images explains?

Both were scored on the same images, so the difference is taken image by image and bootstrapped over images.
"""

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import numpy as np
from rich.table import Table

from crosschannel.console import stderr_console
from crosschannel.errors import UserError
from crosschannel.keys import Device, Part, Seed, within
from transfer.protocols.running import print_captioned
from transfer.result import Result, finished_runs

_AT_ONCE = 10_000_000  # numbers drawn at once


@dataclass
class CompareConfig:
    """Compare two finished runs on the same images."""

    runs: list[str] = field(default_factory=list, metadata={"help": "two run folders"})
    resamples: Annotated[int, within(1, 10_000_000)] = 10_000
    """of the bootstrap over images"""
    level: Part = 0.95
    """of the interval"""
    seed: Seed = 0
    """of the bootstrap"""
    device: Device = "auto"
    """taken as by every command; nothing here needs one"""


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
    """Differences of all metrics that both runs have image by image.

    Args:
        first, second: results with rows.
        resamples: of the bootstrap.
        level: of the percentile interval.
        seed: of the bootstrap.

    Raises:
        UserError: the runs share no such metric, or were scored on other images.
    """
    for result in (first, second):
        if not result.scores():
            raise UserError(f"a {result.protocol} run has no predictions to compare image by image")
    places = {name: i for i, name in enumerate(second.rows["names"])}
    if len(places) != len(first.rows["names"]) or any(name not in places for name in first.rows["names"]):
        raise UserError("the two runs were scored on different images; only runs on the same images can be paired")
    order = np.array([places[name] for name in first.rows["names"]])
    theirs = second.scores()
    shared = [metric for metric in first.scores() if metric in theirs]
    if not shared:
        raise UserError(
            f"the two runs share no metric: one has {', '.join(first.scores())}, the other {', '.join(theirs)}"
        )
    found = []
    for metric in shared:
        ours = first.rows[metric].astype(np.float64)
        low, high = bootstrap(ours - theirs[metric][order], resamples, level, seed)
        found.append(Difference(metric, first.metrics[metric], second.metrics[metric], low, high))
    return found


def bootstrap(values: np.ndarray, resamples: int, level: float, seed: int) -> tuple[float, float]:
    """The percentile interval of the mean under resampling.

    A resample of n values is a multinomial draw over the distinct ones, which for right and wrong answers are three.

    Args:
        values: (n,).
        resamples: how many.
        level: such as 0.95.
        seed: of the draws.
    """
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    at_once = max(1, _AT_ONCE // len(distinct))
    for start in range(0, resamples, at_once):
        draws = generator.multinomial(len(values), counts / len(values), min(at_once, resamples - start))
        means.append(draws @ distinct / len(values))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def run(config: CompareConfig) -> list[Difference]:
    """`transfer compare`: print a table."""
    runs = finished_runs(config.runs, stderr_console())
    if len(runs) != 2:
        raise UserError(f"compare takes two run folders that have finished, got {len(runs)}")
    (_, first), (_, second) = runs
    differences = compare(first, second, config.resamples, config.level, config.seed)
    table = Table()
    for head in ("metric", "A", "B", "A − B", f"{100 * config.level:g} % interval"):
        table.add_column(head, justify="left" if head == "metric" else "right")
    for d in differences:
        numbers = (f"{100 * d.first:.1f}", f"{100 * d.second:.1f}", f"{100 * (d.first - d.second):+.1f}")
        clear = "[bold]" if d.low > 0 or d.high < 0 else ""
        table.add_row(d.metric, *numbers, f"{clear}{100 * d.low:+.1f} … {100 * d.high:+.1f}")
    print_captioned(f"A {first.backbone}\nB {second.backbone}\n{first.n} images, in %", table)
    return differences
