"""The worked example of docs/add-a-protocol.md is a protocol like any other."""

import json
import pickle
import re
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

import transfer
from crosschannel import UserError, factories
from crosschannel.data import open_images
from crosschannel.runs.result import load_result
from slurm.cli import main as slurm
from transfer.cli import main
from transfer.protocol import Split
from transfer.protocols import ENTRY_POINTS, load_protocol
from transfer.targets import Values

PAGE = Path(__file__).parents[2] / "docs" / "add-a-protocol.md"
NAME = "class_means:class_means"
NET = "random:alexnet,fc=0,size=64,resize=72,seed=1"


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The page's module in the working folder."""
    first, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "class_means.py").write_text(f"{first}\n\n{second}")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("class_means", "others"):
        sys.modules.pop(name, None)


def command(data, out, *flags, name=NAME):
    return [name, f"--backbone={NET}", f"--data={data}", "--layer=conv3,conv5", "--workers=0", f"--out={out}", *flags]


def test_the_example_runs_resumes_compares_and_reports(photo_folder, tmp_path, capsys):
    runs = [tmp_path / kind for kind in ("cosine", "euclidean")]
    for run in runs:
        assert main(command(photo_folder, run, f"--distance={run.name}", "--pooling=global")) == 0
    assert "conv5" in capsys.readouterr().out
    result = load_result(runs[0])
    assert set(result.metrics) == {"conv3/top1", "conv5/top1"} and result.metrics["conv5/top1"] > 0.1
    again = command(photo_folder, runs[0], "--pooling=global")
    assert main(again) == 0 and "is finished" in capsys.readouterr().err
    assert main([*again, "--distance=euclidean"]) == 2
    assert main(["compare", *map(str, runs), "--resamples=100"]) == 0
    assert main(["report", *map(str, runs), f"--out={tmp_path / 'page'}"]) == 0
    assert "Class means" in (tmp_path / "page" / "report.md").read_text()
    assert f"transfer {NAME} --config" in (tmp_path / "page" / "report.md").read_text()
    assert main([NAME, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--distance" in text and "--config NAME|FILE" in text


def test_the_example_is_a_function(photo_folder):
    class_means = load_protocol(NAME)
    assert class_means(NET, str(photo_folder), "conv3", workers=0).metrics.keys() == {"conv3/top1"}
    assert "distance (default 'cosine'): distance metric" in class_means.__doc__


def test_an_unnamed_run_folder_has_no_colon(photo_folder, tmp_path):
    assert main([word for word in command(photo_folder, "") if not word.startswith("--out")]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"class_means-class_means-[\w.=-]+-0", run.name)


def test_a_package_names_its_protocol_by_an_entry_point(photo_folder, tmp_path, monkeypatch, capsys):
    point = EntryPoint("class-means", NAME, ENTRY_POINTS)
    monkeypatch.setattr(factories, "entry_points", lambda group: [point] if group == ENTRY_POINTS else [])
    assert main(command(photo_folder, tmp_path / "run", name="class-means")) == 2
    assert "set it to 'class-means'" in capsys.readouterr().err
    path = tmp_path / "class_means.py"
    path.write_text(path.read_text().replace(f'"{NAME}"', '"class-means"'))
    sys.modules.pop("class_means")
    assert main(command(photo_folder, tmp_path / "run", name="class-means")) == 0
    assert load_result(tmp_path / "run").protocol == "class-means"
    assert main(["--help"]) == 0 and "from installed packages: class-means" in capsys.readouterr().out
    assert main(["unknown", "--data=x"]) == 2 and "class-means" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:protocol", "cannot import 'nowhere:protocol': ModuleNotFoundError"),
        ("class_means:nothing", "cannot import 'class_means:nothing': AttributeError"),
        ("class_means:ClassMeansConfig", "must be a transfer.protocol.Protocol, got type"),
        ("json:loads", "json is in the standard library"),
        ("others:again", "protocol is 'class_means:class_means'; set it to 'others:again'"),
    ],
)
def test_an_object_that_is_not_a_protocol_is_rejected(name, words, tmp_path, capsys):
    Path("others.py").write_text("from class_means import class_means as again\n")
    for program, start in ((main, []), (slurm, ["submit", "--dry-run", "--", "transfer"])):
        assert program([*start, *command("builtin:sample", tmp_path / "run", name=name)]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_module_is_part_of_the_run_and_of_a_job(photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command(photo_folder, run, "--layer=conv3")) == 0
    assert any("protocol" in key for key in json.loads((run / "inputs.json").read_text()))
    job = ["submit", "--profile=local", "--", "transfer", *command(photo_folder, tmp_path / "job", "--k=3")]
    assert slurm(job) == 2 and "unknown key 'k'" in capsys.readouterr().err


def test_a_run_whose_module_is_gone_is_reported_beside_others(photo_folder, tmp_path, capsys):
    assert main(command(photo_folder, tmp_path / "run", "--layer=conv3")) == 0
    words = ["knn", f"--backbone={NET}", f"--data={photo_folder}", "--layer=conv3", "--k=1", "--workers=0"]
    assert main([*words, f"--out={tmp_path / 'knn'}"]) == 0
    Path("class_means.py").unlink()
    sys.modules.pop("class_means")
    with pytest.raises(UserError, match="cannot import 'class_means:class_means'"):
        load_protocol(load_result(tmp_path / "run").protocol)
    assert main(["report", str(tmp_path / "run"), str(tmp_path / "knn"), f"--out={tmp_path / 'page'}"]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    assert "conv3/top1" in text and "Nearest neighbours" in text and f"transfer {NAME} --config" in text


def test_a_protocol_in_a_notebook_needs_no_name_that_can_be_imported(photo_folder):
    class_means = load_protocol(NAME)

    @dataclass
    class Mine(class_means.config):
        """Mine."""

        protocol: ClassVar[str] = "mine"
        tag: str = "a"
        """a word"""

    mine = replace(class_means, config=Mine)
    result = mine(NET, str(photo_folder), "conv3", workers=0, tag="b")
    assert result.protocol == "mine" and result.config["tag"] == "b"
    assert "tag (default 'a'): a word" in mine.__doc__ and len({mine, class_means, transfer.knn}) == 3
    assert pickle.loads(pickle.dumps(transfer.knn)) is transfer.knn


def test_a_key_without_a_default_is_refused():
    class_means = load_protocol(NAME)

    @dataclass(kw_only=True)
    class Mine(class_means.config):
        tag: str

    with pytest.raises(UserError, match=r"Mine\.tag must have a default"):
        replace(class_means, config=Mine)


@pytest.mark.parametrize("protocol", [transfer.knn, transfer.few_shot, transfer.segment], ids=lambda p: p.name)
def test_values_are_no_classes(protocol, photo_folder):
    train, val = open_images(str(photo_folder))
    with pytest.raises(UserError, match="predicts classes; the targets of 'photos' are depth in m"):
        protocol(NET, Split(train, val, Values("depth", "m"), "photos"))
