"""`transfer linear-probe` as a user runs it: a run folder, resume, ranks, bad input."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from forked import check_on_ranks
from trained_runs import by_one_and_by_two, figures, killed_and_finished

from crosschannel.config.load import check_config, config_folder
from crosschannel.runs.result import load_result
from transfer.cli import PROGRAM, main
from transfer.feature_cache import _free_in_group
from transfer.protocols.linear_probe.task import LinearProbe


def test_a_run_folder_holds_what_the_docs_say(finished_probe, small, capsys):
    names = {p.name for p in finished_probe.iterdir()} - {".lock"}
    written = {"config.yaml", "images.json", "metrics.jsonl", "checkpoints"}
    assert names == written | {"backbone.json", "predictions.npz", "result.json", "heads.safetensors"}
    result = json.loads((finished_probe / "result.json").read_text())
    assert set(result) == {"protocol", "backbone", "data", "config", "seed", "n", "version", "metrics", "science"}
    assert result["protocol"] == "linear-probe" and result["n"] == 10
    rows = np.load(finished_probe / "predictions.npz")
    for metric in ("conv3/top1", "conv5/top1", "conv5/top5"):
        assert rows[metric].mean() == pytest.approx(result["metrics"][metric])
    assert (rows["conv5/top1"] == (rows["conv5/prediction"] == rows["labels"])).all()
    before = {p: p.stat().st_mtime_ns for p in finished_probe.rglob("*") if p.name != ".lock"}
    assert main([*small, f"--out={finished_probe}"]) == 0
    assert "finished" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in finished_probe.rglob("*") if p.name != ".lock"}


def test_its_config_alone_runs_it_again(finished_probe, tmp_path):
    command = ["linear-probe", f"--config={finished_probe / 'config.yaml'}", f"--out={tmp_path / 'again'}"]
    assert main(command) == 0
    assert figures(tmp_path / "again") == figures(finished_probe)


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_kill_9_and_the_same_command_end_where_the_uninterrupted_run_ends(small, tmp_path, cache):
    command = [*small, f"--cache={cache}", "--crop.train=random", "--crop.mirror=true"] if cache == "off" else small
    assert main([*command, f"--out={tmp_path / 'whole'}"]) == 0
    out = killed_and_finished(command, tmp_path / "run", "step 4/24", "step 12/24")
    assert figures(out) == figures(tmp_path / "whole")


def test_sigterm_saves_exits_75_and_the_same_command_goes_on(small, finished_probe, tmp_path, monkeypatch, capsys):
    original, calls = LinearProbe.step, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(LinearProbe, "step", step)
    out = tmp_path / "run"
    assert main([*small, f"--out={out}"]) == 75 and "same command again to resume" in capsys.readouterr().err
    assert main([*small, f"--out={out}"]) == 0 and "at step 6 of 24" in capsys.readouterr().err
    assert figures(out) == figures(finished_probe)


def test_a_signal_while_features_are_computed_exits_75(small, tmp_path, monkeypatch):
    from transfer.feature_cache import Extraction

    original = Extraction._batch_features

    def batch_features(self, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, images)

    monkeypatch.setattr(Extraction, "_batch_features", batch_features)
    assert main([*small, f"--out={tmp_path / 'run'}"]) == 75
    monkeypatch.undo()
    assert main([*small, f"--out={tmp_path / 'run'}"]) == 0


def test_a_run_killed_after_its_last_evaluation_still_ends_in_a_result(small, finished_probe, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_probe, out)
    for name in ("result.json", "predictions.npz", "backbone.json"):
        (out / name).unlink()
    assert main([*small, f"--out={out}"]) == 0
    assert figures(out) == figures(finished_probe)


def run_on_torchrun(arguments: list[str]) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "transfer.cli"]
    done = subprocess.run([sys.executable, *words, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def run_on_forks(arguments: list[str]) -> None:
    check_on_ranks(lambda: main(arguments))


@pytest.mark.parametrize(
    ("cache", "run"),
    [
        ("memory", run_on_forks),
        ("disk", run_on_forks),
        ("off", run_on_forks),
        pytest.param("memory", run_on_torchrun, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_find_what_one_process_finds(small, tmp_path, monkeypatch, cache, run):
    """Without BatchNorm, whose statistics are per rank."""
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    command = [*small, f"--cache={cache}", "--norm=none", "--optim.name=sgd", "--optim.lr=1e-4"]
    command += ["--train.precision=float32", "--backbone=random:alexnet,fc=0,norm=false,size=64,resize=72"]
    assert main([*command, f"--out={tmp_path / 'one'}"]) == 0
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "other"))
    run([*command, f"--out={tmp_path / 'two'}"])
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert one[0] == two[0] and one[1] == two[1]
    losses = [[row["train/loss"] for row in log if "train/loss" in row] for log in (one[2], two[2])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_ranks_find_the_neighbours_that_one_process_finds(photo_folder, tmp_path):
    command = ["knn", "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1", f"--data={photo_folder}"]
    command += ["--layer=conv1,conv5", "--precision=float32", "--workers=0", "--k=[1,7]", "--batch=6"]
    one, two = by_one_and_by_two(command, tmp_path)
    assert figures(one) == figures(two)


@pytest.mark.parametrize(
    "path", sorted((config_folder() / "transfer" / "linear-probe").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_packaged_config_is_valid(path):
    config = PROGRAM.parse("linear-probe", [f"--config={path}", "--data=photos", "--backbone=random:runs/a-0,seed=2"])
    check_config(config)
    assert config.out == f"runs/linear-probe-random-a-0-seed=2-photos-{path.stem}-0"


def test_the_published_recipes_follow_their_sources_to_the_letter():
    paper, theirs = (
        PROGRAM.parse("linear-probe", ["--config", name, "--data=x", "--backbone=x"])
        for name in ("paper", "deepcluster")
    )
    assert (paper.train.batch, paper.train.accumulate, paper.train.steps) == (256, 4, 140_000)
    assert (paper.crop.size, paper.crop.resize, paper.crop.kind, paper.crop.mirror) == (227, 256, "random", True)
    optim = paper.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (optim.bias_lr, optim.bias_decay, paper.zero, paper.norm) == (2.0, False, True, "channel")
    assert paper.schedule.milestones == [40_000, 80_000, 120_000] and paper.schedule.rates == [1e-3, 1e-4, 1e-5]
    assert (theirs.train.batch, theirs.train.epochs, theirs.ten_crops, theirs.norm) == (256, 90, True, "none")
    assert (theirs.optim.lr, theirs.optim.weight_decay, theirs.crop.size) == (0.01, 1e-4, 224)
    assert (paper.pooling, theirs.crop.kind, theirs.crop.resize) == ("windows", "random-in-centre", 256)
    assert (
        theirs.schedule.decay == pytest.approx(theirs.optim.lr * theirs.optim.weight_decay)
        and theirs.pooling == "windows"
    )


def test_disk_features_are_reused_and_never_stale(small, photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    shutil.copytree(photo_folder, data)

    def probe(*more) -> list[str]:
        """What is kept, after one more probe."""
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        assert main([*small, f"--data={data}", "--cache=disk", f"--out={out}", *more]) == 0
        return sorted(p.name for p in (tmp_path / "cache" / "features").iterdir())

    first = probe()
    assert len(first) == 2 and "GiB" in capsys.readouterr().err.replace("MiB", "GiB")  # train and val; the size is said
    assert probe() == first and "from" in capsys.readouterr().err
    assert len(probe("--pooling=bilinear")) == 4
    assert len(probe("--layer=conv3")) == 6
    assert len(probe("--backbone=random:alexnet,fc=0,size=64,resize=72,seed=2")) == 8
    assert len(probe("--train.precision=float32", "--crop.size=56")) == 10
    plain = "--backbone=random:alexnet,fc=0,size=64,resize=72,norm=false"  # has no statistics of images
    assert len(probe(plain)) == 12
    picture = next((data / "train" / "class0").iterdir())
    picture.write_bytes(next((data / "train" / "class1").iterdir()).read_bytes())  # the same name, another picture
    assert len(probe(plain)) == 13  # training features anew, validation features as they are


def test_disk_features_are_of_the_code_that_is_there_now(small, tmp_path, monkeypatch):
    """A factory's net whose forward pass is edited: the same weights, the same modules, other features."""
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = []
    for number, words in enumerate(("self.conv(x)", "self.conv(x) * 0")):
        (tmp_path / "edited.py").write_text(
            "import torch\nfrom torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 8, 9, 9)\n"
            f"        self.last = nn.Identity()\n    def forward(self, x): return self.last({words})\n"
            "def make():\n    torch.manual_seed(0)\n    return Net()\n"
        )
        sys.modules.pop("edited", None)
        importlib.invalidate_caches()
        flags = ["--backbone=edited:make,size=64,resize=72", "--layer=last", "--cache=disk", f"--out=run{number}"]
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        assert main([*small, *flags]) == 0
        found.append(load_result(f"run{number}").metrics["last/top1"])
    assert found[1] == 0.1 < found[0] and len(list((tmp_path / "cache" / "features").iterdir())) == 4  # chance


