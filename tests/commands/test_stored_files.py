"""Every file that we read back, damaged at random: one sentence or the fall-back there is, never a traceback."""

import copy
import json
import random
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from crosschannel import UserError, load_backbone, load_colorizer
from crosschannel.cli import main
from crosschannel.color import load_prior
from crosschannel.config.training import TrainedConfig
from crosschannel.data import CentreCrop, Stream, load_batches, open_images
from crosschannel.data.decode import BrokenImage, decode
from crosschannel.files import Outputs
from crosschannel.hub import read_weights
from crosschannel.hub.convert import import_weights
from crosschannel.runs.folder import RunFolder, read_metrics
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.runs.result import finish, load_result, save_rows
from crosschannel.training import checkpoints
from crosschannel.training.loop import Loop
from crosschannel.training.ranks import World
from slurm.job_folder import End, Job, JobFolder
from slurm.watch import status
from transfer.cli import main as transfer
from transfer.comparison import compare
from transfer.feature_cache import Extraction
from transfer.features import FrozenFeatures

VALUES = [None, True, -1, 1e300, float("nan"), 10**30, "", "x" * 300, "\x1b[2J", "../../x", [], [[]], {}, {"a": None}]


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bits flipped, the end or a part gone, a part repeated, other bytes, nothing at all."""
    how = draw.randrange(7)
    if not data or how == 0:
        return b""
    at, end = sorted((draw.randrange(len(data)), draw.randrange(len(data) + 1)))
    if how == 1:
        return data[:at]
    if how == 2:
        return data[:at] + data[end:]
    if how == 3:
        return data[:end] + data[at:]
    if how == 4:
        return data[:at] + draw.randbytes(min(40, end - at)) + data[end:]
    changed = bytearray(data)
    for _ in range(1 if how == 5 else 20):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def other_types(tree, draw: random.Random):
    """A JSON tree with one value of another type, one key gone, or one too many."""
    tree = copy.deepcopy(tree)
    places = []

    def walk(node):
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if not places or draw.random() < 0.05:
        return draw.choice(VALUES)
    node, key = draw.choice(places)
    if isinstance(node, dict) and draw.random() < 0.2:
        del node[key]
    elif isinstance(node, dict) and draw.random() < 0.1:
        node["newer"] = draw.choice(VALUES)
    else:
        node[key] = draw.choice(VALUES)
    return tree


def fuzz(path: Path, read: Callable[[], object], times: int, retype: Callable | None = None, seed: int = 0) -> int:
    """Damage a file again and again and read it; returns how often that was refused in a sentence."""
    whole, draw, refused = path.read_bytes(), random.Random(seed), 0
    for number in range(times):
        if retype and number % 2:
            path.write_bytes(retype(whole, draw))
        else:
            path.write_bytes(damaged(whole, draw))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except UserError as error:
            assert str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"{path.name}, damage {number}: {type(error).__name__}: {error}") from error
    path.write_bytes(whole)
    return refused


def json_types(whole: bytes, draw: random.Random) -> bytes:
    return json.dumps(other_types(json.loads(whole), draw)).encode()


def yaml_types(whole: bytes, draw: random.Random) -> bytes:
    head, _, _ = whole.partition(b"\n")
    return head + b"\n" + yaml.safe_dump(other_types(yaml.safe_load(whole), draw)).encode()


def row_types(whole: bytes, draw: random.Random) -> bytes:
    rows = whole.splitlines()
    place = draw.randrange(len(rows))
    rows[place] = json_types(rows[place], draw)
    return b"\n".join(rows) + b"\n"


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def probe(tmp_path) -> Path:
    """A finished run of a protocol."""
    with RunFolder(tmp_path / "probe", "linear-probe") as held:
        names = np.array([f"image{i}" for i in range(20)])
        rows = {"names": names, "labels": np.arange(20) % 4, "conv1/top1": np.arange(20) % 3 == 0}
        held.write("config.yaml", "# crosschannel run: linear-probe (crosschannel 0.1.0)\nbackbone: b\nseed: 0\n")
        held.write("backbone.json", json.dumps({"input": {"kind": "grey"}, "source": "b"}))
        save_rows(held.path, rows)
        metrics = {"conv1/top1": 0.35, "conv1/top1/a": 0.5}
        finish(held, TrainedConfig(), "b", "photos", 20, metrics)
    return tmp_path / "probe"


def open_run(path: Path, config) -> None:
    run = RunFolder(path, "pretrain", hold=False)
    if run.resuming:
        run.check_fixed_keys(config)
        run.check_files({"objective.prior": Path(__file__)})
        run.is_done("x")


def test_files_of_a_run(run, small):
    from crosschannel.cli import PROGRAM

    config = PROGRAM.parse("pretrain", [*small[1:], f"--out={run}"])
    held = RunFolder(run, "pretrain")
    held.check_files({"objective.prior": Path(__file__)})
    held.write("inputs.json", held._inputs)
    held.close()
    assert fuzz(run / "config.yaml", lambda: open_run(run, config), 150, yaml_types) > 50
    assert fuzz(run / "inputs.json", lambda: open_run(run, config), 100, json_types) > 20
    fuzz(run / "metrics.jsonl", lambda: read_metrics(run), 300, row_types)
    assert fuzz(run / "result.json", lambda: load_result(run), 300, json_types) > 100


def test_a_run_that_is_told_to_resume_from_damaged_files(run, small, capsys):
    """The command itself, less often: whichever file it is, it goes on or says why not."""
    (run / "result.json").unlink()
    kept, draw = run.with_name("kept"), random.Random(3)
    shutil.copytree(run, kept)
    names = [
        "config.yaml",
        "images.json",
        "metrics.jsonl",
        *(f"checkpoints/{p.name}" for p in checkpoints.list_checkpoints(run / "checkpoints")),
    ]
    for name in names * 2:
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        (run / name).write_bytes(damaged((run / name).read_bytes(), draw))
        assert main([*small, f"--out={run}"]) in (0, 2), name
        error = capsys.readouterr().err
        assert "Traceback" not in error


def hashed(folder: Path, step: int, state: object) -> Path:
    """A checkpoint of whatever content, under the name that its content has."""
    part = folder / "part"
    torch.save(state, part)
    path = folder / f"step-{step:09d}-{checkpoints._digest(part)}.pt"
    part.rename(path)
    return path


def test_checkpoints_with_a_right_checksum_and_the_wrong_content(run, small, finished_run, monkeypatch, capsys):
    """Passed over for the one before, as those with a wrong checksum; the last run goes on to the end."""
    from same_end import assert_same_end

    def stop(_loop):
        raise UserError("resumed")

    folder = run / "checkpoints"
    newest = checkpoints.list_checkpoints(folder)[0]
    state, draw = checkpoints.load(newest), random.Random(0)
    shutil.copytree(run, run.with_name("kept"))

    def changed(**entries):
        return {**state, "step": 11, **entries}

    wrong = [
        {}, [], None, 3, {"schema": 1}, {"schema": "x", "step": 11}, {"schema": 1, "step": 11}, changed(net={}),
        changed(net={**state["net"], "more": torch.zeros(1)}), changed(net=dict.fromkeys(state["net"], torch.zeros(3))),
        changed(optimizer={}), changed(optimizer=3), changed(evaluated="yes"), {**state, "step": 99},
        changed(scaler=None), changed(losses=["x"]), changed(losses=3),
        changed(broken=[1]), changed(broken="xy"), changed(average=3),
        changed(optimizer={**state["optimizer"], "state": {0: {"exp_avg": torch.zeros(7), "step": torch.tensor(1.0)}}}),
    ]  # fmt: skip
    keys = ("net", "average", "optimizer", "broken", "step")
    monkeypatch.setattr(Loop, "_train", stop)
    for content in [*wrong, *(changed(**{draw.choice(keys): draw.choice(VALUES)}) for _ in range(4))]:
        shutil.rmtree(run)
        shutil.copytree(run.with_name("kept"), run)
        (run / "result.json").unlink()
        checkpoints.list_checkpoints(folder)[0].unlink()
        hashed(folder, 11, content)
        (folder / f"step-000000010-{'0' * 16}.pt").mkdir()
        assert main([*small, f"--out={run}"]) == 2, content
        said = capsys.readouterr().err.replace("\n", "")
        assert "step-000000011-" in said and "at step 9 of 12" in said and said.endswith("resumed"), content
    monkeypatch.undo()
    assert main([*small, f"--out={run}"]) == 0
    for path in folder.glob("step-00000001[01]*"):
        path.rmdir() if path.is_dir() else path.unlink()
    assert_same_end(run, finished_run)


def test_results_and_their_rows(probe, tmp_path, capsys):
    twin = tmp_path / "twin"
    shutil.copytree(probe, twin)

    def read():
        return compare(load_result(probe), load_result(twin), resamples=50)

    assert fuzz(probe / "result.json", read, 300, json_types) > 100
    assert fuzz(probe / "predictions.npz", read, 300) > 100
    for name, retype in {"result.json": json_types, "predictions.npz": None, "backbone.json": json_types}.items():
        whole, draw = (probe / name).read_bytes(), random.Random(1)
        for number in range(4):
            (probe / name).write_bytes(retype(whole, draw) if retype and number % 2 else damaged(whole, draw))
            assert transfer(["report", str(probe), str(twin), f"--out={tmp_path / 'page'}"]) in (0, 2)
            assert "Traceback" not in capsys.readouterr().err
        (probe / name).write_bytes(whole)


def test_rows_that_do_not_belong_to_their_result(probe):
    for rows in (
        {"names": np.array(["a"]), "labels": np.array([1])},
        {"names": np.arange(20), "labels": np.arange(20)},
        {"names": np.array(["a"] * 20), "labels": np.arange(20), "conv1/top1": np.array(["x"] * 20)},
        {"conv1/top1": np.zeros(20)},
        {"names": np.array(["a"] * 20), "boxes": np.zeros(7), "boxes#counts": np.ones(20, np.int64)},
    ):
        save_rows(probe, rows)
        with pytest.raises(UserError, match="is damaged"):
            load_result(probe)


def header_types(whole: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose metadata has one value of another type."""
    length = int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8 : 8 + length])
    key = draw.choice([key for key in head["__metadata__"] if key != "format"])
    head["__metadata__"][key] = json.dumps(other_types(json.loads(head["__metadata__"][key]), draw))
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def test_weights(run):
    assert fuzz(run / "colorizer.safetensors", lambda: load_colorizer(str(run)), 60, header_types) > 30
    assert fuzz(run / "backbone.safetensors", lambda: load_backbone(str(run)), 60, header_types, seed=1) > 30
    for path in (run / "colorizer.safetensors", run / "backbone.safetensors"):
        assert fuzz(path, partial(read_weights, path), 300, header_types) > 99


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_colour_nothing(run, tmp_path, photo_folder, capsys, value):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = run / "colorizer.safetensors"
    with safe_open(path, "pt") as file:
        meta, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    name = next(key for key, tensor in state.items() if key.startswith("net.") and tensor.ndim == 4)
    state[name].view(-1)[5] = value
    save_file(state, path, meta)
    assert main(["colorize", str(photo_folder / "val"), f"--model={run}", f"--out={tmp_path / 'out'}"]) == 2
    assert f"not finite in {name}" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_weights_of_others(tmp_path):
    import torchvision

    path = tmp_path / "alexnet.pth"
    state = {key: value[:1].repeat(len(value), *[1] * (value.ndim - 1)) for key, value in
             torchvision.models.alexnet().state_dict().items() if key.startswith("features")}  # fmt: skip
    torch.save(state, path)
    assert fuzz(path, lambda: import_weights(path), 40) > 15


