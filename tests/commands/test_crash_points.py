"""Killed before each change to a file, or refused a change: the same command again ends as if nothing had happened.

Tried on a pretraining, a probe of cached features, `shard`, `export` and the answers of a study. Those of the first two
take some ten seconds, and always run: they stand in for random kills of every command.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_points import failures, states
from same_end import assert_same_end, without_speed
from tree import snapshot

from crosschannel.cli import main as crosschannel
from crosschannel.files import LOCK, PART
from crosschannel.runs.folder import read_metrics
from crosschannel.study.answers import Answers, Timing, read_answers
from crosschannel.study.manifest import read_study
from transfer.cli import main as transfer

NET = ["--model.name=alexnet", "--model.fc=0", "--crop.size=32", "--crop.resize=36"]
LOOP = ["--train.batch=4", "--train.steps=4", "--runtime.workers=0", "--runtime.checkpoint_every=2",
        "--runtime.log_every=1", "--runtime.tensorboard=false", "--device=cpu"]  # fmt: skip
PRETRAIN = [*NET, *LOOP, "--train.ema=0.9", "--runtime.eval_every=2", "--runtime.keep=1", "--val_images=4", "--out=run"]
PROBE = ["--config=quickstart", "--backbone=timm:test_resnet,weights=none,size=32,resize=36", "--layer=stage2",
         "--out=run", "--cache=disk", *LOOP]  # fmt: skip
FOREIGN = "mine.txt"
EVERY = pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])


def names(folder: Path) -> set[str]:
    """Relative paths below a folder, without the checksums of checkpoints, whose content is compared."""
    return {re.sub(r"-[0-9a-f]{16}\.pt$", ".pt", str(path.relative_to(folder))) for path in folder.rglob("*")}


def contents(folder: Path) -> frozenset:
    """All below a folder, with any process's lock and any name of a half-written file."""
    return frozenset(
        (re.sub(PART, ".part", name), entry[:2] if name.endswith(LOCK) else entry)
        for name, entry in snapshot(folder).items()
    )


def assert_durable(changes: list[str]) -> None:
    """Renamed files were synced before, and their folder after: a power cut leaves the old file or the new one.

    Appended logs and locks are exempt.
    """
    unsynced = set()
    for change, following in itertools.pairwise([*changes, ""]):
        kind, path = change.split(" ", 1)
        if kind == "open" and not path.endswith((".jsonl", LOCK)):
            unsynced.add(path)
        elif kind in ("sync", "remove"):
            unsynced.discard(path)
        elif kind == "rename":
            assert not unsynced and following == f"sync {Path(path).parent}", (change, unsynced, following)


