"""What the answers of a study say: fooling rates by the bootstrap over participants, and what they rest on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosschannel.runs.resampling import resampled

SHOWN_MS, TOLERANCE_MS = 1000, 34  # how long a picture is to be there, and how far off that may be


@dataclass
class Participant:
    """Who is counted.

    Attributes:
        session: by which their answers go.
        method: whose pictures they judged.
        fooled: of each pair, whether the true photograph was said to be fake (n,) bool.
        photographs: of each pair (n,).
        checks: of each attention check, whether it was recognised.
    """

    session: int
    method: str
    fooled: np.ndarray
    photographs: np.ndarray
    checks: np.ndarray

    @property
    def attention(self) -> float:
        """Share of attention checks that were recognised; 1 where there were none."""
        return float(self.checks.mean()) if len(self.checks) else 1.0


@dataclass
class Fooled:
    """How often a method fooled people.

    Attributes:
        rate: share of all pairs whose fake was taken for the photograph.
        error: its bootstrapped standard error; nan of one participant, who says nothing about others.
        low, high: of its interval; nan likewise.
        participants, pairs: that it is over.
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
            )
        )
    return found


def rates(
    participants: Sequence[Participant], methods: Sequence[str], resamples: int, level: float, seed: int
) -> tuple[dict[str, Fooled], dict[tuple[str, str], float]]:
    """Fooling rates by method, and by pair of methods the bootstrapped two-sided p-value of their being the same.

    Participants are what is drawn anew: answers of one person are not independent. Every pair counts the same. Methods
    that one person judged have no p-values.
    """
    found, drawn = {}, {}
    for number, method in enumerate(methods):
        own = [one for one in participants if one.method == method]
        if not own:
            continue
        fooled = np.array([one.fooled.sum() for one in own], np.float64)
        pairs = np.array([len(one.fooled) for one in own], np.float64)
        values = np.concatenate(
            [(weights @ fooled) / (weights @ pairs) for weights in resampled(len(own), resamples, seed + number)]
        )
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        rate = fooled.sum() / pairs.sum()
        spread = (float(values.std(ddof=1)), float(low), float(high)) if len(own) > 1 else (float("nan"),) * 3
        found[method] = Fooled(rate, *spread, len(own), int(pairs.sum()))
        if len(own) > 1:
            drawn[method] = values
    names = list(drawn)
    p = {}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            difference = drawn[one] - drawn[other]
            tail = min((difference <= 0).sum(), (difference >= 0).sum())
            p[one, other] = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return found, p


def by_photograph(participants: Sequence[Participant], method: str) -> dict[int, tuple[int, int]]:
    """How often each photograph's fake fooled, and how often it was judged."""
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
