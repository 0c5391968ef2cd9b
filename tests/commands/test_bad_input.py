"""Bad input: one sentence on stderr, exit code 2, nothing lost."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from crosschannel.cli import main
from crosschannel.runs.folder import read_metrics


@pytest.fixture
def places(tmp_path, photo_folder, finished_run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    (tmp_path / "bad.yaml").write_text("optim:\n  lrr: 1\n")
    (tmp_path / "broken.yaml").write_text("optim: [1\n")
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "ok.png")
    return {"tmp": tmp_path, "photos": photo_folder, "run": finished_run}


CASES = [
    ("no command", "paint", "unknown command 'paint'"),
    ("no data named", "pretrain --config alexnet", "the following keys are required: data"),
    ("missing data", "pretrain --data {tmp}/gone --out {tmp}/o", "gone"),
    ("empty folder", "pretrain --data {tmp}/empty --out {tmp}/o", "no images"),
    ("unknown flag", "pretrain --data {photos} --speed 9", "unknown key 'speed'"),
    ("unknown key", "pretrain --config {tmp}/bad.yaml", "optim.lrr"),
    ("broken yaml", "pretrain --config {tmp}/broken.yaml", "config"),
    ("no such config", "pretrain --config turbo", "unknown config 'turbo'"),
    ("value of the wrong type", "pretrain --optim.lr fast", "optim.lr"),
    ("value not among the choices", "pretrain --optim.name lion", "optim.name"),
    ("negative rate", "pretrain --data {photos} --optim.lr=-1", "optim.lr must be above 0"),
    ("batch of zero", "pretrain --data {photos} --train.batch 0", "train.batch"),
    ("batch larger than the data", "pretrain --data {photos} --train.batch 99999999 --out {tmp}/o", "training images"),
    ("crop larger than its image", "pretrain --data {photos} --crop.size 300 --crop.resize 256", "crop.size"),
    (
        "an affine norm for a net without",
        "pretrain --data {photos} --model.affine true --out {tmp}/o",
        "model.affine applies to",
    ),
    ("lambda of two", "pretrain --data {photos} --objective.lam 2 --out {tmp}/o", "objective.lam"),
    ("unknown net", "pretrain --data {photos} --model.name lexnet --out {tmp}/o", "unknown net 'lexnet'"),
    ("unknown device", "pretrain --data {photos} --device abacus --out {tmp}/o", "abacus"),
    (
        "packaged prior",
        "pretrain --data {photos} --objective.lam 0 --out {tmp}/o",
        "the packaged prior imagenet-256 is",
    ),
    ("missing prior", "pretrain --data {photos} --objective.prior gone.npz --out {tmp}/o", "no prior"),
    ("missing start", "pretrain --data {photos} --init-from {tmp}/gone --out {tmp}/o", "gone"),
    ("foreign folder", "pretrain --data {photos} --out {tmp}/foreign", "not empty"),
    (
        "rates without milestones",
        "pretrain --data {photos} --schedule.kind multistep --schedule.rates [1.0]",
        "milestones",
    ),
    ("temperature 0", "colorize {tmp}/ok.png --model {run} --out {tmp}/o --temperature 0", "above 0"),
    ("temperature -1", "colorize {tmp}/ok.png --model {run} --out {tmp}/o --temperature -1", "above 0"),
    ("no pictures", "colorize --model {run} --out {tmp}/o", "no pictures; pass files or folders"),
    ("missing picture", "colorize {tmp}/gone.png --model {run} --out {tmp}/o", "gone.png"),
    ("empty picture folder", "colorize {tmp}/empty --model {run} --out {tmp}/o", "no pictures"),
    ("not a picture", "colorize {tmp}/text.jpg --model {run} --out {tmp}/o", "text.jpg"),
    ("over its own input", "colorize {tmp}/ok.png --model {run} --out {tmp}", "overwrite"),
    ("missing model", "colorize {tmp}/ok.png --model {tmp}/gone --out {tmp}/o", "unknown source"),
    ("no model in the folder", "colorize {tmp}/ok.png --model {tmp}/foreign --out {tmp}/o", "not a run folder"),
    ("a backbone for a model", "colorize {tmp}/ok.png --model {run}/backbone.safetensors --out {tmp}/o", "head"),
    ("model without a head", "colorize {tmp}/ok.png --model random:alexnet --out {tmp}/o", "has no head"),
    ("prior of nothing", "prior --data {tmp}/empty --out {tmp}/p.npz", "no images"),
    ("prior into no folder", "prior --data {photos} --out {tmp}/x/y/p.npz", "does not exist"),
    ("shards into a full folder", "shard {photos} {tmp}/foreign", "not an empty folder"),
    ("shards of nothing", "shard {tmp}/gone {tmp}/o", "no such folder"),
    ("shards below a file", "shard {photos} {tmp}/ok.png/o", "ok.png"),
    ("more shards of validation than there is", "shard {photos}/train {tmp}/o --val-share 5", "val_share"),
    (
        "a pair for one number",
        "pretrain --data {photos} --crop.area 0.2",
        "crop.area must be two numbers such as 0.5,1.0",
    ),
    ("a group for a key", "pretrain --data {photos} --train 3", "train is a group of keys"),
    ("negative seed", "pretrain --data {photos} --seed=-1 --out {tmp}/o", "seed"),
    ("prior over a folder", "prior --data {photos} --out {tmp}/empty", "it is a folder"),
    ("prior of minus one image", "prior --data {photos} --out {tmp}/p.npz --limit=-1", "limit"),
    ("shards without a target", "shard {photos}", "out"),
]


@pytest.mark.parametrize(("command", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input_is_one_sentence_and_exit_code_2(places, capsys, monkeypatch, command, message):
    monkeypatch.chdir(places["tmp"])
    assert main(command.format(**places).split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("crosschannel: ") and message in error
    assert "Traceback" not in error
    assert (places["tmp"] / "foreign" / "thesis.tex").read_text() == "years of work"
    assert len(list((places["tmp"] / "foreign").iterdir())) == 1


def test_debug_shows_the_traceback(places, capsys):
    assert main(["pretrain", "--data", f"{places['tmp']}/gone", "--debug", "--out", f"{places['tmp']}/o"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_usage_help_and_version(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    assert "pretrain" in capsys.readouterr().out
    assert main(["pretrain", "--help"]) == 0
    text = capsys.readouterr().out
    assert "run folder; default runs/CONFIG-DATA-SEED" in text and "--optim.lr" in text
    assert main(["--version"]) == 0


def test_print_config_shows_the_whole(capsys):
    import yaml

    assert main(["pretrain", "--config", "quickstart", "--optim.lr", "0.25", "--print_config"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["optim"]["lr"] == 0.25 and tree["crop"]["size"] == 96 and tree["runtime"]["keep"] == 2


def corrupt(folder, photo_folder, share_of):
    """A copy of real photographs with broken, empty, mislabelled, huge and text files among them."""
    shutil.copytree(photo_folder, folder)
    train = folder / "train" / "class0"
    picture = next(train.iterdir())
    Image.open(picture).save(train / "png-inside.jpg", "PNG")  # mislabelled: still a picture
    Image.new("L", (9000, 6000), 99).save(train / "huge.png")
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"just text",
        "cut.jpg": picture.read_bytes()[:900],
        "noise.png": b"\x89PNG" * 9,
    }
    for name, data in list(bad.items())[:share_of]:
        (train / name).write_bytes(data)
    (train / "readme.txt").write_text("not looked at")
    return [f"class0/{name}" for name in list(bad)[:share_of]]


def test_a_folder_with_broken_files_trains_and_names_what_it_skipped(small, photo_folder, tmp_path, capsys):
    bad = corrupt(tmp_path / "data", photo_folder, 4)
    options = [f"--data={tmp_path / 'data'}", "--train.steps=12", f"--out={tmp_path / 'run'}"]
    assert main(["pretrain", *small[2:], *options]) == 0
    log = capsys.readouterr().err
    for name in bad:
        assert f"broken image {name}: " in log
    assert "huge.png" not in log and "png-inside" not in log and "readme" not in log
    count = read_metrics(tmp_path / "run")[-2]["broken"]
    assert count >= 4 and log.count("broken image ") == 4 and f"{count} of " in log


def test_too_many_broken_files_stop_with_one_sentence(small, photo_folder, tmp_path, capsys):
    corrupt(tmp_path / "data", photo_folder, 3)
    (tmp_path / "data" / "train" / "class0" / "huge.png").unlink()  # which takes long to read
    options = [f"--data={tmp_path / 'data'}", "--train.steps=400", "--train.batch=40", f"--out={tmp_path / 'run'}"]
    options += ["--crop.size=32", "--crop.resize=32", "--runtime.eval_every=400", "--runtime.checkpoint_every=400"]
    assert main(["pretrain", *small[2:], *options]) == 2
    assert "exceeds the limit of 0.01" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_of_nothing_but_broken_files_stops_at_once(small, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for i in range(30):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(b"nothing")
    assert main(["pretrain", *small[2:], f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'run'}"]) == 2
    assert "no readable image" in capsys.readouterr().err.splitlines()[-1]


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(finished_run, tmp_path, capsys):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(buffer, "PNG")
    (tmp_path / "in").mkdir()
    for name, data in {"a.png": buffer.getvalue(), "b.jpg": b"x", "c.png": buffer.getvalue()}.items():
        (tmp_path / "in" / name).write_bytes(data)
    out = tmp_path / "out"
    assert main(["colorize", str(tmp_path / "in"), "--model", str(finished_run), "--out", str(out)]) == 2
    assert sorted(p.name for p in out.glob("[!.]*")) == ["a.png", "c.png"]
    assert "1 of 3 pictures could not be coloured" in capsys.readouterr().err
