"""What a command did not write stays, whatever fails; what fails leaves nothing behind."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from PIL import Image
from safetensors.torch import load_file, save_file
from tree import snapshot

from crosschannel.cli import main
from crosschannel.commands import shard as shard_command
from crosschannel.files import LOCK, RECORDS, FolderLock
from crosschannel.hub import save_backbone
from crosschannel.models import AlexNet, InputSpec, NetSpec
from crosschannel.models.backbone import Provenance
from crosschannel.training import loop


@pytest.fixture
def places(tmp_path, photo_folder, finished_run, narrow_net):
    """A folder of a user's own things, some of them called as ours would be."""
    own = tmp_path / "own"
    (own / "pics").mkdir(parents=True)
    Image.new("RGB", (20, 16), "red").save(own / "pics" / "a.jpg")
    for name in ("pics/a.png", "pics/a.png.part", "tables.tex", "report.md", "photo.jpg", "README.md", "w.npz"):
        (own / name).write_text(f"my own {name}")
    (own / "shards.part").mkdir()
    (own / "shards.part" / "thesis.txt").write_text("years of work")
    (own / "marked.part").mkdir()
    (own / "marked.part" / "train-000000.tar").write_text("a tar of mine")
    net = AlexNet(fc=0)
    spec, input = NetSpec("alexnet", fc=0), InputSpec("grey", 64, 64)
    save_backbone(own / "b.safetensors", net, spec, input, Provenance("test", {}))
    shutil.copytree(finished_run, own / "run")
    os.mkfifo(own / "pipe.safetensors")
    return {"own": own, "photos": photo_folder, "run": own / "run"}


REFUSED = [
    ("colorize over a picture", "colorize {own}/pics/a.jpg --model {run} --out {own}/pics", "a.png already exists"),
    ("colorize over its input", "colorize {own}/pics/a.png --model {run} --out {own}/pics", "overwrite"),
    (
        "colorize over its input, told to",
        "colorize {own}/pics/a.png --model {run} --out {own}/pics --overwrite",
        "over",
    ),
    ("colorize into a file", "colorize {own}/pics/a.jpg --model {run} --out {own}/w.npz", "is a file"),
    ("colorize without a model", "colorize {own}/pics/a.jpg --model {own}/gone --out {own}/new/deep", "unknown source"),
    ("import over its input", "import {own}/b.safetensors --out {own}/b.safetensors", "b.safetensors"),
    (
        "import over its input, told to",
        "import {own}/b.safetensors --out {own}/b.safetensors --overwrite",
        "is an input of",
    ),
    (
        "import over a run's",
        "import {own}/b.safetensors --out {run}/backbone.safetensors",
        "backbone.safetensors already exists",
    ),
    ("import of a pipe", "import {own}/pipe.safetensors --out {own}/n.safetensors", "no weights file"),
    ("import onto a pipe", "import {own}/b.safetensors --out {own}/pipe.safetensors", "not a regular file"),
    ("import of nonsense", "import {own}/w.npz --out {own}/n.safetensors", "w.npz"),
    ("export over its input", "export {own}/b.safetensors --out {own}/b.safetensors --card false", "is an input of"),
    ("export over a result", "export {run} --format timm --out {run}/result.json --card false", "is an input of"),
    (
        "export over a result, told to",
        "export {run} --format timm --out {run}/result.json --card false --overwrite",
        "r",
    ),
    ("export onto a device", "export {run} --format timm --out /dev/null --card false", "not a regular file"),
    ("export beside a card", "export {own}/b.safetensors --out {own}/n.safetensors", "README.md already exists"),
    ("export in no shape", "export {own}/b.safetensors --format torchvision --out {own}/x/n.pth", "torchvision has no"),
    ("export of a pipe", "export {own}/pipe.safetensors --out {own}/n.safetensors --card false", "regular file"),
    ("prior over a photo", "prior --data {photos} --out {own}/photo.jpg", "photo.jpg already exists"),
    ("prior onto a device", "prior --data {photos} --out /dev/full", "not a regular file"),
    ("prior into a folder", "prior --data {photos} --out {own}/pics", "it is a folder"),
    ("prior of nothing", "prior --data {own}/gone --out {own}/p.npz", "gone"),
    ("shards over a folder", "shard {photos} {own}/pics", "not an empty folder"),
    ("shards beside a folder of texts", "shard {photos} {own}/shards", "already exists and was not left by a killed"),
    ("shards beside a folder of tars", "shard {photos} {own}/marked", "already exists and was not left by a killed"),
    ("shards of nothing", "shard {own}/gone {own}/new", "gone"),
    ("pretrain in a folder of one's own", "pretrain --data {photos} --out {own}", "not empty"),
    ("pretrain of nothing", "pretrain --data {own}/gone --out {own}/new/deep", "gone"),
    ("pretrain of no such net", "pretrain --data {photos} --model.name timm:nonet --out {own}/new", "nonet"),
    ("pretrain from no such weights", "pretrain --data {photos} --init-from {own}/w.npz --out {own}/new", "w.npz"),
    ("pretrain on no device", "pretrain --data {photos} --device cuda:77 --out {own}/new", "cuda:77"),
]


