"""What is said of answers: known rates are found again, and the page has what a reader needs."""

import csv
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from crosschannel.cli import main
from crosschannel.runs.result import load_result
from crosschannel.study.answers import Answers, Timing, read_answers
from crosschannel.study.config import StudyReportConfig
from crosschannel.study.metrics import (
    Participant,
    collect_participants,
    fooling_rates,
    resample_rates,
    summarise_timing,
)
from crosschannel.study.report import _tables

METHODS = {"weak": 0.15, "good": 0.32}


def simulated(generator, people: int, pairs: int = 36) -> list[Participant]:
    """People who differ in how easily they are fooled, around each method's rate."""
    found = []
    for method, rate in METHODS.items():
        for own in generator.beta(10 * rate, 10 * (1 - rate), people):
            fooled = generator.random(pairs) < own
            found.append(Participant(len(found), method, fooled, np.arange(pairs), np.ones(4, bool)))
    return found


def test_known_rates_are_within_their_intervals():
    """200 studies of 40 people a method; the interval is of 95 %."""
    hits, differs, errors = dict.fromkeys(METHODS, 0), 0, []
    generator = np.random.default_rng(1)
    for number in range(200):
        found, p = fooling_rates(simulated(generator, 40), list(METHODS), 500, 0.95, number)
        for method, rate in METHODS.items():
            hits[method] += found[method].low <= rate <= found[method].high
        errors.append(found["good"].error)
        differs += p["weak", "good"] < 0.05
    assert all(count >= 180 for count in hits.values()), hits
    assert differs >= 198  # 15 % and 32 %
    spread = np.std([np.mean([one.fooled.mean() for one in simulated(generator, 40)[40:]]) for _ in range(400)])
    assert abs(np.mean(errors) / spread - 1) < 0.15


@pytest.mark.parametrize(("between", "ratio"), [(0.0, 1.41), (0.06, 1.31), (0.14, 1.15)])
def test_standard_errors_have_the_variance_of_participants_and_of_their_pairs(between, ratio):
    """30 people judge 20 pairs each; between: standard deviation of their rates around 0.3.

    The expected variance of the two-stage bootstrap follows from the two variances; ratio: to the error over
    participants alone.
    """
    people, pairs, rate, generator = 30, 20, 0.3, np.random.default_rng(4)
    size = rate * (1 - rate) / between**2 - 1 if between else np.inf
    within = rate * (1 - rate) - between**2
    over_people = (people - 1) / people**2 * (between**2 + within / pairs)
    over_pairs = within / pairs * (pairs - 1) / pairs / people
    variances = []
    for number in range(400):
        person_rates = generator.beta(size * rate, size * (1 - rate), people) if between else np.full(people, rate)
        fooled = generator.binomial(pairs, person_rates)
        variances.append(resample_rates(fooled, np.full(people, pairs), 400, number).var())
    assert np.mean(variances) == pytest.approx(over_people + over_pairs, rel=0.03)
    assert np.sqrt(np.mean(variances) / over_people) == pytest.approx(ratio, abs=0.03)


def test_p_values_match_an_enumeration_of_all_resamples():
    """Two people per method, two pairs each: every resample of both stages, with its probability."""
    answers = {"a": [[1, 1], [1, 0]], "b": [[1, 0], [0, 0]]}

    def distribution(people) -> dict[int, float]:
        """Probability of each count of fooled pairs of four."""
        chances = dict.fromkeys(range(5), 0.0)
        for chosen in itertools.product(people, repeat=2):
            for fooled in itertools.product(*(itertools.product(pairs, repeat=2) for pairs in chosen)):
                chances[sum(map(sum, fooled))] += 1 / 4 / 16
        return chances

    a, b = (distribution(people) for people in answers.values())
    below = sum(p * q * (x < y) for x, p in a.items() for y, q in b.items())
    ties = sum(p * b[x] for x, p in a.items())
    people = [
        Participant(n, method, np.array(fooled, bool), np.arange(2), np.ones(0, bool))
        for method, rows in answers.items()
        for n, fooled in enumerate(rows)
    ]
    _, one_sided = fooling_rates(people, ["a", "b"], 100_000, 0.95, 0, "one-sided")
    _, two_sided = fooling_rates(people, ["a", "b"], 100_000, 0.95, 0)
    assert one_sided["a", "b"] == pytest.approx(below + ties / 2, abs=0.006)
    assert one_sided["a", "b"] + one_sided["b", "a"] == pytest.approx(1, abs=1e-4)
    assert two_sided["a", "b"] == two_sided["b", "a"] == pytest.approx(2 * (below + ties / 2), abs=0.012)


