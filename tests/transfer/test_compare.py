import shutil

import numpy as np
import pytest

from crosschannel import UserError
from crosschannel.runs.resampling import intervals
from crosschannel.runs.result import Result
from transfer.cli import main
from transfer.comparison import compare
from transfer.protocol import weighted_mean


def result(rows, names=None, protocol="linear-probe"):
    n = len(next(iter(rows.values())))
    names = np.array(names or [f"{i}.jpg" for i in range(n)])
    metrics = {metric: float(np.mean(row)) for metric, row in rows.items()}
    return Result(protocol, "net", "data", {}, 0, n, "0", metrics, rows={"names": names, **rows})


def test_the_interval_is_the_normal_one_for_many_images():
    generator = np.random.default_rng(0)
    for values in (generator.integers(-1, 2, 4000).astype(float), generator.normal(0.1, 2, 4000)):
        low, high = intervals(lambda w, v=values: {"mean": weighted_mean(v, w)}, 4000, 4000, 0.95, 0)["mean"]
        mean, error = values.mean(), values.std() / 4000**0.5
        assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
        assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_pairing_follows_names_and_makes_the_interval_narrow():
    generator = np.random.default_rng(1)
    base = generator.random(1000) < 0.5
    better = base | (generator.random(1000) < 0.04)
    order = generator.permutation(1000)
    names = [f"{i}.jpg" for i in order]
    found = compare(result({"conv1/top1": better}), result({"conv1/top1": base[order]}, names))[0]
    assert found.first - found.second == pytest.approx(better.mean() - base.mean())
    assert 0 < found.low < found.first - found.second < found.high < 0.04
    swapped = compare(result({"conv1/top1": base}), result({"conv1/top1": better}))[0]
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=2e-3)


def test_a_run_equals_itself(finished_probe, capsys):
    assert main(["compare", str(finished_probe), str(finished_probe)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "conv3/top1" in line]
    assert len(lines) == 1 and "+0.0" in lines[0]


def test_runs_that_cannot_be_paired_say_why():
    one = result({"conv1/top1": np.ones(4, bool)})
    for other, message in (
        (result({"conv1/top1": np.ones(5, bool)}), "different images"),
        (result({"conv1/top1": np.ones(4, bool)}, ["a", "b", "c", "d"]), "different images"),
        (result({"conv1/knn20": np.ones(4, bool)}), "have no metric in common"),
        (Result("pretrain", "net", "data", {}, 0, 4, "0", {"kl": 1.0}), "no predictions"),
    ):
        with pytest.raises(UserError, match=message):
            compare(one, other)


def test_intervals_of_map_cover_the_truth():
    """Of 200 simulated pairs of runs, 95 % intervals of the difference in mAP hold the true one in 90 to 99 %."""
    from transfer.protocols.classify.task import compute_metrics

    generator = np.random.default_rng(0)
    classes = np.array(["a", "b", "c"])

    def scored(n: int) -> tuple[dict, dict]:
        """Two nets' logits for the same images; the first one is the better."""
        labels = (generator.random((n, 3)) < [0.3, 0.2, 0.4]).astype(np.int8)
        shared = generator.normal(size=(n, 3))
        runs = []
        for strength in (1.2, 0.9):
            logits = strength * labels + 0.7 * shared + 0.7 * generator.normal(size=(n, 3))
            runs.append({"classes": classes, "labels": labels, "logits": logits, "one_crop": logits})
        return tuple(runs)

    def difference(pair, weights):
        return {"map": compute_metrics(pair[0], weights)["map"] - compute_metrics(pair[1], weights)["map"]}

    truth = np.mean([difference(scored(20_000), np.ones((1, 20_000)))["map"][0] for _ in range(5)])
    held = 0
    for number in range(200):
        pair = scored(300)
        low, high = intervals(lambda weights, pair=pair: difference(pair, weights), 300, 300, 0.95, number)["map"]
        held += low <= truth <= high
    assert 180 <= held <= 198


@pytest.mark.parametrize("names", [("aabc", "abcd"), ("abcd", "abbb"), ("aabc", "aabc"), ("abca", "aabc")])
def test_an_image_that_is_scored_twice_is_refused_by_name(names):
    first, second = (result({"conv1/top1": np.ones(4, bool)}, list(letters)) for letters in names)
    second.backbone = "other"
    which = "net" if len(set(names[0])) < 4 else "other"
    with pytest.raises(UserError, match=f"of {which} on data has [23] rows for the image '[ab]'"):
        compare(first, second, resamples=10)


def test_two_runs_of_one_backbone_are_distinguished_by_their_folders(finished_probe, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished_probe, copy)
    assert main(["compare", str(finished_probe), str(copy), "--resamples=10"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.endswith(f"({finished_probe})") and second.endswith(f"({copy})")


def test_damaged_rows_are_one_sentence():
    good, bad = result({"conv1/top1": np.ones(4, bool)}), result({"conv1/top1": np.ones(4, bool)})
    bad.rows |= {"classes": np.array(["a"]), "labels": np.zeros((4, 2))}
    with pytest.raises(UserError, match="damaged"):
        compare(good, bad, resamples=10)