def test_what_a_control_group_can_still_give(tmp_path):
    assert _free_in_group(tmp_path) == 2**63  # none
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 750\n")  # photographs that were read
    assert _free_in_group(tmp_path) == 850
    (tmp_path / "memory.max").write_text("max\n")
    assert _free_in_group(tmp_path) == 2**63


def test_a_finished_run_does_not_answer_for_other_images(small, finished_probe, photo_folder, tmp_path, capsys):
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished_probe, out)
    shutil.copytree(photo_folder, other)
    assert main([*small, f"--data={other}", f"--out={out}"]) == 0  # the same images elsewhere
    next((other / "val" / "class0").iterdir()).unlink()
    assert main([*small, f"--data={other}", f"--out={out}"]) == 2
    assert "was started on other images" in capsys.readouterr().err
    (out / "images.json").unlink()  # as a run of an older version
    assert main([*small, f"--out={out}"]) == 0
    assert main([*small, f"--data={other}", f"--out={out}"]) == 2


def test_a_k_that_cannot_be_leaves_nothing_behind(photo_folder, tmp_path):
    command = ["knn", "--backbone=random:alexnet,fc=0,size=64,resize=72", f"--data={photo_folder}", "--layer=conv5"]
    assert main([*command, "--workers=0", "--k=[41]", f"--out={tmp_path / 'run'}"]) == 2
    assert main([*command, "--workers=0", "--k=[1]", f"--out={tmp_path / 'run'}"]) == 0


