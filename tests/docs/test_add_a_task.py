"""The worked example of docs/add-a-task.md is a pretext task like any other."""

import re
import sys
from pathlib import Path

import pytest

from crosschannel import load_backbone, pretext
from crosschannel.cli import main
from crosschannel.hub import load_pretext
from crosschannel.pretext import Entry, config
from crosschannel.runs.result import read_result

PAGE = Path(__file__).parents[2] / "docs" / "add-a-task.md"


@pytest.fixture
def rotation(tmp_path, monkeypatch):
    """The example in the table; all is as before afterwards."""
    files = dict(re.findall(r"```python file=(\S+)\n(.*?)```", PAGE.read_text(), re.S))
    (tmp_path / "rotation.py").write_text(files["rotation.py"])
    names = dict(vars(config))
    exec(files["config"], names)
    monkeypatch.setattr(config, "RotationConfig", names["RotationConfig"], raising=False)
    monkeypatch.setattr(pretext, "__path__", [*pretext.__path__, str(tmp_path)])
    (entry,) = eval("{" + files["row"] + "}", {"Entry": Entry}).items()
    monkeypatch.setitem(pretext.TASKS, *entry)
    yield
    sys.modules.pop("crosschannel.pretext.rotation", None)


def test_the_example_trains_resumes_and_is_a_backbone(rotation, photo_folder, tmp_path, capsys):
    out = tmp_path / "run"
    flags = [
        "--task=rotation", f"--data={photo_folder}", f"--out={out}", "--model.fc=0", "--crop.size=48",
        "--crop.resize=56",
        "--train.batch=8", "--train.steps=6", "--runtime.workers=0", "--runtime.tensorboard=false", "--device=cpu",
        "--objective.dropout=0.1",
    ]  # fmt: skip
    assert main(["pretrain", *flags]) == 0
    assert "of the turns told right" in capsys.readouterr().err
    assert main(["pretrain", *flags]) == 0 and "is finished" in capsys.readouterr().err
    result = read_result(out)
    assert result.metrics.keys() == {"loss", "top1"} and result.config["objective"]["dropout"] == 0.1
    assert load_backbone(str(out)).provenance.details["pretext"] == "rotation"
    assert load_pretext(str(out)).task.name == "rotation"
    assert main(["pretrain", "--task=rotation", "--help"]) == 0
    assert "--objective.dropout" in capsys.readouterr().out
