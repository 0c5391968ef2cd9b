"""Fooling rates of a study with bootstrapped errors; attention checks and timing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosschannel.runs.resampling import bootstrap_weights
from crosschannel.study.config import Test

SHOWN_MS, TOLERANCE_MS = 1000, 34  # how long a picture is to be there, and how far off that may be


@dataclass
class Participant:
    """The answers of a participant.

    Attributes:
        session: id of the session.
        method: the method whose pictures they judged.
        fooled: (n,) bool per pair, whether the true photograph was called the fake.
        photographs: (n,), index of the photograph of each pair.
        checks: (m,) bool per attention check, whether the fake was recognised.
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
        """Share of attention checks passed; 1 if there were none."""
        return float(self.checks.mean()) if len(self.checks) else 1.0


@dataclass
class Fooled:
    """How often a method fooled people.

    Attributes:
        rate: share of all pairs whose fake was taken for the photograph.
        error: bootstrapped standard error; nan for a single participant.
        low, high: ends of the interval; nan for a single participant.
        participants, pairs: numbers of participants and pairs.
    """

    rate: float
    error: float
    low: float
    high: float
    participants: int
    pairs: int


def participants_of(
    sessions: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], unfinished: bool = False
) -> list[Participant]:
    """Participants who have answered anything beyond practice; those who have not finished only where asked for."""
    answered: dict[int, list[Mapping[str, Any]]] = {}
    for trial in trials:
        if trial["answer"] is not None and trial["kind"] != "practice":
            answered.setdefault(trial["session"], []).append(trial)
    found = []
    for session in sessions:
        rows = answered.get(session["id"], [])
        if (session["finished"] is None and not unfinished) or not any(row["kind"] == "pair" for row in rows):
            continue
        pairs, checks = ([row for row in rows if row["kind"] == kind] for kind in ("pair", "check"))
        found.append(
            Participant(
                session["id"],
                session["method"],
                np.array([row["answer"] != row["fake"] for row in pairs]),
                np.array([row["photograph"] for row in pairs]),
                np.array([row["answer"] == row["fake"] for row in checks], bool),
                session.get("colour_vision"),
            )
        )
    return found


def rates(
    participants: Sequence[Participant],
    methods: Sequence[str],
    resamples: int,
    level: float,
    seed: int,
    test: Test = "two-sided",
) -> tuple[dict[str, Fooled], dict[tuple[str, str], float]]:
    """Estimate how often each method fools people; all pairs have the same weight.

    Args:
        participants: participants to include.
        methods: method names in the order of the results.
        resamples: number of bootstrap resamples, see :func:`resampled_rates`.
        level: confidence level of the intervals, such as 0.95.
        seed: seed of the resamples.
        test: kind of p-values.

    Returns:
        Fooling rates by method, and p-values by ordered pair of methods. The null hypothesis is that both fool equally
        often (two-sided), or that the first does not fool more often than the second (one-sided). Methods with a single
        participant have no p-values.
    """
    found, drawn = {}, {}
    for number, method in enumerate(methods):
        own = [one for one in participants if one.method == method]
        if not own:
            continue
        fooled, pairs = (np.array([count(one.fooled) for one in own]) for count in (np.sum, len))
        values = resampled_rates(fooled, pairs, resamples, seed + number)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        rate = float(fooled.sum() / pairs.sum())
        spread = (float(values.std(ddof=1)), float(low), float(high)) if len(own) > 1 else (float("nan"),) * 3
        found[method] = Fooled(rate, *spread, len(own), int(pairs.sum()))
        if len(own) > 1:
            drawn[method] = values
    one_sided = {(a, b): _one_sided_p(drawn[a], drawn[b]) for a in drawn for b in drawn if a != b}
    if test == "one-sided":
        return found, one_sided
    return found, {(a, b): min(1.0, 2 * min(p, one_sided[b, a])) for (a, b), p in one_sided.items()}


def resampled_rates(fooled: np.ndarray, pairs: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Resample a fooling rate with the two-stage bootstrap: participants, then the pairs of each.

    This is the paper's analysis. The first stage is needed because answers of one person are not independent. The
    second adds the randomness of the pairs that each person saw, which makes errors conservative.

    Args:
        fooled, pairs: (n,) counts per participant.
        resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        (resamples,) rates.
    """
    generator, share = np.random.default_rng((seed, 1)), fooled / pairs
    parts = []
    for weights in bootstrap_weights(len(pairs), resamples, seed):
        counts = weights.astype(np.int64) * pairs
        parts.append(generator.binomial(counts, share).sum(1) / counts.sum(1))
    return np.concatenate(parts)


def _one_sided_p(first: np.ndarray, second: np.ndarray) -> float:
    """One-sided p-value for the null hypothesis that the first rate is not above the second; ties count half."""
    below = (first < second).sum() + (first == second).sum() / 2
    return float((below + 1) / (len(first) + 1))


def by_photograph(participants: Sequence[Participant], method: str) -> dict[int, tuple[int, int]]:
    """Count how often each photograph's fake fooled, and how often it was judged."""
    found: dict[int, tuple[int, int]] = {}
    for one in participants:
        if one.method == method:
            for photograph, fooled in zip(one.photographs.tolist(), one.fooled.tolist(), strict=True):
                times, of = found.get(photograph, (0, 0))
                found[photograph] = (times + fooled, of + 1)
    return found


@dataclass
class Timing:
    """How long pictures were there, ms.

    Attributes:
        within: share of pictures within :data:`TOLERANCE_MS` of :data:`SHOWN_MS`.
        median, least, most: of all.
        hidden: pairs during which the page was out of sight.
        again: pairs whose pictures were loaded more than once (a reload, most often).
        pictures, pairs: that it is over.
    """

    within: float
    median: float
    least: float
    most: float
    hidden: int
    again: int
    pictures: int
    pairs: int


def timing_of(trials: Sequence[Mapping[str, Any]]) -> Timing | None:
    """Of all pairs that were answered; None where there are none."""
    rows = [trial for trial in trials if trial["answer"] is not None]
    if not rows:
        return None
    shown = np.array([[row["first_ms"], row["second_ms"]] for row in rows], np.float64).ravel()
    return Timing(
        float((np.abs(shown - SHOWN_MS) <= TOLERANCE_MS).mean()),
        float(np.median(shown)),
        float(shown.min()),
        float(shown.max()),
        sum(row["hidden"] for row in rows),
        sum(row["loads"] > 2 for row in rows),
        len(shown),
        len(rows),
    )