@pytest.mark.parametrize(("command", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_a_refused_command_leaves_the_file_system_as_it_was(places, tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert main(command.format(**places).split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("crosschannel: ") and words in error
    assert snapshot(tmp_path) == before


AGAIN = [
    ("colorize", "colorize {own}/pics/a.jpg --model {run} --out {own}/out", "out/a.png"),
    ("import", "import {own}/alexnet.pth --out {own}/n.safetensors", "n.safetensors"),
    ("export", "export {run} --format timm --out {own}/out/n.pth", "out/n.pth"),
    ("prior", "prior --data {photos} --limit 4 --out {own}/p.npz", "p.npz"),
]


@pytest.mark.parametrize(("command", "output"), [c[1:] for c in AGAIN], ids=[c[0] for c in AGAIN])
def test_the_same_command_again_replaces_what_it_wrote_unless_that_was_edited(places, command, output, capsys):
    import torchvision

    trunk = torchvision.models.alexnet().features
    torch.save({f"features.{name}": value for name, value in trunk.state_dict().items()}, places["own"] / "alexnet.pth")
    words, path = command.format(**places).split(), places["own"] / output
    assert main(words) == 0
    size = path.stat().st_size  # safetensors orders its metadata at random
    assert main(words) == 0 and path.stat().st_size == size
    assert {p.name for p in path.parent.glob(".*")} == {RECORDS}  # no lock, nothing half-written
    path.write_text("edited")
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err and path.read_text() == "edited"
    assert main([*words, "--overwrite"]) == 0 and path.stat().st_size == size


def test_finished_shards_are_no_leftover_and_an_input_is_none_either(photo_folder, tmp_path, capsys):
    out, part = tmp_path / "s", tmp_path / "s.part"
    assert main(["shard", str(photo_folder), str(out)]) == 0
    out.rename(part)
    before = snapshot(tmp_path)
    for data in (part, photo_folder, tmp_path / "gone"):
        assert main(["shard", str(data), str(out)]) == 2
        assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert main(["shard", str(photo_folder), str(tmp_path / "link")]) == 2 and "is a link" in capsys.readouterr().err


def test_a_config_beside_which_nothing_was_saved_is_its_users(photo_folder, small, finished_run, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.yaml").write_text((finished_run / "config.yaml").read_text() + "# a remark of mine\n")
    for command in (["pretrain", f"--config={new}/config.yaml"], small):
        before = snapshot(tmp_path)
        assert main([*command, f"--out={new}"]) == 2 and snapshot(tmp_path) == before
    link = tmp_path / "linked"
    link.mkdir()
    (link / "config.yaml").symlink_to(new / "config.yaml")
    before = snapshot(tmp_path)
    assert main([*small, f"--out={link}"]) == 2 and snapshot(tmp_path) == before


def test_remarks_in_the_config_of_a_run_outlive_a_resume(small, finished_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    (out / "result.json").unlink()
    text = (out / "config.yaml").read_text().replace(str(finished_run), str(out)) + "# a remark of mine\n"
    (out / "config.yaml").write_text(text)
    assert main([*small, f"--out={out}"]) == 0 and (out / "config.yaml").read_text() == text


@pytest.mark.parametrize("name", [LOCK, RECORDS])
def test_links_that_are_called_as_files_of_ours_lead_nowhere(places, tmp_path, name):
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.write_text("precious")
    out.mkdir()
    (out / name).symlink_to(precious)
    before = snapshot(tmp_path)
    words = ["colorize", f"{places['own']}/pics/a.jpg", f"--model={places['run']}", f"--out={out}"]
    assert main(words) == 2 and snapshot(tmp_path) == before


def test_inputs_of_every_kind_outlive_overwrite(places, photo_folder, tmp_path):
    """The model, the config and the images of a command."""
    own, run = places["own"], places["run"]
    data, config, model = tmp_path / "data", tmp_path / "c.npz", tmp_path / "out" / "a.png"
    shutil.copytree(photo_folder / "train", data)
    config.write_text("limit: 4\n")
    model.parent.mkdir()
    shutil.copy(run / "colorizer.safetensors", model)
    (tmp_path / "m.safetensors").symlink_to(model)
    before = snapshot(tmp_path)
    for words in (
        ["prior", f"--data={data}", f"--out={next(data.rglob('*.jpg'))}", "--overwrite"],
        ["prior", f"--data={data}", f"--config={config}", f"--out={config}", "--overwrite"],
        ["colorize", f"{own}/pics/a.jpg", f"--model={tmp_path}/m.safetensors", f"--out={model.parent}", "--overwrite"],
        ["export", str(run), "--format=timm", f"--out={tmp_path}/README.md"],
    ):
        assert main(words) == 2 and snapshot(tmp_path) == before, words


def test_names_that_cannot_be_written_down_are_refused_at_the_start(small, photo_folder, tmp_path, capsys):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    shutil.copytree(photo_folder, odd)
    before = snapshot(tmp_path)
    for words in ([*small, f"--out={odd}"], ["pretrain", f"--data={odd}", *small[2:], f"--out={tmp_path / 'run'}"]):
        assert main(words) == 2 and "UTF-8" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_two_that_shard_at_once(photo_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    write, others = shard_command.write_shards, []

    def with_another(*arguments):
        monkeypatch.undo()
        with Forked(lambda: main(["shard", str(photo_folder), str(out)])) as other:
            others.append(other.wait_and_read())
        return write(*arguments)

    monkeypatch.setattr(shard_command, "write_shards", with_another)
    assert main(["shard", str(photo_folder), str(out)]) == 0
    ((status, said),) = others
    assert status == 2 and "in use by process" in said
    assert (out / "train-000000.tar").is_file() and LOCK not in {path.name for path in out.iterdir()}


def test_leftovers_are_known_by_what_the_command_noted(photo_folder, tmp_path, monkeypatch):
    def killed(images, out, *_):
        (out / "train-000000.tar").write_bytes(b"half")
        os._exit(9)

    out = tmp_path / "out"
    if (child := os.fork()) == 0:
        monkeypatch.setattr(shard_command, "write_shards", killed)
        main(["shard", str(photo_folder), str(out)])
        os._exit(1)
    assert os.waitpid(child, 0)[1] >> 8 == 9
    assert (tmp_path / "out.part" / "content" / "train-000000.tar").read_bytes() == b"half"
    assert main(["shard", str(photo_folder), str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("command", ["colorize", "pretrain"])
def test_a_folder_that_is_written_to_is_held(places, small, tmp_path, capsys, command):
    """A second process is told who holds it."""
    out = tmp_path / "out"

    def hold() -> int:
        with FolderLock(out):
            print("held")
            signal.pause()

    words = {"colorize": ["colorize", f"{places['own']}/pics/a.jpg", f"--model={places['run']}"], "pretrain": small}
    with Forked(hold) as holder:
        holder.wait_for("held")
        assert main([*words[command], f"--out={out}"]) == 2
        assert f"in use by process {holder.pid}" in capsys.readouterr().err


def test_runs_below_the_data_are_not_data(photo_folder, small, tmp_path, monkeypatch):
    """`--data .` with the default run folder: its pictures do not become images that it was not begun on."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photo_folder / "train", tmp_path, dirs_exist_ok=True)
    words = ["pretrain", "--data=.", *small[2:], "--val_share=0.2"]
    assert main(words) == 0 and list(Path("runs/pretrain-0/samples").glob("*.png"))
    Path("runs/pretrain-0/result.json").unlink()
    assert main(words) == 0 and json.loads(Path("runs/pretrain-0/result.json").read_text())["n"] == 8


def run_with(streams: str, *words: str) -> subprocess.CompletedProcess:
    """A command line in a shell that gives it such standard streams."""
    line = f'exec {sys.executable} -m crosschannel.cli "$@" {streams}'
    return subprocess.run(["bash", "-c", line, "bash", *words], capture_output=True, text=True)


def onto_a_full_disk(*words: str) -> None:
    with Forked(lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 2) and main(words)) as process:
        process.wait()


def into_a_closed_pipe(*words: str) -> None:
    process = Forked(lambda: main(words))
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize(
    "run", [onto_a_full_disk, into_a_closed_pipe, partial(run_with, "0<&- 1>&- 2>&-")], ids=["full", "pipe", "closed"]
)
def test_a_log_that_cannot_be_written_ends_no_run(small, finished_run, tmp_path, run):
    out = tmp_path / "run"
    run(*small, f"--out={out}")
    ours, theirs = (load_file(path / "backbone.safetensors") for path in (out, finished_run))
    assert (out / "result.json").is_file() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for path in out.rglob("*"):  # nothing that was meant for a terminal went into a file
        assert path.is_dir() or b"images/s" not in path.read_bytes() or path.name == "metrics.jsonl"


STREAMS = (">&-", ">/dev/full", "| head -c 1")


@pytest.mark.parametrize(
    ("words", "streams"),
    [*itertools.product((["--help"], ["pretrain", "--help"]), STREAMS), (["zoo"], STREAMS[1])],
)
def test_output_that_nobody_takes(words, streams):
    found = run_with(streams, *words)
    complaint = found.stderr.partition("next:")[0]
    assert found.returncode in (0, 1, 2) and "Traceback" not in found.stderr and complaint.count("\n") <= 1


def test_metrics_and_pictures_that_cannot_be_written_end_no_run(small, finished_run, tmp_path, monkeypatch, capsys):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop.RunFolder, "log_metrics", full)
    monkeypatch.setattr("crosschannel.training.loop.atomic_write", full)
    assert main([*small, f"--out={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().err
    assert "metrics.jsonl has gaps from step 4 on" in said and "could not save the picture of step 5" in said
    ours, theirs = (load_file(path / "backbone.safetensors") for path in (tmp_path / "run", finished_run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["checkpoint", "backbone.safetensors", "curve.png", "result.json"])
def test_a_disk_that_is_full_at_the_end_is_one_sentence_and_the_run_goes_on_later(
    small, finished_run, tmp_path, monkeypatch, capsys, name
):
    import crosschannel.files as files

    replace, out = Path.replace, tmp_path / "run"

    def full(self, target):
        hit = Path(target).name.startswith("step-000000012" if name == "checkpoint" else name)
        if hit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "replace", full)
        assert main([*small, f"--out={out}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("crosschannel: cannot write ")
    assert not (out / "result.json").exists() and not list(out.rglob("*.part"))
    assert main([*small, f"--out={out}"]) == 0
    ours, theirs = (load_file(path / "backbone.safetensors") for path in (out, finished_run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_failed_start_blocks_no_other_settings(small, tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    assert main([*small, f"--out={out}", "--train.batch=4000"]) == 2
    assert not out.parent.exists()
    assert main([*small, f"--out={out}", "--train.steps=1"]) == 0


def other(path: Path) -> None:
    """Other content of the same length, at the same time of change."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("key", ["objective.prior", "init_from"])
def test_a_file_that_has_changed_since_the_run_was_begun_is_refused(small, finished_run, tmp_path, capsys, key):
    prior, weights, out = tmp_path / "prior.npz", tmp_path / "start.safetensors", tmp_path / "run"
    assert main(["prior", f"--data={small[1].removeprefix('--data=')}", f"--out={prior}", "--limit=4"]) == 0
    shutil.copy(finished_run / "colorizer.safetensors", weights)
    path = prior if key == "objective.prior" else weights
    words = [*small, f"--{key}={path}", f"--out={out}"]
    assert main([*words, "--runtime.broken_limit=0"]) == 0
    (out / "result.json").unlink()
    shutil.copy(path, tmp_path / "copy")
    shutil.copy(tmp_path / "copy", path)  # the same content at another time is the same
    assert main(words) == 0
    capsys.readouterr()
    for finished in (True, False):
        if not finished:
            (out / "result.json").unlink()
        other(path)
        assert main(words) == 2 and "has changed since" in capsys.readouterr().err
        shutil.copy(tmp_path / "copy", path)
    assert main(words) == 0
    (out / "result.json").unlink()
    if key == "init_from":  # a start is not needed twice
        path.unlink()
        assert main(words) == 0


def test_a_run_of_an_earlier_version_has_no_notes_of_its_files_and_resumes(small, finished_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    for name in ("inputs.json", "result.json"):
        (out / name).unlink(missing_ok=True)
    assert main([*small, f"--out={out}"]) == 0


def test_a_start_with_a_damaged_head_is_not_cut_down_in_silence(small, finished_run, tmp_path, capsys):
    start = tmp_path / "start"
    shutil.copytree(finished_run, start)
    state = load_file(start / "colorizer.safetensors")
    save_file({key: state[key] for key in list(state)[2:]}, start / "colorizer.safetensors")
    assert main([*small, f"--init-from={start}", f"--out={tmp_path / 'run'}"]) == 2
    assert "colorizer.safetensors" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_one_collective_a_step_tells_all_ranks(monkeypatch):
    """Loss, stop and broken images share one all-reduce."""
    from crosschannel.training.ranks import World

    calls = []
    monkeypatch.setattr("crosschannel.training.ranks.dist.all_reduce", lambda tensor: calls.append(tensor.clone()))
    world, sums = World(0, 2, torch.device("cpu")), torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert world.sum_and_any(sums, True, False) == [True, False] and sums.tolist() == [3, 4]
    assert len(calls) == 1 and calls[0].tolist() == [3, 4, 1, 0]
    assert World(0, 1, torch.device("cpu")).sum_and_any(sums, False, True) == [False, True] and len(calls) == 1


def test_names_that_cannot_be_read_or_written_do_not_stop_a_folder_of_pictures(finished_run, tmp_path, capsys):
    pictures, out = tmp_path / "in", tmp_path / "out"
    pictures.mkdir()
    longest = "n" * 251  # two of one name: there is no room for the number of the second
    for name in ("a.png", f"{longest}.bmp", f"{longest}.png", "z.png"):
        Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(pictures / name)
    os.mkfifo(pictures / "pipe.png")
    (pictures / "device.png").symlink_to("/dev/zero")
    (pictures / "gone.png").symlink_to("nowhere")
    (pictures / "\x1b[31mred.png").write_text("%!PS-Adobe-3.0\nshowpage\n")
    assert main(["colorize", str(pictures), f"--model={finished_run}", f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert {"a.png", "z.png"} <= {path.name for path in out.iterdir()}
    assert "File name too long" in said and (out / f"{longest}.png").is_file()
    assert "\x1b" not in said and "not a regular file" in said and "not an image" in said