def test_equal_methods_seldom_differ():
    """If people do not differ, the two-stage error is √2 times the true one: p < 0.05 in 0.6 % and p < 0.5 in 34 %."""
    generator, found = np.random.default_rng(2), []
    for number in range(200):
        people = [
            Participant(0, method, generator.random(36) < 0.3, np.arange(36), np.ones(0, bool))
            for method in ("a", "b")
            for _ in range(40)
        ]
        found.append(fooling_rates(people, ["a", "b"], 500, 0.95, number)[1]["a", "b"])
    assert np.mean(np.array(found) < 0.05) < 0.03 and 0.25 < np.mean(np.array(found) < 0.5) < 0.43


@pytest.fixture
def answered(study):
    """Nine people: one does not finish, one recognises no check."""
    folder, manifest = study
    answers, generator = Answers(folder, manifest), np.random.default_rng(0)
    for number in range(9):
        session = answers.begin(f"secret-{number}")
        rows = {trial["token"]: trial for trial in read_answers(folder)[1]}
        while (state := answers.state(session)).trial and not (number == 8 and state.number == 5):
            row = rows[state.trial]
            other = "left" if row["fake"] == "right" else "right"
            fooled = generator.random() < 0.4 if row["kind"] == "pair" else number == 7
            shown = 1000.0 if state.number else 1200.0
            answers.answer(session, state.trial, other if fooled else row["fake"], Timing(shown, 1000.0, 500.0, False))
    answers.close()
    return folder