def test_broken_images_are_named_left_out_and_not_counted(small, photo_folder, tmp_path, capsys):
    for part, n in (("train", 10), ("val", 9)):
        data = tmp_path / part
        shutil.copytree(photo_folder, data)
        bad = next((data / part / "class0").iterdir())
        bad.write_bytes(b"no picture")
        for cache in ("memory", "off"):
            out = tmp_path / f"{part}-{cache}"
            assert main([*small, f"--data={data}", f"--cache={cache}", "--train.batch=10", f"--out={out}"]) == 0
            assert f"class0/{bad.name}: " in " ".join(capsys.readouterr().err.split())
            assert json.loads((out / "result.json").read_text())["n"] == n


def folder_of(path, photo_folder, train=("class0", "class1"), val=("class0", "class1")):
    for part, classes in (("train", train), ("val", val)):
        (path / part).mkdir(parents=True)
        for name in classes:
            shutil.copytree(photo_folder / part / name, path / part / name)
    return path


BAD = [
    ("unknown layer", "--layer conv9", "unknown layer 'conv9'; available: conv1, pool1"),
    ("no such backbone", "--backbone {tmp}/gone", "unknown source"),
    ("a backbone file that is none", "--backbone {tmp}/text.safetensors", "not a safetensors file"),
    ("a folder that is no run", "--backbone {tmp}/empty", "not a run folder"),
    ("no such data", "--data {tmp}/gone", "gone"),
    ("zero images", "--data {tmp}/empty", "no images"),
    ("an empty val", "--data {tmp}/noval", "has no images"),
    ("one class only", "--data {tmp}/one", "of one class only"),
    (
        "a val with a class that train lacks",
        "--data {tmp}/more",
        "has the class 'class2', which is not among the training images",
    ),
    ("images without a class", "--data {tmp}/flat", "KEY.json is not read"),
    ("pooling that a layer has not", "--layer pool1 --pooling windows", "not defined for layer 'pool1'"),
    ("a crop larger than its image", "--crop.size 90 --crop.resize 80", "crop.size (90)"),
    ("a rate of zero", "--rates [0.1,0]", "rates must be above 0"),
    ("a rate twice", "--rates [0.1,0.1]", "rates must differ"),
    ("all held out", "--held-out 1", "held_out"),
    ("no such pooling", "--pooling max", "pooling"),
    ("no such key", "--layers conv1", "unknown key 'layers'; did you mean layer?"),
    ("no such config", "--config turbo", "unknown config 'turbo'"),
    ("negative k", "knn --k [-1]", "k must be"),
    ("k above the images", "knn --k [41]", "number of training images (40)"),
    ("temperature 0", "knn --temperature [0]", "temperature"),
    ("compare of one run", "compare {run}", "two finished run folders"),
    ("compare with a seed below 0", "compare {run} {run} --seed -1", "seed must be at least 0"),
    ("a result that was cut off", "report {tmp}/cut --out {tmp}/o", "damaged"),
    ("compare with nothing", "compare {run} {tmp}/gone", "does not exist"),
    ("report of a folder that is no run", "report {tmp}/empty --out {tmp}/o", "it is not a run folder"),
    ("report of a damaged run", "report {tmp}/damaged --out {tmp}/o", "damaged"),
    ("report into a file", "report {run} --out {tmp}/text.safetensors", "is a file"),
]


