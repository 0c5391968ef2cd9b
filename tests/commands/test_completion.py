"""`--completion`: bash completes commands, flags, configs and choices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import crosschannel.cli
import slurm.cli
import transfer.cli


def complete_line(module, line: str, monkeypatch, capsys) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line.encode())))
    assert module.main(["--complete", "crosschannel", "", ""]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        (crosschannel.cli, "crosschannel st", ["study"]),
        (crosschannel.cli, "crosschannel study ", ["build", "serve", "report"]),
        (crosschannel.cli, "crosschannel pretrain --optim.name ", ["adam", "adamw", "sgd"]),
        (crosschannel.cli, "crosschannel pretrain --config imagenette-l", ["imagenette-l2", "imagenette-labels"]),
        (crosschannel.cli, "crosschannel pretrain --task larsson --objective.lo", ["--objective.locations"]),
        (crosschannel.cli, "crosschannel pretrain --config larsson --objective.lo", ["--objective.locations"]),
        (crosschannel.cli, "crosschannel pretrain --train.compile ", ["auto", "true", "false"]),
        (transfer.cli, "transfer detect --keep.", ["--keep.rule", "--keep.score", "--keep.nms", "--keep.most"]),
        (slurm.cli, "crosschannel-slurm submit --profile si", ["single-gpu"]),
        (slurm.cli, "crosschannel-slurm submit --comm", []),  # hidden
        (crosschannel.cli, "crosschannel pretrain --config gone --optim.", []),
        (crosschannel.cli, "crosschannel pretrain --out 'half", []),
    ],
)
def test_completions_at_the_cursor(module, line, expected, monkeypatch, capsys):
    assert complete_line(module, line, monkeypatch, capsys) == expected


def test_the_printed_line_enables_completion_in_bash():
    bin = Path(sys.executable).parent
    script = 'eval "$(crosschannel --completion)"; complete -p crosschannel'
    environment = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "crosschannel --complete" in done.stdout and not done.stderr