class Command:
    """A command that is run in several folders, each with a file of the user's.

    Args:
        main: entry point of the program.
        words: arguments, with relative paths for outputs.
        folder: new folders are made here.
        patch: restores the working directory.
    """

    def __init__(self, main: Callable, words: list[str], folder: Path, patch: pytest.MonkeyPatch):
        self.main, self.words, self.folder, self.patch, self.tried = main, words, folder, patch, 0
        self.reference = self.new("reference")
        assert self.run(self.reference) == 0

    def new(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        (folder / FOREIGN).write_text("mine")
        return folder

    def run(self, folder: Path) -> int:
        self.patch.chdir(folder)
        return self.main(self.words)

    def killed(self) -> Iterator[Path]:
        """Folders as kill -9 leaves them, each different one once."""
        work, seen = self.new("killed"), set()
        changes = states(lambda: self.main(self.words), work, self.folder / "copies")
        assert_durable(changes)
        for number in range(len(changes)):
            folder = self.folder / "copies" / str(number)
            if (content := contents(folder)) not in seen:
                seen.add(content)
                self.tried += 1
                yield folder
        print(f"{self.tried} different states of {len(changes)} crash points")

    def failed(self, every: bool) -> Iterator[tuple[Path, str]]:
        """Folders after a run in which one change was refused, with the run's output."""
        attempts = failures(
            lambda: self.main(self.words), lambda n: self.new(f"failed-{n}"), self.folder / "changes", every
        )
        for folder, change, status, output in attempts:
            assert status in (0, 2), f"{change}: {status}\n{output}"
            assert "Traceback" not in output, change
            if status == 2:
                assert re.match(r"(crosschannel|transfer): ", output.splitlines()[-1]), f"{change}\n{output}"
            assert not [name for name in names(folder) if re.search(PART, name) or name.endswith(LOCK)], change
            self.tried += 1
            yield folder, output
        print(f"{self.tried} refused changes")

    def assert_clean(self, folder: Path) -> None:
        assert names(folder) == names(self.reference) and (folder / FOREIGN).read_text() == "mine"


@pytest.fixture
def pretraining(narrow_net, photo_folder, tmp_path, monkeypatch):
    return Command(crosschannel, ["pretrain", f"--data={photo_folder}", *PRETRAIN], tmp_path, monkeypatch)


def test_a_pretraining_killed_at_any_moment_ends_the_same(pretraining):
    for folder in pretraining.killed():
        assert pretraining.run(folder) == 0
        assert_same_end(folder / "run", pretraining.reference / "run")
        pretraining.assert_clean(folder)
    assert pretraining.tried > 30


@EVERY
def test_a_pretraining_refused_any_write_ends_the_same(pretraining, every):
    for folder, output in pretraining.failed(every):
        assert pretraining.run(folder) == 0
        has_all_rows = "metrics.jsonl has gaps" not in output
        assert_same_end(folder / "run", pretraining.reference / "run", log=has_all_rows)
        if has_all_rows and "could not save the picture of step" not in output:
            pretraining.assert_clean(folder)
    assert pretraining.tried > 10


@pytest.fixture
def probe(photo_folder, tmp_path, monkeypatch):
    """On eight images, and two for validation."""
    data = tmp_path / "data"
    for part in ("train", "val"):
        for name in ("class0", "class1"):
            shutil.copytree(photo_folder / part / name, data / part / name)
    monkeypatch.setenv("CROSSCHANNEL_CACHE", "cache")
    return Command(transfer, ["linear-probe", f"--data={data}", *PROBE], tmp_path, monkeypatch)


def assert_same_probe(command: Command, folder: Path, log: bool = True) -> None:
    runs = (folder / "run", command.reference / "run")
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert contents(folder / "cache") == contents(command.reference / "cache")
    if log:
        logs = [[without_speed(row) for row in read_metrics(run)] for run in runs]
        assert logs[0] == logs[1]


def test_a_cached_probe_killed_at_any_moment_ends_the_same(probe):
    for folder in probe.killed():
        assert probe.run(folder) == 0
        assert_same_probe(probe, folder)
        probe.assert_clean(folder)
    assert probe.tried > 30


@pytest.mark.slow
def test_a_cached_probe_refused_any_write_ends_the_same(probe):
    for folder, output in probe.failed(every=True):
        assert probe.run(folder) == 0
        assert_same_probe(probe, folder, log="metrics.jsonl has gaps" not in output)
        probe.assert_clean(folder)
    assert probe.tried > 60


@pytest.fixture(params=["shard", "export"])
def writer(request, photo_folder, tmp_path, monkeypatch):
    """A command whose output depends on nothing but its input."""
    source = "random:timm:test_resnet,size=32,resize=36"
    words = {
        "shard": ["shard", str(photo_folder), "shards", "--size=48"],
        "export": ["export", source, "--format=timm", "--out=exported/net.pth"],
    }
    return Command(crosschannel, words[request.param], tmp_path, monkeypatch)


def assert_written(command: Command, folder: Path, capsys) -> None:
    """The output is complete; if the crash came after its last change, `shard` refuses to write it again."""
    status = command.run(folder)
    assert status == 0 or "is not an empty folder" in capsys.readouterr().err
    assert {name: entry for name, entry in snapshot(folder).items() if not name.endswith(".jsonl")} == {
        name: entry for name, entry in snapshot(command.reference).items() if not name.endswith(".jsonl")
    }


def test_output_of_a_command_killed_at_any_moment_is_complete(writer, capsys):
    for folder in writer.killed():
        assert_written(writer, folder, capsys)
        writer.assert_clean(folder)
    assert writer.tried > 8


@EVERY
def test_output_of_a_command_refused_any_write_is_complete(writer, every, capsys):
    for folder, _ in writer.failed(every):
        assert_written(writer, folder, capsys)
        writer.assert_clean(folder)
    assert writer.tried >= 4


ACKNOWLEDGED = "acknowledged"
TIMING = Timing(1000, 1000, 500, False)


def take_part(folder: Path) -> int:
    """Answer all pairs of a study, or those that are left, and note each answer as soon as it is acknowledged."""
    answers = Answers(*read_study(folder / "study"))
    try:
        token = folder / "token"
        session = token.read_text() if token.is_file() else answers.begin("p")
        token.write_text(session)
        while (state := answers.state(session)).trial:
            answers.picture(session, state.trial, "left")
            answers.answer(session, state.trial, "left", TIMING)
            with (folder / ACKNOWLEDGED).open("a") as file:
                file.write(f"{state.number}\n")
    finally:
        answers.close()
    return 0


def test_acknowledged_answers_of_a_study_outlive_a_kill_at_any_moment(photo_folder, tmp_path):
    work = tmp_path / "work"
    words = ["--methods", "grey", "donors=random", "--images=4", "--pairs=3", "--practice=1", "--size=32"]
    work.mkdir()
    assert crosschannel(["study", "build", f"--data={photo_folder}", *words, f"--out={work / 'study'}"]) == 0
    changes = states(lambda: take_part(work), work, tmp_path / "copies")
    assert sum(change.startswith("sql") for change in changes) > 20
    for number in range(len(changes)):
        folder = tmp_path / "copies" / str(number)
        acknowledged = folder / ACKNOWLEDGED
        known = set(map(int, acknowledged.read_text().split())) if acknowledged.is_file() else set()
        if (folder / "study" / "answers.db").is_file():
            answers = Answers(*read_study(folder / "study"))
            answers.close()
            _, trials = read_answers(folder / "study")
            assert known <= {trial["number"] for trial in trials if trial["answer"]}, changes[number]
        if not (folder / "token").is_file() or (folder / "token").read_text():
            take_part(folder)
            _, trials = read_answers(folder / "study")
            assert [trial["answer"] for trial in trials] == ["left"] * 4
            assert {path.name for path in (folder / "study").glob("answers*")} == {"answers.db"}