@pytest.fixture
def places(tmp_path, photo_folder, finished_probe):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    folder_of(tmp_path / "one", photo_folder, ("class0",), ("class0",))
    folder_of(tmp_path / "more", photo_folder, val=("class0", "class2"))
    folder_of(tmp_path / "noval", photo_folder, val=())
    shutil.copytree(photo_folder / "train" / "class0", tmp_path / "flat")
    shutil.copytree(finished_probe, tmp_path / "damaged")
    (tmp_path / "damaged" / "predictions.npz").write_bytes(b"PK no zip")
    shutil.copytree(finished_probe, tmp_path / "cut")
    rows = tmp_path / "cut" / "predictions.npz"
    rows.write_bytes(rows.read_bytes()[:-100])
    return {"tmp": tmp_path, "run": finished_probe}


@pytest.mark.parametrize(("flags", "message"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(places, small, photo_folder, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(places["tmp"])
    words = flags.format(**places).split()
    if words[0] == "knn":
        words = ["knn", small[1], f"--data={photo_folder}", "--layer=conv5", "--workers=0", "--out=o", *words[1:]]
    elif words[0].startswith("--"):
        words = [*small, "--out=o", *words]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("transfer: ") and message in error and "Traceback" not in error


def test_help_lists_the_keys_and_print_config_shows_the_whole(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    assert "linear-probe" in capsys.readouterr().out
    assert main(["linear-probe", "--help"]) == 0
    assert "classifiers on the layers" in (text := capsys.readouterr().out) and "--pooling" in text
    assert main(["linear-probe", "--config=paper", "--backbone=a", "--data=b", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["crop"]["size"] == 227
