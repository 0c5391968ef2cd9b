"""`crosschannel evaluate` as a user runs it."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from forked import Forked, check_on_ranks
from PIL import Image

from crosschannel.cli import main
from crosschannel.evaluation.config import Method, parse_method
from crosschannel.runs.result import load_result
from transfer.cli import main as transfer_main

SMALL = [
    "--model.fc=0", "--crop.size=48", "--crop.resize=56", "--train.batch=8", "--train.steps=4", "--runtime.workers=0",
    "--runtime.tensorboard=false", "--device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def nets(tmp_path_factory, photo_folder):
    """A net of classes, one of regression, and a classifier."""
    root = tmp_path_factory.mktemp("nets")
    for name, flags in {
        "full": [], "l2": ["--objective.kind=l2"], "judge": ["--task=labels", "--objective.input=rgb"],
    }.items():  # fmt: skip
        assert main(["pretrain", f"--data={photo_folder}", f"--out={root / name}", *SMALL, *flags]) == 0
    return root


def command(photo_folder, out, *flags):
    return ["evaluate", f"--data={photo_folder}", "--size=64", "--workers=0", "--batch=4", "--device=cpu",
            "--resamples=50", f"--out={out}", *flags]  # fmt: skip


def judged(nets) -> list[str]:
    full = nets / "full"
    methods = [str(full), f"cool={full},temperature=1", f"l2={nets / 'l2'}", "grey", "random", "truth"]
    return [f"--classifier={nets / 'judge'}", "--methods", *methods]


@pytest.fixture(scope="module")
def run(nets, photo_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "run"
    assert main([*command(photo_folder, out), *judged(nets)]) == 0
    return out


def test_every_method_has_its_figures_rows_and_place_on_the_page(run):
    result = load_result(run)
    assert result.n == 10 and result.protocol == "evaluate"  # all of val/, none held out
    for method in ("full", "cool", "l2", "grey", "random", "truth"):
        for name in ("auc_raw", "auc_rebalanced", "psnr", "colourfulness", "top1"):
            assert np.isfinite(result.metrics[f"{method}/{name}"]), (method, name)
    assert result.metrics["truth/auc_raw"] == result.metrics["truth/auc_rebalanced"] == 1
    assert result.metrics["grey/colourfulness"] < 0.5 < result.metrics["random/colourfulness"]
    assert result.metrics["full/parameters_mb"] > 1 and result.metrics["full/runtime_ms"] > 0
    assert "grey/parameters_mb" not in result.metrics
    page = (run / "report.md").read_text()
    for words in (
        "Measured",
        "Published",
        "| full |",
        "| *Larsson et al. 2016* |",
        "the colours of the evaluated images",
    ):
        assert words in page
    for name in ("curves", "gallery", "temperatures"):
        assert Image.open(run / f"{name}.png").size[0] > 300
    assert (run / "report.html").stat().st_size > 50_000


def test_a_finished_run_says_so(run, nets, photo_folder, capsys):
    assert main([*command(photo_folder, run), *judged(nets)]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().err


def test_methods_are_compared_pair_by_pair(run, capsys):
    assert transfer_main(["compare", f"{run}:full", f"{run}:grey", "--resamples=200"]) == 0
    out = capsys.readouterr().out
    assert "auc_raw" in out and "auc_rebalanced" in out and "psnr" in out and "runtime" not in out
    assert transfer_main(["compare", f"{run}:full", f"{run}:nobody"]) == 2
    assert "has no method 'nobody'" in capsys.readouterr().err
    assert transfer_main(["compare", str(run), str(run), "--resamples=20"]) == 0  # methods of the same names
    assert "truth/auc_raw" in capsys.readouterr().out


def test_runs_are_reported_a_method_a_row(run, tmp_path):
    assert transfer_main(["report", str(run), f"--out={tmp_path / 'page'}"]) == 0
    page = (tmp_path / "page" / "report.md").read_text()
    assert "Colorization of" in page and "| full |" in page and "| truth |" in page and "Rebalanced AuC, %" in page


def test_figures_of_other_sizes_stand_in_tables_of_their_own(photo_folder, tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, size in zip(runs, (32, 40), strict=True):
        assert main([*command(photo_folder, run), "--methods", "grey", f"--size={size}"]) == 0
    assert transfer_main(["report", *map(str, runs), f"--out={tmp_path / 'page'}"]) == 0
    parts = (tmp_path / "page" / "report.md").read_text().split("**Colorization quality (")
    assert ["of 32 px" in parts[1], "| grey (a) |" in parts[1], "| grey (b) |" in parts[1]] == [True, True, False]
    assert ["of 40 px" in parts[2], "| grey (b) |" in parts[2], "| grey (a) |" in parts[2]] == [True, True, False]


def test_a_warmer_method_is_the_same_net(run):
    """The costs are those of the net; temperature 1 is the mean of the distribution, which is closer to grey."""
    metrics = load_result(run).metrics
    assert metrics["cool/parameters_mb"] == metrics["full/parameters_mb"]
    assert metrics["cool/auc_raw"] != metrics["full/auc_raw"]


def test_an_evaluation_that_is_killed_goes_on_to_the_same_rows(photo_folder, tmp_path, monkeypatch):
    from crosschannel.evaluation import evaluate

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--methods", "grey", "random"]
    monkeypatch.setattr(evaluate, "_PART_SIZE", 3)
    assert main([*command(photo_folder, whole), *flags]) == 0
    write = evaluate._write_part

    def slow(*arguments):
        write(*arguments)
        time.sleep(1)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_write_part", slow)
        with Forked(lambda: main([*command(photo_folder, killed), *flags])) as process:
            while not list(killed.glob("parts/*.json")):
                assert process.poll() is None
                time.sleep(0.05)
    first = next(iter(sorted(killed.glob("parts/*.npz"))))
    before = first.stat().st_mtime_ns
    assert not (killed / "result.json").exists()
    assert main([*command(photo_folder, killed), *flags]) == 0
    assert first.stat().st_mtime_ns == before  # not scored again
    one, two = load_result(whole), load_result(killed)
    assert one.metrics == two.metrics
    assert all(np.array_equal(one.rows[name], two.rows[name]) for name in one.rows)


def test_a_signal_is_heard_between_batches(photo_folder, tmp_path, monkeypatch, capsys):
    import os

    from crosschannel.evaluation.evaluator import Evaluator

    original = Evaluator.score

    def told(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Evaluator, "score", told)
    assert main([*command(photo_folder, tmp_path / "run"), "--methods", "grey"]) == 75
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_two_ranks_find_what_one_finds(photo_folder, tmp_path):
    flags = ["--methods", "grey", "random"]
    assert main([*command(photo_folder, tmp_path / "one"), *flags]) == 0
    check_on_ranks(lambda: main([*command(photo_folder, tmp_path / "two"), *flags]))
    one, two = load_result(tmp_path / "one"), load_result(tmp_path / "two")
    assert one.rows["names"].tolist() == two.rows["names"].tolist()
    assert one.metrics == pytest.approx(two.metrics)


def test_a_broken_image_is_named_and_left_out(photo_folder, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(photo_folder, folder)
    (folder / "val" / "class0" / "text.jpg").write_text("no picture")
    assert main([*command(folder, tmp_path / "run"), "--methods", "grey", "random"]) == 0
    assert "broken image class0/text.jpg: not an image" in capsys.readouterr().err
    assert load_result(tmp_path / "run").n == 10


def test_random_colours_come_from_another_picture_or_another_folder(photo_folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (80, 80), (200, 60, 30)).save(flat / "red.png")
    flags = [f"--random_from={flat}", "--methods", "random", "truth"]
    assert main([*command(photo_folder, tmp_path / "run"), *flags]) == 0
    rows = load_result(tmp_path / "run").rows
    assert not np.array_equal(rows["random/auc"], rows["truth/auc"])
    again = [*command(photo_folder, tmp_path / "own"), "--methods", "random", "--seed=1"]
    assert main(again) == 0
    assert load_result(tmp_path / "own").metrics["random/auc_raw"] < 0.999  # never its own donor


def test_bad_input_is_one_sentence(nets, photo_folder, tmp_path, capsys):
    grey = tmp_path / "grey"
    grey.mkdir()
    for i in range(3):
        Image.linear_gradient("L").rotate(90 * i).save(grey / f"{i}.png")
    other = tmp_path / "other"
    for name in ("x", "y", "z"):
        (other / name).mkdir(parents=True)
        Image.effect_noise((80, 80), 50).save(other / name / "1.png")
    full, out, judge = str(nets / "full"), tmp_path / "out", f"--classifier={nets / 'judge'}"
    for data, flags, words in (
        (grey, ["--methods", "grey"], "are all grey; use colour images"),
        (photo_folder, ["--methods", "random:alexnet"], "the method alexnet: 'random:alexnet' has no"),
        (photo_folder, ["--methods", str(nets / "judge")], "task labels, which does not predict colours"),
        (photo_folder, ["--methods", full, full], "names of methods must be unique"),
        (photo_folder, ["--methods", f"{full},temperature=0"], "needs a temperature above 0"),
        (photo_folder, ["--methods", f"{nets / 'l2'},temperature=0.4"], "the net does not support a temperature"),
        (other, ["--methods", "grey", judge], "has 10 (the first is class0), --data has 3"),
        (grey, ["--methods", "grey", judge], "requires images in class folders"),
        (photo_folder, ["--methods", "grey", f"--classifier={full}"], "no classifier: it was trained on the task"),
        (photo_folder, ["--methods", "grey", "--lpips=timm:resnet18"], "lpips must be torchvision:alexnet"),
        (photo_folder, ["--methods", "grey", "--prior=imagenet-256"], "too few for a lam of 0"),
        (tmp_path / "nowhere", ["--methods", "grey"], "no data at"),
    ):  # fmt: skip
        assert main([*command(data, out), *flags]) == 2, words
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in said, said


def test_how_methods_are_written():
    assert parse_method("grey") == Method("grey", "grey") and parse_method("grey").is_baseline
    assert parse_method("runs/full-0") == Method("full-0", "runs/full-0")
    assert parse_method("full=runs/a,temperature=0.5") == Method("full", "runs/a", 0.5)
    assert parse_method("zoo:eccv16") == Method("eccv16", "zoo:eccv16")
    assert parse_method("x=net.pth,input=grey,temperature=1") == Method("x", "net.pth,input=grey", 1.0)
    assert parse_method("x=net.pth,temperature=1,input=grey") == Method("x", "net.pth,input=grey", 1.0)


def test_a_prior_of_many_images_rebalances_too(photo_folder, tmp_path):
    prior = tmp_path / "prior.npz"
    assert main(["prior", f"--data={photo_folder}", f"--out={prior}", "--size=64"]) == 0
    assert main([*command(photo_folder, tmp_path / "run"), f"--prior={prior}", "--methods", "grey", "truth"]) == 0
    result = load_result(tmp_path / "run")
    assert 0.2 < result.metrics["grey/auc_rebalanced"] < 1 and result.metrics["truth/auc_rebalanced"] == 1
    assert result.metrics["grey/auc_rebalanced"] != result.metrics["grey/auc_raw"]
    assert str(prior) in (tmp_path / "run" / "report.md").read_text()


def test_classifiers_of_timm_torchvision_and_our_own(nets, tmp_path):
    from crosschannel.hub import load_classifier

    own = load_classifier(str(nets / "judge"))
    assert own.classes == tuple(f"class{i}" for i in range(10)) and own.outputs == 10
    rgb = torch.rand(2, 3, 64, 64)
    assert own(rgb).shape == (2, 10)
    imagenet = load_classifier("timm:resnet18,weights=none")
    assert imagenet.outputs == 1000 and imagenet.classes[0] == "n01440764" and len(set(imagenet.classes)) == 1000
    assert load_classifier("torchvision:squeezenet1_1,weights=none")(rgb).shape == (2, 1000)


def test_the_page_states_what_was_run(run):
    assert json.loads((run / "result.json").read_text())["config"]["methods"][3:] == ["grey", "random", "truth"]
    assert "Config of this run" in (run / "report.md").read_text()
