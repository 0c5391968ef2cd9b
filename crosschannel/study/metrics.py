"""Metrics of a study: fooling rates with bootstrapped errors, attention checks and timing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosschannel.runs.resampling import bootstrap_weights
from crosschannel.study.config import Test

DISPLAY_MS, TOLERANCE_MS = 1000, 34  # intended display time of a picture, and its tolerance


@dataclass
class Participant:
    """Answers of a participant, without practice pairs.

    Attributes:
        session: id of the session.
        method: method whose pictures the participant judged.
        fooled: (n,) bool, whether the true photograph of each pair was called the fake.
        photographs: (n,) index of the photograph of each pair.
        checks: (m,) bool, whether the fake of each attention check was recognised.
        colour_vision: "normal", "deficient" or "unknown"; None if not asked.
    """

    session: int
    method: str
    fooled: np.ndarray
    photographs: np.ndarray
    checks: np.ndarray
    colour_vision: str | None = None

    @property
    def attention(self) -> float:
        """Fraction of attention checks passed; 1 if there were none."""
        return float(self.checks.mean()) if len(self.checks) else 1.0


@dataclass
class FoolingRate:
    """Fooling rate of a method.

    Attributes:
        rate: fraction of pairs in which the true photograph was called the fake.
        error: bootstrapped standard error; NaN for a single participant.
        low, high: bounds of the confidence interval; NaN for a single participant.
        participants, pairs: number of participants and of pairs.
    """

    rate: float
    error: float
    low: float
    high: float
    participants: int
    pairs: int


def collect_participants(
    sessions: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], unfinished: bool = False
) -> list[Participant]:
    """Collect the answers of each participant, without practice pairs.

    Args:
        sessions, trials: rows of the database.
        unfinished: include participants who did not finish.

    Returns:
        participants with at least one answered pair that is not an attention check.
    """
    rows_by_session: dict[int, list[Mapping[str, Any]]] = {}
    for trial in trials:
        if trial["answer"] is not None and trial["kind"] != "practice":
            rows_by_session.setdefault(trial["session"], []).append(trial)
    participants = []
    for session in sessions:
        rows = rows_by_session.get(session["id"], [])
        if (session["finished"] is None and not unfinished) or not any(row["kind"] == "pair" for row in rows):
            continue
        pairs, checks = ([row for row in rows if row["kind"] == kind] for kind in ("pair", "check"))
        participants.append(
            Participant(
                session["id"],
                session["method"],
                np.array([row["answer"] != row["fake"] for row in pairs]),
                np.array([row["photograph"] for row in pairs]),
                np.array([row["answer"] == row["fake"] for row in checks], bool),
                session.get("colour_vision"),
            )
        )
    return participants


def fooling_rates(
    participants: Sequence[Participant],
    methods: Sequence[str],
    resamples: int,
    level: float,
    seed: int,
    test: Test = "two-sided",
) -> tuple[dict[str, FoolingRate], dict[tuple[str, str], float]]:
    """Estimate the fooling rate of each method. All pairs have the same weight.

    Args:
        participants: participants to include.
        methods: method names in the order of the results.
        resamples: number of bootstrap resamples, see :func:`resample_rates`.
        level: confidence level of the intervals, such as 0.95.
        seed: seed of the resamples.
        test: two-sided or one-sided p-values.

    Returns:
        fooling rates by method, and p-values by ordered pair of methods. The null hypothesis is that both methods fool
        equally often (two-sided), or that the first does not fool more often than the second (one-sided). Methods with
        a single participant have no p-values.
    """
    by_method, resampled_rates = {}, {}
    for index, method in enumerate(methods):
        group = [participant for participant in participants if participant.method == method]
        if not group:
            continue
        fooled, pairs = (np.array([count(participant.fooled) for participant in group]) for count in (np.sum, len))
        values = resample_rates(fooled, pairs, resamples, seed + index)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        rate = float(fooled.sum() / pairs.sum())
        uncertainty = (float(values.std(ddof=1)), float(low), float(high)) if len(group) > 1 else (float("nan"),) * 3
        by_method[method] = FoolingRate(rate, *uncertainty, len(group), int(pairs.sum()))
        if len(group) > 1:
            resampled_rates[method] = values
    one_sided = {
        (a, b): _one_sided_p(resampled_rates[a], resampled_rates[b])
        for a in resampled_rates
        for b in resampled_rates
        if a != b
    }
    if test == "one-sided":
        return by_method, one_sided
    return by_method, {(a, b): min(1.0, 2 * min(p, one_sided[b, a])) for (a, b), p in one_sided.items()}


def resample_rates(fooled: np.ndarray, pairs: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Resample a fooling rate with the two-stage bootstrap: participants, then the pairs of each.

    This is the paper's analysis. The first stage is necessary because answers of one person are not independent. The
    second adds the randomness of the pairs that each person saw, which makes the errors conservative.

    Args:
        fooled, pairs: (n,) number of fooled answers and of pairs per participant.
        resamples: number of resamples.
        seed: seed of the bootstrap.

    Returns:
        (resamples,) rates.
    """
    generator, rates = np.random.default_rng((seed, 1)), fooled / pairs
    chunks = []
    for weights in bootstrap_weights(len(pairs), resamples, seed):
        counts = weights.astype(np.int64) * pairs
        chunks.append(generator.binomial(counts, rates).sum(1) / counts.sum(1))
    return np.concatenate(chunks)


def _one_sided_p(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value for the null hypothesis that the first rate is not above the second. Ties count half."""
    below = (first < second).sum() + (first == second).sum() / 2
    return float((below + 1) / (len(first) + 1))


def count_by_photograph(participants: Sequence[Participant], method: str) -> dict[int, tuple[int, int]]:
    """Count how often the fake of each photograph fooled, and how often it was judged."""
    counts: dict[int, tuple[int, int]] = {}
    for participant in participants:
        if participant.method == method:
            for photograph, fooled in zip(participant.photographs.tolist(), participant.fooled.tolist(), strict=True):
                fooled_count, judged_count = counts.get(photograph, (0, 0))
                counts[photograph] = (fooled_count + fooled, judged_count + 1)
    return counts


@dataclass
class TimingSummary:
    """Display times of pictures, in ms.

    Attributes:
        within: fraction of pictures within :data:`TOLERANCE_MS` of :data:`DISPLAY_MS`.
        median, shortest, longest: statistics of the display times.
        hidden: number of pairs during which the page was not visible.
        reloaded: number of pairs whose pictures were loaded more than once, usually because the page was reloaded.
        pictures, pairs: number of pictures and of pairs.
    """

    within: float
    median: float
    shortest: float
    longest: float
    hidden: int
    reloaded: int
    pictures: int
    pairs: int


def summarise_timing(trials: Sequence[Mapping[str, Any]]) -> TimingSummary | None:
    """Summarise the display times of all answered pairs; None if there are none."""
    rows = [trial for trial in trials if trial["answer"] is not None]
    if not rows:
        return None
    display_ms = np.array([[row["first_ms"], row["second_ms"]] for row in rows], np.float64).ravel()
    return TimingSummary(
        float((np.abs(display_ms - DISPLAY_MS) <= TOLERANCE_MS).mean()),
        float(np.median(display_ms)),
        float(display_ms.min()),
        float(display_ms.max()),
        sum(row["hidden"] for row in rows),
        sum(row["loads"] > 2 for row in rows),
        len(display_ms),
        len(rows),
    )
