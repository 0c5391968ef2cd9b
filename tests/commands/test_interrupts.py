"""Killed, told to stop, started twice: a run ends where the uninterrupted run ends."""

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from forked import Forked
from same_end import assert_same_end

from crosschannel.cli import main
from crosschannel.commands import pretrain
from crosschannel.errors import WORKER_LOST
from crosschannel.pretext.classification import Classification
from crosschannel.pretext.pretraining import Pretraining
from crosschannel.runs.folder import read_metrics
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.training import checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


def start(arguments) -> Forked:
    return Forked(lambda: main(arguments))


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_at_four_random_moments(small, finished_run, tmp_path, workers):
    moments, kills, run = random.Random(workers), 0, 0
    while kills < 4:
        out = tmp_path / f"run-{run}"
        process = start([*small, f"--runtime.workers={workers}", f"--out={out}"])
        process.wait_for("held-out images")
        try:
            process.wait(moments.uniform(0, 1.2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
        run += (out / "result.json").exists()  # a run may be killed when all is done but leaving
    assert main([*small, f"--runtime.workers={workers}", f"--out={out}"]) == 0
    for path in tmp_path.glob("run-*"):
        assert_same_end(path, finished_run)


def send_in(monkeypatch, place: str, number: int) -> None:
    """Send this process a signal from inside a phase of the run, once."""
    owner, name, skipped = {
        "training": (Pretraining, "step", 1),
        "validation": (Classification, "score", 0),
        "checkpoint": (checkpoints, "_digest", 0),  # written, and not yet there under its name
    }[place]
    original, calls = getattr(owner, name), itertools.count()

    def wrapper(*arguments, **options):
        if next(calls) == skipped:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapper)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("training", signal.SIGTERM),
        ("training", signal.SIGUSR2),
        ("training", signal.SIGINT),
        ("validation", signal.SIGINT),
        ("checkpoint", signal.SIGTERM),
    ],
)
def test_a_signal_saves_at_the_next_step_boundary_and_exits_75(
    small, finished_run, tmp_path, monkeypatch, capsys, place, number
):
    arguments = [*small, f"--out={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        send_in(patch, place, number)
        assert main(arguments) == 75
    assert f"stopped by {number.name}" in capsys.readouterr().err
    state = checkpoints.load(checkpoints.load_latest(tmp_path / "run" / "checkpoints"))
    assert 0 < state["step"] < 12
    assert state["step"] >= max((row["step"] for row in read_metrics(tmp_path / "run")), default=0)
    assert main(arguments) == 0
    assert_same_end(tmp_path / "run", finished_run)


@pytest.mark.parametrize(
    ("name", "number", "early"),
    [
        ("open_images", signal.SIGTERM, True),
        ("create", signal.SIGUSR2, True),
        ("save_backbone", signal.SIGTERM, False),
        ("validation_curve", signal.SIGUSR2, False),
    ],
)
def test_a_signal_before_or_after_the_loop_is_heard_too(
    small, finished_run, tmp_path, monkeypatch, capsys, name, number, early
):
    """From the moment that the folder is held until it is let go: the run is stopped or finished."""
    original, sent = getattr(pretrain, name), []

    def signalled(*arguments, **options):
        sent.append(number)
        os.kill(os.getpid(), number)
        return original(*arguments, **options)

    arguments = [*small, f"--out={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, name, signalled)
        assert main(arguments) == (75 if early else 0) and sent
    assert (f"stopped by {number.name}" in capsys.readouterr().err) == early
    assert main(arguments) == 0
    assert_same_end(tmp_path / "run", finished_run)


def test_a_storm_of_signals_ends_with_75(small, tmp_path):
    """From the first step on, until the process is gone: a real one, whose last moments are the interpreter's."""
    arguments = [*small, "--train.steps=5000", f"--out={tmp_path / 'run'}"]
    words = [sys.executable, "-m", "crosschannel.cli", *arguments]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert any("step 4/" in line for line in process.stderr)
        while process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGUSR2):
                process.send_signal(number)
            time.sleep(0.002)
        assert process.returncode == 75 and "Traceback" not in process.stderr.read()
    assert checkpoints.load_latest(tmp_path / "run" / "checkpoints")


def test_a_loader_worker_that_is_killed_is_not_the_commands_fault(small, tmp_path):
    """It has an exit code of its own, by which the launcher starts the job again."""
    process = start([*small, "--train.steps=5000", "--runtime.workers=2", f"--out={tmp_path / 'run'}"])
    process.wait_for("step 4/")
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    workers = [int(pid) for pid in listing.split()]
    assert len(workers) >= 2
    os.kill(workers[0], signal.SIGKILL)
    said = process.stderr.read()
    assert process.wait(60) == WORKER_LOST, said
    assert said.splitlines()[-1].startswith("crosschannel: a loader worker was killed") and "Traceback" not in said


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_something_over_is_the_same(small, tmp_path, monkeypatch, capsys, error):
    def broken_off(*_, **__):
        raise error
        yield

    monkeypatch.setattr("crosschannel.data.stream.DataLoader", broken_off)
    assert main([*small, f"--out={tmp_path / 'run'}"]) == WORKER_LOST
    assert "a loader worker was killed" in capsys.readouterr().err


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with InterruptFlag() as flag:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert flag.name == "SIGUSR2"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_still_saves(small, finished_run, tmp_path):
    arguments = [*small, "--runtime.workers=2", f"--out={tmp_path / 'run'}"]
    process = start(arguments)
    process.wait_for("step 4/12")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 75, process.stderr.read()
    assert "Traceback" not in process.stderr.read()
    assert main(arguments) == 0
    assert_same_end(tmp_path / "run", finished_run)


def test_no_worker_outlives_a_killed_run(small, tmp_path):
    process = start([*small, "--train.steps=5000", "--runtime.workers=2", f"--out={tmp_path / 'run'}"])
    process.wait_for("step 4/")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        listing = subprocess.run(["ps", "-eo", "sid,stat"], capture_output=True, text=True).stdout.split("\n")
        alive = [line for line in listing if line.split()[:1] == [str(process.pid)] and "Z" not in line]
        if not alive:
            return
        time.sleep(0.2)
    raise AssertionError(f"left behind: {alive}")


def test_two_processes_on_one_run_folder(small, tmp_path, capsys):
    arguments = [*small, "--train.steps=5000", f"--out={tmp_path / 'run'}"]
    first = start(arguments)
    try:
        first.wait_for("step 4/")
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"in use by process {first.pid} on " in error and error.count("\n") == 1
    finally:
        first.kill()
        first.wait()


def test_a_changed_number_of_workers_goes_on_bit_for_bit(small, finished_run, tmp_path, monkeypatch):
    arguments = [*small, f"--out={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        send_in(patch, "training", signal.SIGTERM)
        assert main(arguments) == 75
    assert main([*arguments, "--runtime.workers=2", "--runtime.keep=5"]) == 0
    assert_same_end(tmp_path / "run", finished_run)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_newest_checkpoint_is_named_and_the_run_still_ends_the_same(
    small, finished_run, tmp_path, capsys, damage
):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    (out / "result.json").unlink()
    newest = checkpoints.list_checkpoints(out / "checkpoints")[0]
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 3] ^= 1
    newest.write_bytes(data)
    assert main([*small, f"--out={out}"]) == 0
    assert re.search(rf"could not load \S*{re.escape(newest.name)}: ", capsys.readouterr().err.replace("\n", ""))
    assert_same_end(out, finished_run)