@pytest.fixture
def shards(tmp_path, photo_folder) -> Path:
    assert main(["shard", str(photo_folder), str(tmp_path / "shards")]) == 0
    return tmp_path / "shards"


def read_all(folder: Path) -> None:
    for images in open_images(str(folder)):
        images.content_key()
        for index in range(len(images)):
            try:
                decode(images.read(index))
            except BrokenImage:
                continue


def index_types(whole: bytes, draw: random.Random) -> bytes:
    """An index that lies, under the right digest."""
    from crosschannel.data.shards import Row, format_index, parse_index

    rows = parse_index(whole.decode())
    size = int(whole.split(b"\t")[1])
    place = draw.randrange(len(rows))
    lies = [-1, 0, 10**6, 2**62, 2**63, 2**70]
    rows[place] = Row(draw.choice(lies), draw.choice(lies), draw.choice(lies), rows[place].name)
    return format_index(rows, size).encode()


def test_shards_and_what_lies_beside_them(shards):
    fuzz(shards / "train-000000.tar.idx", lambda: read_all(shards), 60, index_types)
    fuzz(shards / "val-000000.tar", lambda: read_all(shards), 60)
    fuzz(shards / "classes.txt", lambda: read_all(shards), 40)
    read_all(shards)


def test_priors(tmp_path, photo_folder):
    path = tmp_path / "p.npz"
    assert main(["prior", f"--data={photo_folder}", f"--out={path}", "--limit=4"]) == 0
    assert fuzz(path, lambda: load_prior(str(path)), 200) > 100


