"""The worked examples of docs/add-a-task.md are pretext tasks like any other."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_on_ranks
from safetensors.torch import load_file

from crosschannel import UserError, factories, load_backbone, load_colorizer, pretext
from crosschannel.cli import main
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.colorize.decoders import RegressionDecoder
from crosschannel.hub import load_pretext
from crosschannel.runs.folder import read_metrics
from crosschannel.runs.result import read_result
from slurm.cli import main as slurm

PAGE = Path(__file__).parents[2] / "docs" / "add-a-task.md"
TASKS = {"Inpainting": "error", "Position": "top1"}


@pytest.fixture(autouse=True)
def mytasks(tmp_path, monkeypatch):
    """The page's module in the working folder."""
    blocks = re.findall(r"```python\n(# mytasks\.py.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "mytasks.py").write_text("\n\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("mytasks", "halves", "tints"):
        sys.modules.pop(name, None)


def command(task, photo_folder, out, *flags):
    return [
        "pretrain", f"--task={task}", f"--data={photo_folder}", f"--out={out}", "--model.fc=0", "--crop.size=96",
        "--crop.resize=96", "--train.batch=8", "--train.steps=6", "--runtime.workers=0", "--runtime.log_every=1",
        "--runtime.checkpoint_every=2", "--runtime.tensorboard=false", "--device=cpu", *flags,
    ]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_an_example_trains_and_its_run_loads_as_a_backbone(narrow_nets, photo_folder, task, capsys):
    assert main(command(f"mytasks:{task}", photo_folder, "run")) == 0
    result = read_result(Path("run"))
    assert result.metrics.keys() == {"loss", TASKS[task]} and result.config["task"] == f"mytasks:{task}"
    assert main(command(f"mytasks:{task}", photo_folder, "run")) == 0 and "is finished" in capsys.readouterr().err
    assert load_backbone("run").provenance.details["pretext"] == f"mytasks:{task}"
    whole = load_pretext("run")
    assert whole.task.name == f"mytasks:{task}"
    assert main(["pretrain", f"--task=mytasks:{task}", "--help"]) == 0
    assert f"--objective.{'side' if task == 'Inpainting' else 'width'}" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_an_example_resumes_to_the_same_bits(narrow_nets, photo_folder, task):
    assert main(command(f"mytasks:{task}", photo_folder, "whole")) == 0
    assert main(command(f"mytasks:{task}", photo_folder, "part", "--runtime.keep=10")) == 0
    for path in Path("part").iterdir():  # as if it had been killed after step 4
        if path.name not in ("config.yaml", "images.json", "inputs.json", "checkpoints", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (newest,) = Path("part/checkpoints").glob("step-*6-*.pt")
    newest.unlink()
    assert main(command(f"mytasks:{task}", photo_folder, "part", "--runtime.keep=10")) == 0
    first, second = (load_file(f"{run}/pretext.safetensors") for run in ("whole", "part"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    losses = [
        [row["train/loss"] for row in read_metrics(Path(run)) if "train/loss" in row] for run in ("whole", "part")
    ]
    assert len(losses[0]) == 6 and losses[0] == losses[1]


@pytest.mark.parametrize("task", TASKS)
def test_an_example_runs_on_two_ranks(narrow_nets, photo_folder, task):
    words = command(f"mytasks:{task}", photo_folder, "run", "--model.norm=false", "--train.precision=float32")
    outcomes = run_on_ranks(lambda: main(words))
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    assert main([word.replace("=run", "=alone") for word in words]) == 0
    two, one = (read_result(Path(run)).metrics for run in ("run", "alone"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_a_package_names_its_task_by_an_entry_point(narrow_nets, photo_folder, monkeypatch, capsys):
    point = EntryPoint("position", "mytasks:Position", pretext.ENTRY_POINTS)
    monkeypatch.setattr(factories, "entry_points", lambda group: [point] if group == pretext.ENTRY_POINTS else [])
    assert main(command("position", photo_folder, "run", "--train.steps=1")) == 0
    assert load_pretext("run").task.name == "position"
    assert main(["pretrain", "--task=puzzle", "--data=x"]) == 2
    assert "position" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("nowhere:Task", "cannot import 'nowhere:Task': ModuleNotFoundError"),
        ("mytasks:Nothing", "cannot import 'mytasks:Nothing': AttributeError"),
        ("mytasks:PairNet", "'mytasks:PairNet' must be a subclass of crosschannel.pretext.task.Pretext"),
        ("json:loads", "json is in the standard library"),
        ("halves:NoMetric", "the task 'halves:NoMetric' must define primary_metric, score_length, build, metrics"),
        ("halves:NoDecoder", "cannot import 'halves:Nothing': AttributeError"),
        ("halves:KeysOfAnInstance", "must be a subclass of crosschannel.pretext.task.Pretext with a dataclass as keys"),
    ],
)
def test_invalid_tasks_are_refused(task, words, capsys):
    Path("halves.py").write_text(
        "from dataclasses import dataclass\nfrom crosschannel.pretext.task import Pretext\n\n@dataclass\nclass Keys:\n"
        "    pass\n\nclass NoMetric(Pretext):\n    keys = Keys\n\n"
        "class KeysOfAnInstance(Pretext):\n    keys = Keys()\n\n"
        "from crosschannel.pretext.colorization import Colorization\n\n"
        "class NoDecoder(Colorization):\n    keys = Keys\n    decoder = 'halves:Nothing'\n"
    )
    assert main(["pretrain", f"--task={task}", "--data=builtin:sample", "--out=run"]) == 2
    assert words in capsys.readouterr().err and not Path("run").exists()


def test_a_task_that_predicts_colours_has_a_decoder_of_its_own(narrow_nets, photo_folder):
    Path("tints.py").write_text(
        "from dataclasses import dataclass\n"
        "from crosschannel.colorize.decoders import RegressionDecoder\n"
        "from crosschannel.pretext.colorization import Colorization\n"
        "from crosschannel.pretext.config import ColorizationConfig\n\n\n"
        "@dataclass\nclass Keys(ColorizationConfig):\n    kind: str = 'l2'\n\n\n"
        "class Strong(RegressionDecoder):\n"
        "    def to_maps(self, outputs, temperature=None):\n"
        "        return 3 * super().to_maps(outputs, temperature)\n\n\n"
        "class Tint(Colorization):\n    keys = Keys\n    decoder = 'tints:Strong'\n"
    )
    assert main(command("tints:Tint", photo_folder, "run", "--train.steps=1")) == 0
    colorizer = load_colorizer("run")
    assert type(colorizer.decoder).__name__ == "Strong"
    plain = Colorizer(colorizer.net, colorizer.task, colorizer.size, decoder=RegressionDecoder())
    rgb = torch.rand(1, 3, 96, 96)
    assert torch.allclose(colorizer.predict(rgb), 3 * plain.predict(rgb))


def test_a_module_may_import_its_neighbours_later_and_in_spawned_workers(tmp_path):
    (tmp_path / "helpers.py").write_text("SIDE = 7\n")
    (tmp_path / "halves.py").write_text(
        "class View:\n    def __reduce__(self):\n        return View, ()\n\n"
        "    def __repr__(self):\n        from helpers import SIDE\n\n        return f'side {SIDE}'\n"
    )
    code = (
        "import multiprocessing\nfrom crosschannel.factories import import_object\n"
        "view = import_object('halves:View')()\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(view, pool.apply(repr, (view,)))\n"
    )
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert done.stdout == "side 7 side 7\n", done.stderr


def test_the_launcher_checks_a_task_before_anything_is_queued(photo_folder, capsys):
    words = [
        "submit",
        "--dry-run",
        "--profile=local",
        "--",
        "crosschannel",
        *command("mytasks:Position", photo_folder, "run"),
    ]
    assert slurm(words) == 0
    assert slurm([*words[:-1], "--objective.width=x"]) == 2
    words = ["submit", "--dry-run", "--", "crosschannel", "pretrain", "--task=nowhere:Task", "--data=builtin:sample"]
    assert slurm([*words, "--out=run"]) == 2 and "cannot import 'nowhere:Task'" in capsys.readouterr().err


def test_hidden_squares_and_neighbours_are_drawn_evenly(photo_folder):
    from crosschannel.data import CropConfig, Stream, load_batches, open_images

    images, crop = open_images(str(photo_folder))[0], CropConfig(96, 96)
    for name in TASKS:
        row = pretext.find_task(f"mytasks:{name}")
        task = row.load()(row.keys(), 16)
        batches = list(load_batches(Stream(images, task.view(crop, train=True), 0), 0, 400, 40))
        if name == "Position":
            counts = np.bincount(torch.cat([batch.positions for batch in batches]), minlength=8)
            assert counts.min() > 20
        else:
            hidden = torch.cat([task.hidden(batch) for batch in batches]).float()
            assert (hidden.sum((1, 2, 3)) == 48**2).all()
            assert all((hidden.amax(side).sum((0, 1)) > 0).all() for side in (2, 3))  # all rows and columns


def test_a_fetched_or_moved_file_imports_no_code(narrow_nets, photo_folder, tmp_path):
    """A weights file names its task; that is no reason to import it."""
    assert main(command("mytasks:Position", photo_folder, "run", "--train.steps=1")) == 0
    shutil.copy("run/pretext.safetensors", "moved.safetensors")
    Path("mytasks.py").write_text("raise SystemExit('imported')")
    sys.modules.pop("mytasks")
    assert load_backbone("moved.safetensors").layers[0] == "conv1"
    with pytest.raises(UserError, match="needs the user-defined code mytasks:Position"):
        load_pretext("moved.safetensors")
    with pytest.raises(UserError, match="cannot import 'mytasks:Position': SystemExit: imported"):
        load_pretext("run")
