"""Run folders that an earlier version wrote (in ``old``: a probe that ended, one that was killed) are still good."""

import shutil
from pathlib import Path

import pytest

from crosschannel.runs.folder import read_metrics
from crosschannel.runs.result import Ragged, load_result, load_rows, save_rows
from transfer.cli import PROGRAM, main
from transfer.groups import group

OLD = Path(__file__).parent / "old"
FLAGS = [
    "linear-probe", "--config=quickstart", "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1", "--layer=conv5",
    "--pooling=global", "--crop.train=random-in-centre", "--cache=off", "--norm=none", "--train.batch=20",
    "--train.steps=24", "--runtime.workers=0", "--runtime.checkpoint_every=4", "--runtime.log_every=4",
    "--runtime.keep=1", "--runtime.tensorboard=false", "--device=cpu", "--train.precision=float32",
]  # fmt: skip


def test_a_killed_run_goes_on_to_where_it_would_have_ended(all_crops, photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(OLD / "stopped", run)
    assert main([*FLAGS, f"--data={photo_folder}", f"--out={run}"]) == 0
    assert "resuming" in capsys.readouterr().err
    losses = [
        [row["train/loss"] for row in read_metrics(path) if "train/loss" in row] for path in (run, OLD / "finished")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 6
    assert load_result(run).science["crop.kind"] == "random-in-centre"


def test_another_setting_is_refused_by_the_name_that_the_key_has_now(photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(OLD / "stopped", run)
    flags = [*FLAGS, "--crop.kind=random", f"--data={photo_folder}", f"--out={run}"]
    assert main(flags) == 2
    assert "crop.kind was 'random-in-centre' and is now 'random'" in capsys.readouterr().err


def test_a_finished_run_says_so_and_answers_for_its_images(photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(OLD / "finished", run)
    assert main([*FLAGS, f"--data={photo_folder}", f"--out={run}"]) == 0
    assert "is finished" in capsys.readouterr().err
    result = load_result(run)
    assert result.science is None and result.rows["conv5/top1"].mean() == pytest.approx(result.metrics["conv5/top1"])


def test_its_config_runs_it_again(photo_folder):
    config = PROGRAM.parse("linear-probe", [f"--config={OLD / 'finished' / 'config.yaml'}", f"--data={photo_folder}"])
    assert config.crop.kind == "random-in-centre" and config.train.steps == 24


def test_old_and_new_runs_are_compared_and_reported_together(photo_folder, tmp_path, capsys):
    new = tmp_path / "new"
    assert main([*FLAGS, f"--data={photo_folder}", "--seed=1", f"--out={new}"]) == 0
    capsys.readouterr()
    assert main(["compare", str(OLD / "finished"), str(new), "--resamples=100"]) == 0
    assert "conv5/top1" in capsys.readouterr().out
    assert main(["report", str(OLD / "finished"), str(new), f"--out={tmp_path / 'page'}"]) == 0
    assert len(group([(path, load_result(path)) for path in (OLD / "finished", new)])) == 2  # other data, by name


def test_ragged_rows_are_kept_and_chosen_by_image(tmp_path):
    import numpy as np

    counts = np.array([2, 0, 3])
    rows = {"names": np.array(["a", "b", "c"]), "boxes": Ragged(np.arange(20.0).reshape(5, 4), counts)}
    save_rows(tmp_path, rows)
    found = load_rows(tmp_path, 3)
    assert len(found["boxes"]) == 3 and np.array_equal(found["boxes"].values, rows["boxes"].values)
    chosen = found["boxes"][np.array([2, 0, 2])]
    assert chosen.counts.tolist() == [3, 2, 3] and chosen.values[:, 0].tolist() == [8, 12, 16, 0, 4, 8, 12, 16]