def test_a_report_says_who_counts_and_how_often_they_were_fooled(answered, tmp_path, capsys, photo_folder):
    out = tmp_path / "report"
    assert main(["study", "report", str(answered), f"--out={out}", "--resamples=500"]) == 0
    said = capsys.readouterr()
    assert "fooled.csv" in said.out and "next:" in said.err
    text = (out / "report.md").read_text()
    assert (
        "9 people started and 8 finished; 7 are included (1 recognised fewer than 50% of the attention checks; " in text
    )
    assert "0 did not report normal colour vision; 7 of those included were not asked about it)" in text
    assert "| full | 32.3 |" in re.sub(r"\*", "", text)
    with (out / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 8 * 8 + 5 and "secret" not in (out / "trials.csv").read_text()
    with (out / "fooled.csv").open() as file:
        found = {row["method"]: row for row in csv.DictReader(file)}
    for method, row in found.items():
        own = [t for t in trials if t["method"] == method and t["finished"] == "1" and t["participant"] != "8"]
        pairs = [int(t["fooled"]) for t in own if t["kind"] == "pair"]
        assert float(row["fooled"]) == pytest.approx(np.mean(pairs)) and int(row["pairs"]) == len(pairs)
        assert (out / f"fooled-{method}.png").is_file()
    assert "14 of 14" in text or "100.0 % of 14" in text  # checks of those who are counted
    evaluated = ["evaluate", f"--data={photo_folder}", "--methods", "grey", "truth", f"--realism={out / 'fooled.csv'}"]
    assert main([*evaluated, "--size=32", "--workers=0", f"--out={tmp_path / 'ev'}"]) == 0
    assert load_result(tmp_path / "ev").metrics["grey/fooled"] == pytest.approx(float(found["grey"]["fooled"]))
    page = (tmp_path / "ev" / "report.md").read_text()
    assert "People fooled, %" in page and f"{100 * float(found['grey']['fooled']):.1f}" in page
    capsys.readouterr()
    bad = [word if "realism" not in word else f"--realism={out / 'trials.csv'}" for word in evaluated]
    assert main([*bad, "--size=32", "--workers=0", f"--out={tmp_path / 'ev2'}"]) == 2
    assert "is not a fooled.csv" in capsys.readouterr().err
    others = [word if word != "grey" else "GREY=grey" for word in evaluated if word != "truth"]
    assert main([*others, "--size=32", "--workers=0", f"--out={tmp_path / 'ev3'}"]) == 2
    assert "the methods are GREY" in capsys.readouterr().err
    assert (
        main(["study", "report", str(answered), f"--out={out}", "--attention=0", "--unfinished"]) == 0
    )  # its own files
    assert "9 are included" in (out / "report.md").read_text()


@pytest.fixture
def with_visions(study):
    """Six people by the same method: two of normal colour vision, one of each other kind, two who were not asked."""
    folder, manifest = study
    answers = Answers(folder, replace(manifest, methods={"grey": "grey"}))
    visions = ["normal", "deficient", None, "unknown", "normal", None]
    for number, vision in enumerate(visions):
        session = answers.begin(f"p{number}", vision)
        rows = {trial["token"]: trial for trial in read_answers(folder)[1]}
        while (state := answers.state(session)).trial:
            fake = rows[state.trial]["fake"]
            other = "left" if fake == "right" else "right"
            fooled = vision in ("deficient", "unknown") and rows[state.trial]["kind"] == "pair"
            answers.answer(session, state.trial, other if fooled else fake, Timing(1000, 1000, 500, False))
    answers.close()
    return folder, visions


def test_people_without_normal_colour_vision_are_left_out_and_counted(with_visions, tmp_path, capsys):
    folder, visions = with_visions
    out = tmp_path / "report"
    assert main(["study", "report", str(folder), f"--out={out}", "--resamples=100"]) == 0
    text = (out / "report.md").read_text()
    assert "6 people started and 6 finished; 4 are included" in text
    assert "2 did not report normal colour vision; 2 of those included were not asked about it" in text
    with (out / "fooled.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["participants"], float(row["fooled"])) == ("4", 0)  # those left out were fooled every time
    with (out / "trials.csv").open() as file:
        visions_by_person = {row["participant"]: row["colour_vision"] for row in csv.DictReader(file)}
    assert list(visions_by_person.values()) == [vision or "" for vision in visions]


def test_the_caption_names_the_kind_of_p_values():
    fooled, p = fooling_rates(simulated(np.random.default_rng(3), 5), list(METHODS), 100, 0.95, 0)
    for test, label in (("two-sided", "Two-sided p"), ("one-sided", "One-sided p")):
        *_, table = _tables(StudyReportConfig("study", out="out", p_values=test), fooled, p)
        assert label in table.caption


def test_one_participant_says_nothing_about_others():
    people = [one for one in simulated(np.random.default_rng(3), 3) if one.method == "good" or one.session == 0]
    found, p = fooling_rates(people, list(METHODS), 100, 0.95, 0)
    assert found["weak"].participants == 1 and np.isnan([found["weak"].error, found["weak"].low]).all() and not p
    assert found["good"].error > 0


def test_a_report_of_damaged_pictures_is_refused(answered, tmp_path, capsys):
    next((answered / "pictures").iterdir()).write_bytes(b"no picture")
    assert main(["study", "report", str(answered), f"--out={tmp_path / 'r'}"]) == 2
    assert "missing or damaged" in capsys.readouterr().err


def test_no_answers_yet(study, tmp_path, capsys):
    folder, manifest = study
    words = ["study", "report", str(folder), f"--out={tmp_path / 'r'}"]
    assert main(words) == 2 and "no answers yet" in capsys.readouterr().err
    answers = Answers(folder, manifest)
    answers.begin("p")
    answers.close()
    assert main(words) == 2 and "1 session started, 0 finished" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_counts_of_participants_and_timing():
    session = {"id": 1, "method": "a", "finished": None}
    base = {"session": 1, "photograph": 3, "hidden": 0, "loads": 2, "first_ms": 1000.0, "second_ms": 1035.0}
    trials = [
        {**base, "kind": "practice", "fake": "left", "answer": "right"},
        {**base, "kind": "pair", "fake": "left", "answer": "right"},
        {**base, "kind": "check", "fake": "left", "answer": "left", "hidden": 1, "loads": 4},
        {**base, "kind": "pair", "fake": "left", "answer": None},
    ]
    assert collect_participants([session], trials) == []
    (one,) = collect_participants([session], trials, unfinished=True)
    assert one.fooled.tolist() == [True] and one.checks.tolist() == [True] and one.attention == 1
    assert one.session == 1
    timing = summarise_timing(trials)
    assert (timing.within, timing.hidden, timing.reloaded, timing.pairs) == (0.5, 1, 1, 3)
    assert summarise_timing([]) is None