def test_stored_features(tmp_path, photo_folder, monkeypatch):
    """Damaged ones are computed anew."""
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    backbone = load_backbone("random:alexnet,fc=0,size=64,resize=72", layers=["conv1", "conv3"])
    world, features = (
        World(0, 1, torch.device("cpu")),
        FrozenFeatures(backbone, ["conv1", "conv3"], "global", torch.device("cpu")),
    )
    images, quiet = open_images(str(photo_folder))[1], Console(quiet=True)
    extract = Extraction(features, world, InterruptFlag(), "float32", 10, 0, "disk", 0.01, quiet)
    stream = Stream(images, CentreCrop(64, 72))
    expected = {layer: maps.clone() for layer, maps in extract(stream, "val").maps.items()}
    (folder,) = (tmp_path / "cache" / "features").iterdir()
    draw = random.Random(0)
    for name in [path.name for path in folder.iterdir()] * 4:
        whole = (folder / name).read_bytes()
        change = json_types(whole, draw) if name.endswith(".json") and draw.random() < 0.5 else damaged(whole, draw)
        (folder / name).write_bytes(change)
        found = extract(stream, "val").maps
        assert all(torch.equal(found[layer], expected[layer]) for layer in expected), name


def test_files_of_jobs(tmp_path, capsys):
    folder = JobFolder(tmp_path / "run")
    folder.add_job(Job("7", "local", 1, 1, str(tmp_path), "here", 1.0))
    folder.add_event("7", 0, "started", "1 node")
    folder.add_event("7", 0, "failed", "rank 0: exit code 1")
    folder.write_end("7", 0, End(0, 1, None, False, 1.0, "here", "ValueError"))

    def read():
        folder.ends("7", 0)
        if folder.jobs():
            from slurm.watch import StatusConfig

            status(StatusConfig([str(tmp_path)]))

    for name in ("jobs.jsonl", "events.jsonl", "ends/7-0-0.json"):
        fuzz(folder.path / name, read, 30, row_types)


def test_notes_of_outputs(tmp_path):
    Outputs("crosschannel test").write_text(tmp_path / "a", "x")
    (tmp_path / "a").write_text("mine")
    notes = tmp_path / ".crosschannel.jsonl"
    assert fuzz(notes, lambda: Outputs("crosschannel test").check(tmp_path / "a"), 100, row_types) == 100


def test_loaders_live_on_after_damaged_images(photo_folder, tmp_path):
    """Encoded images themselves."""
    shutil.copytree(photo_folder / "val", tmp_path / "val")
    draw = random.Random(5)
    for path in (tmp_path / "val").rglob("*.jpg"):
        path.write_bytes(damaged(path.read_bytes(), draw))
    images = open_images(str(tmp_path / "val"), 0.2)[0]
    stream = Stream(images, CentreCrop(32, 36))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = sum(len(batch.images) + len(batch.broken) for batch in load_batches(stream, 0, len(images), 4))
    assert seen == len(images)
