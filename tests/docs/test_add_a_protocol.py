"""The worked example of docs/add-a-protocol.md is a protocol like any other."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import transfer.cli
import transfer.protocols
from crosschannel.runs.result import load_result
from transfer.protocols import Entry

PAGE = Path(__file__).parents[2] / "docs" / "add-a-protocol.md"


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The command line with the example in the table; all is as before afterwards."""
    files = dict(re.findall(r"```python file=(\S+)\n(.*?)```", PAGE.read_text(), re.S))
    row = files.pop("row")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "class_means" / "__init__.py").touch()
    monkeypatch.setattr(transfer.protocols, "__path__", [*transfer.protocols.__path__, str(tmp_path)])
    (entry,) = eval("{" + row + "}", {"Entry": Entry}).items()
    monkeypatch.setitem(transfer.protocols.PROTOCOLS, *entry)
    importlib.reload(transfer.cli)
    yield transfer.cli.main
    monkeypatch.undo()
    importlib.reload(transfer.cli)
    for name in [name for name in sys.modules if "class_means" in name]:
        del sys.modules[name]


def test_the_example_runs_resumes_compares_and_reports(main, photo_folder, tmp_path, capsys):
    net = "--backbone=random:alexnet,fc=0,size=64,resize=72,seed=1"
    command = ["class-means", net, f"--data={photo_folder}", "--layer=conv3,conv5", "--workers=0", "--pooling=global"]
    runs = [tmp_path / kind for kind in ("cosine", "euclidean")]
    for run in runs:
        assert main([*command, f"--distance={run.name}", f"--out={run}"]) == 0
    assert "conv5" in capsys.readouterr().out
    result = load_result(runs[0])
    assert set(result.metrics) == {"conv3/top1", "conv5/top1"} and result.metrics["conv5/top1"] > 0.1
    assert main([*command, f"--out={runs[0]}"]) == 0 and "is finished" in capsys.readouterr().err
    assert main([*command, "--distance=euclidean", f"--out={runs[0]}"]) == 2
    assert main(["compare", *map(str, runs), "--resamples=100"]) == 0
    assert main(["report", *map(str, runs), f"--out={tmp_path / 'page'}"]) == 0
    assert "Class means" in (tmp_path / "page" / "report.md").read_text()
    assert main(["class-means", "--help"]) == 0
    assert "--distance" in capsys.readouterr().out
