"""What `transfer` and `crosschannel-slurm` refuse leaves the file system as it was."""

import shutil

import pytest
from tree import snapshot

from slurm.cli import main as slurm
from transfer.cli import main as transfer

REFUSED = [
    ("transfer", "report {run} --out {own}", "report.md already exists"),
    ("transfer", "report {run} --out {own}/w.txt", "is a file"),
    ("transfer", "report {run} --out {run}", "{run}"),
    ("transfer", "report {own} --out new/deep", "it is not a run folder"),
    ("transfer", "report gone --out new", "the run folder 'gone' does not exist"),
    ("transfer", "compare {run} {own}", "two finished run folders"),
    ("transfer", "knn --backbone gone.pth --data {photos} --out new/deep", "unknown source"),
    ("transfer", "knn --backbone {net} --data gone --out new", "gone"),
    ("transfer", "knn --backbone {net} --data {photos} --k=[1000] --workers=0 --out new", "k must"),
    ("transfer", "knn --backbone {net} --data {photos} --out {own}", "not empty"),
    ("transfer", "knn --backbone {net} --data {photos} --out {run}", "not a run of `knn`"),
    ("transfer", "linear-probe --backbone {net} --data {photos} --layer=conv9 --out new", "conv9"),
    ("transfer", "linear-probe --backbone random:alexnet,size=9 --data {photos} --out new/deep", "9 px"),
    ("crosschannel-slurm", "submit --profile=local -- transfer knn --backbone gone --data {photos} --out new", "gone"),
    ("crosschannel-slurm", "submit --profile=local --code=[nopackage] -- crosschannel zoo", "nopackage"),
    ("crosschannel-slurm", "submit --profile=local -- transfer report {run} --out new --title", "title"),
    ("crosschannel-slurm", "resume {run}", "was not submitted"),
    ("crosschannel-slurm", "cancel {run}", "no jobs"),
    ("crosschannel-slurm", "logs {run}", "no jobs"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "command", "words"), REFUSED, ids=[f"{c[:60]!r}" for _, c, _ in REFUSED])
def test_a_refused_command_leaves_the_file_system_as_it_was(
    finished_probe, photo_folder, tmp_path, monkeypatch, capsys, program, command, words
):
    own, run = tmp_path / "own", tmp_path / "run"
    own.mkdir()
    for name in ("tables.tex", "report.md", "w.txt"):
        (own / name).write_text(f"my own {name}")
    shutil.copytree(finished_probe, run)
    monkeypatch.chdir(tmp_path)
    places = {"own": own, "run": run, "photos": photo_folder, "net": "random:alexnet,fc=0,size=64"}
    if command.endswith("--out {run}") and "report" in command:
        (run / "report.html").write_text("mine")
        words = "report.html"
    before = snapshot(tmp_path)
    main = {"transfer": transfer, "crosschannel-slurm": slurm}[program]
    assert main(command.format(**places).split()) == 2
    assert words in capsys.readouterr().err and snapshot(tmp_path) == before
