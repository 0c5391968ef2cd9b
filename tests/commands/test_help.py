"""What a newcomer reads: help, the list of configs, what one would type next, and how things are spelt."""

import re
import shlex
import subprocess
import sys
from pkgutil import resolve_name

import pytest

from crosschannel.cli import PROGRAM as CROSSCHANNEL
from crosschannel.cli import main
from crosschannel.config.keys import keys_of
from slurm.cli import PROGRAM as SLURM
from transfer.cli import PROGRAM as TRANSFER

COMMANDS = [(program, name) for program in (CROSSCHANNEL, TRANSFER, SLURM) for name in program.commands]


def helped(program, name, capsys, *more) -> str:
    package = "slurm" if program is SLURM else program.name
    assert resolve_name(f"{package}.cli:main")([*name.split(), *more, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("program", "name"), COMMANDS, ids=lambda part: getattr(part, "name", part))
def test_help_names_every_key_in_words(program, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = helped(program, name, capsys)
    assert max(map(len, text.splitlines())) <= 80 or "usage" in max(text.splitlines(), key=len)
    assert not re.search(r"Optional\[|Literal\[|typing|NoneType|Annotated|taken as by every", text)
    command = program.commands[name]
    for key in keys_of(command.config_class()):
        typed = key.name.upper() if key.name in command.positional else f"--{key.name}"
        assert key.is_hidden or (typed in text and key.description), key.name


def test_help_says_defaults_ranges_and_what_is_needed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(helped(CROSSCHANNEL, "pretrain", capsys).split())
    assert "--data DATA images: a folder, tar shards, builtin:sample, torchvision:imagenette or package." in text
    assert "(between 0 and 1; default 0.05)" in text and "--optim.betas [X ...]" in text
    assert "--model.norm [true|false]" in text and "--crop.kind random|random-in-centre" in text
    assert text.index("Model:") < text.index("Optimiser:")  # a command's own groups come first
    assert "--objective.locations" in helped(CROSSCHANNEL, "pretrain", capsys, "--task", "larsson")
    assert "--objective.locations" in helped(CROSSCHANNEL, "pretrain", capsys, "--config", "larsson")
    probe = " ".join(helped(TRANSFER, "linear-probe", capsys).split())
    config = TRANSFER.commands["linear-probe"].config_class()(backbone="b", data="d")
    assert f"above 0; default {config.optim.lr:g}" in probe  # the command's own, not its group's
    assert "default paper" not in probe and "--train.compile auto|true|false" in probe
    assert "default 90" in " ".join(helped(TRANSFER, "linear-probe", capsys, "--config", "deepcluster").split())
    assert helped(SLURM, "resume", capsys).startswith("usage: crosschannel-slurm resume RUN [--profile NAME|FILE]")
    assert "-f" in helped(SLURM, "logs", capsys)


def test_help_and_configs_list_the_packaged_configs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = helped(CROSSCHANNEL, "pretrain", capsys)
    assert re.search(r"^  imagenette +An AlexNet trunk that learns well", text, re.M)
    profiles = helped(SLURM, "submit", capsys)
    assert re.search(r"^profiles \(--profile NAME", profiles, re.M) and "-- COMMAND …" in profiles
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    for folder in (CROSSCHANNEL.folder("pretrain"), TRANSFER.folder("segment")):
        for path in folder.glob("*.yaml"):
            assert re.search(rf"^  {re.escape(path.stem)} +\S", listed, re.M)
    assert "transfer linear-probe --config" in listed


def test_help_without_docstrings_still_helps():
    words = [sys.executable, "-OO", "-m", "crosschannel.cli", "pretrain", "--help"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "--optim.lr X" in found and "learning rate" in found


def test_lists_are_spelt_one_way():
    config = CROSSCHANNEL.parse("pretrain", ["--data=d", "--crop.area", "0.2,1", "--optim.betas=0.8,0.9"])
    assert (config.crop.area, config.optim.betas) == ((0.2, 1.0), (0.8, 0.9))
    assert TRANSFER.parse("knn", ["--backbone=b", "--data=d", "--k", "5,20"]).k == [5, 20]
    assert CROSSCHANNEL.parse("evaluate", ["--data=d", "--methods", "a", "b"]).methods == ["a", "b"]
    assert CROSSCHANNEL.parse("evaluate", ["--data=d", "--methods=a", "--methods", "b"]).methods == ["a", "b"]
    exported = CROSSCHANNEL.parse("export", ["r", "--out=o", "--probes", "p", "--probes=q", "--layers", "conv*,fc6"])
    assert exported.probes == ["p", "q"] and exported.layer == "conv*,fc6"
    boxes = TRANSFER.parse("detect", ["--backbone=b", "--data=d", "--proposals", "a.npz", "b.npz"])
    assert boxes.proposals == ["a.npz", "b.npz"]
    assert TRANSFER.parse("detect", ["--backbone=b", "--data=d", "--proposals", "a.npz"]).proposals == "a.npz"
    report = TRANSFER.parse("report", ["--out=o", "--label", "a=b", "r", "s"])
    assert report.runs == ["r", "s"] and report.label == ["a=b"]


def test_run_folders_are_named_by_layer_and_images():
    def out(*words):
        return TRANSFER.parse("knn", ["--backbone=runs/a-0", *words]).out

    assert out("--data=/data/imagenet/") == "runs/knn-a-0-imagenet-default-0"
    assert out("--data=torchvision:imagenette", "--layer=conv*,fc6") == "runs/knn-a-0-conv-fc6-imagenette-default-0"
    assert out("--data=x/y") != out("--data=x/z")
    assert CROSSCHANNEL.parse("evaluate", ["--data=x/photos"]).out == "runs/evaluate-photos-0"


def test_pretraining_names_its_folder_by_images_unless_its_config_says_them():
    def out(*words):
        return CROSSCHANNEL.parse("pretrain", list(words)).out

    assert out("--config=alexnet", "--data=/data/imagenet/", "--seed=3") == "runs/alexnet-imagenet-3"
    assert out("--config=imagenette-full", "--data=torchvision:imagenette") == "runs/imagenette-full-0"
    assert out("--config=quickstart") == "runs/quickstart-0"
    assert out("--config=quickstart", "--data=photos") == "runs/quickstart-photos-0"
    assert out("--data=.") == "runs/pretrain-0"


PARSERS = {"crosschannel": CROSSCHANNEL, "transfer": TRANSFER}


def following(said: str) -> list[list[str]]:
    """The commands after the last ``next:``."""
    return [shlex.split(line, comments=True) for line in said.rpartition("next:\n")[2].splitlines() if line.strip()]


def test_what_comes_next_can_be_typed(finished_run, tmp_path, monkeypatch, capsys, photo_folder):
    """Every command that is suggested is one that parses; those that need nothing more are run."""
    from transfer.cli import main as transfer_main

    monkeypatch.chdir(tmp_path)
    sizes = ["--size=32", "--workers=0"]
    done = [
        (main, ["colorize", f"{photo_folder}/val/class0", f"--model={finished_run}", "--out=coloured"]),
        (main, ["export", str(finished_run), "--out=e/backbone.safetensors"]),
        (
            main,
            ["evaluate", f"--methods=a={finished_run}", "--methods=grey", f"--data={photo_folder}", *sizes, "--out=ev"],
        ),
        (transfer_main, ["knn", f"--backbone={finished_run}", f"--data={photo_folder}", "--workers=0", "--out=knn"]),
        (main, ["prior", f"--data={photo_folder}", "--out=prior.npz", "--size=32"]),
        (main, ["zoo"]),
        (main, ["configs"]),
    ]
    for run, words in done:
        assert run(words) == 0
        commands = following(capsys.readouterr().err)
        assert 1 <= len(commands) <= 2, words
        for program, name, *flags in commands:
            if "push" not in name:
                assert PARSERS[program].commands[name]
                if not {"--print_config", "--help"} & set(flags):
                    PARSERS[program].parse(name, flags)
        if words[0] == "knn":
            for _, *flags in commands:  # its twin by the same recipe, and a page
                assert transfer_main(flags) == 0
                twin = following(capsys.readouterr().err)
                if flags[0] == "knn":  # and both side by side
                    assert [words[1] for words in twin] == ["compare", "report"]
                    assert all(transfer_main(words[1:]) == 0 for words in twin)


def test_a_pretraining_says_what_it_has_written_and_what_it_means(photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--config=quickstart", f"--data={photo_folder}", "--train.steps=1", "--train.batch=8",
             "--runtime.workers=0", "--runtime.tensorboard=false", "--out=runs/a"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "weights: runs/a/backbone.safetensors, runs/a/colorizer.safetensors" in said
    pattern = r"held-out images: [\d.]+ × the KL divergence of the best constant .*: no better than a constant"
    assert re.search(pattern, said)
    colour, probe = following(said)
    assert colour == ["crosschannel", "colorize", "photo.jpg", "--model", "runs/a"]
    assert probe[:2] == ["transfer", "linear-probe"] and probe[-1] == str(photo_folder)


def test_a_primary_metric_is_read_the_right_way_round():
    from crosschannel.pretext.task import PrimaryMetric

    assert PrimaryMetric.ratio("kl_share", "best constant").describe(1.11).endswith("no better than a constant")
    assert PrimaryMetric.ratio("kl_share", "best constant", "KL").describe(0.86).startswith("0.86 × the KL of the best")
    assert PrimaryMetric("top1", "of the turns", 0.25).describe(0.9) == "0.9 of the turns"
