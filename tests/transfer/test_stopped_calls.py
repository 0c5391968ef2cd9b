"""A call from Python leaves no process behind, and a stopped script ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from devkits import make_devkit
from torch import nn

import transfer
from crosschannel import UserError, wrap
from crosschannel.data import CentreCrop, MemoryImages, Stream, load_batches, stream
from crosschannel.data.sample import photographs
from crosschannel.runs.interrupts import Interrupted

LABELLED, DEVKIT, MASKS = "labelled", "devkit", "masks"
CALLS = {  # protocol: (kind of data, arguments)
    "linear_probe": (LABELLED, "net, data, config='quickstart', batch=4, steps=10**6, cache='off'"),
    "knn": (LABELLED, "net, data, batch=1"),
    "few_shot": (LABELLED, "net, data, batch=1"),
    "svm": (DEVKIT, "net, data, batch=1"),
    "classify": (DEVKIT, "net, data, size=32, calibrate=False, batch=4, steps=10**6"),
    "detect": (DEVKIT, "'random:alexnet', data, config='voc-mini', steps=10**6"),
    "segment": (MASKS, "net, data, calibrate=False, batch=4, accumulate=1, steps=10**6"),
    "dense": (MASKS, "net, data, batch=4"),
}
SCRIPT = """
import multiprocessing, time
import transfer
from torch import nn
from crosschannel import wrap
from crosschannel.data.images import AnnotatedImages
from transfer.labelled import open_labelled
from transfer.pascal.devkit import open_devkit
from transfer.pascal.masks import open_masks

class Slow(AnnotatedImages):
    def files(self, index):
        time.sleep(0.3 if multiprocessing.parent_process() else 0)
        return super().files(index)

net = wrap(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2)), size=32)
config = {config}()
{sets}
split = {opener}({data!r}, config)
data = (Slow(split.train), Slow(split.test))
transfer.{protocol}({arguments}, workers=2)
"""
OPENERS = {LABELLED: "open_labelled", DEVKIT: "open_devkit", MASKS: "open_masks"}
SIGNALS = {
    "SIGTERM": lambda process: process.terminate(),
    "SIGINT": lambda process: process.send_signal(signal.SIGINT),
    "Ctrl-C": lambda process: os.killpg(process.pid, signal.SIGINT),  # a terminal sends it to the whole group
}
QUICK = {("knn", "SIGTERM"), ("classify", "Ctrl-C")}


def of_session(session: int) -> list[int]:
    """Return the processes of a session, without zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def stopped_midway(script: str, how: str) -> tuple[int, str]:
    """Stop a script once its workers run; returns exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while len(of_session(process.pid)) < 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no workers"
            time.sleep(0.02)
        time.sleep(0.3)
        SIGNALS[how](process)
        said = process.communicate(timeout=60)[1]  # ten seconds, and more on a busy machine
        time.sleep(0.1)
        assert of_session(process.pid) == []
        return process.returncode, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def devkit(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos, 20, 10, masks=True)


@pytest.mark.parametrize(
    ("protocol", "how"),
    [
        pytest.param(protocol, how, marks=[] if (protocol, how) in QUICK else pytest.mark.slow)
        for protocol in CALLS
        for how in SIGNALS
    ],
)
def test_a_script_stopped_during_a_call_ends(protocol, how, photo_folder, devkit, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path))
    kind, arguments = CALLS[protocol]
    name = next(name for name in transfer.__all__ if name.lower() == f"{protocol}config".replace("_", ""))
    sets = "" if kind == LABELLED else "config.train_set, config.test_set = '2007:trainval', '2007:test'"
    data = str(photo_folder if kind == LABELLED else devkit)
    script = SCRIPT.format(
        protocol=protocol, config=f"transfer.{name}", sets=sets, opener=OPENERS[kind], data=data, arguments=arguments
    )
    code, said = stopped_midway(script, how)
    number = "SIGTERM" if how == "SIGTERM" else "SIGINT"
    assert code == 1 and said.splitlines()[-1] == f"{Interrupted.__module__}.Interrupted: {number}"


def test_a_script_with_an_open_loader_ends():
    script = (
        "from crosschannel.data import CentreCrop, Stream, load_batches, open_images\n"
        "images = open_images('builtin:sample')[0]\n"
        "batches = load_batches(Stream(images, CentreCrop(24, 32)), 0, 480, 4, workers=2)\n"
        "next(batches)\nimport time\ntime.sleep(600)"
    )
    code, said = stopped_midway(script, "Ctrl-C")
    assert code == -signal.SIGINT and said.splitlines()[-1] == "KeyboardInterrupt"


class Failing(nn.Module):
    """Raises an error in its fourth forward pass."""

    def __init__(self, error: BaseException | None):
        super().__init__()
        self.conv, self.error, self.passes = nn.Conv2d(3, 4, 3), error, 0

    def forward(self, x):
        self.passes += 1
        if self.error and self.passes > 3:
            raise self.error
        return self.conv(x)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (None, None),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), UserError),  # raised by the user's net
        (ValueError("odd"), UserError),
        (UserError("refused"), UserError),
        (Interrupted("SIGUSR2"), UserError),
        (MemoryError(), UserError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_no_worker_outlives_a_call_whose_error_is_held(error, seen):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)
    data, held = (pixels, np.arange(60) % 2), None
    try:
        net = Failing(None)
        backbone = wrap(net, size=16)
        net.error, net.passes = error, 0
        transfer.knn(backbone, data, "conv", k=[1], batch=2, workers=2)
    except BaseException as caught:
        held = caught  # with the frames of its traceback, as a notebook does
    assert type(held) is (seen or type(None))
    assert multiprocessing.active_children() == []


def test_a_busy_worker_is_not_waited_for(monkeypatch):
    class Stuck(MemoryImages):
        def read(self, index):
            time.sleep(600 if index > 3 else 0)
            return super().read(index)

    photo = photographs().read(0)
    images = Stuck([str(i) for i in range(16)], [0] * 16, [photo] * 16)
    monkeypatch.setattr(stream, "_GRACE", 0.2)
    batches = load_batches(Stream(images, CentreCrop(24, 32)), 0, 16, 2, workers=2)
    assert isinstance(next(batches).images, torch.Tensor)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 10
    assert multiprocessing.active_children() == []
