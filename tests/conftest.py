"""Shared fixtures.

Photographs come from the embedded sample. Larger data sets are read from CROSSCHANNEL_TEST_DATA (default
../shared/data); tests that need them are skipped if the folder is missing.
"""

import contextlib
import functools
import gc
import io
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

# pytest-xdist already runs a worker per core, and the nets are so small that a second thread would mostly wait.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from forked import sessions as forked_sessions
from PIL import Image

torch.set_num_threads(1)
# Background jobs of a shell ignore SIGINT, and nohup ignores SIGHUP. Children of the tests would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
ROOT = Path(__file__).parent.parent


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection, which would copy their memory in each forked command."""
    gc.freeze()


_MARK = "CROSSCHANNEL_TEST_MODULE"
_POOLS = (b"resource_tracker", b"forkserver", b"loky")  # helper processes that libraries keep for the next call


@pytest.fixture(scope="module", autouse=True)
def no_leftover_processes(request) -> Iterator[None]:
    """Kill processes that the tests of a module leave running, and fail if there are any."""
    mark = f"{_MARK}={request.module.__name__}-{os.getpid()}"
    before = _marked_processes(mark)
    name, value = mark.split("=")
    os.environ[name] = value
    yield
    del os.environ[name]
    deadline = time.monotonic() + 5
    while (left := _marked_processes(mark, before)) and time.monotonic() < deadline:  # some may be about to exit
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left running: {left}"


def _marked_processes(mark: str, ignored: Collection[int] = ()) -> dict[int, str]:
    """Return the command lines of other processes that the tests started, by process id.

    These have the variable ``mark`` in their environment. Forks do not, since /proc shows the environment with which
    the tests were started; they are children of this process or members of a forked command's session.
    """
    processes = {}
    for pid in {int(path.name) for path in Path("/proc").glob("[0-9]*")} - {os.getpid(), *ignored}:
        folder = Path("/proc", str(pid))
        with contextlib.suppress(OSError):
            _, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            is_fork = int(parent) == os.getpid() or int(session) in forked_sessions
            if is_fork or mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                if command and not any(pool in command for pool in _POOLS):  # zombies have no command line
                    processes[pid] = command.decode(errors="replace")
    return processes


@pytest.fixture(scope="session")
def real_data() -> Path:
    path = Path(os.environ.get("CROSSCHANNEL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; set CROSSCHANNEL_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Embedded photographs, (H, W, 3) uint8."""
    from crosschannel.data.sample import photographs

    images = photographs()
    return [np.array(Image.open(io.BytesIO(images.read(i))).convert("RGB")) for i in range(len(images))]


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory, photos) -> Path:
    """Folder of JPEG crops of the embedded photographs: 40 in train/CLASS and 10 in val/CLASS."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for label, photo in enumerate(photos):
        for i in range(5):
            split = "train" if i < 4 else "val"
            top = generator.integers(0, photo.shape[0] - 80)
            left = generator.integers(0, photo.shape[1] - 96)
            path = root / split / f"class{label}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[top : top + 80, left : left + 96]).save(path, quality=92)
    return root


@pytest.fixture(scope="session", autouse=True)
def few_initial_crops() -> Iterator[None]:
    """Initialise untrained nets from 2 batches of crops instead of 10, except in tests that use ``all_crops``."""
    from crosschannel.hub import untrained

    original = untrained.training_batches

    @functools.wraps(original)
    def few_batches(data, input, count=10, batch=16, seed=0):
        return original(data, input, min(count, 2), batch, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrained, "training_batches", few_batches)
        yield


@pytest.fixture
def all_crops(monkeypatch) -> None:
    from crosschannel.hub import untrained

    monkeypatch.setattr(untrained, "training_batches", untrained.training_batches.__wrapped__)


@pytest.fixture(scope="session", autouse=True)
def placeholder_curves() -> Iterator[None]:
    """Write a placeholder for the validation curve, whose plot takes a third of a small run's time.

    The plot has its own tests.
    """
    from crosschannel.commands import pretrain
    from crosschannel.files import atomic_write

    def write_placeholder(run, out, *_):
        with atomic_write(out) as part:
            part.write_bytes(b"placeholder")
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "validation_curve", write_placeholder)
        yield


@pytest.fixture(scope="session", autouse=True)
def small_classifiers() -> Iterator[None]:
    """Reduce fc layers of torchvision's AlexNet and VGG from 4,096 to 64 units: a tenth of the weights."""
    from torch import nn
    from torchvision import models

    class Linear(nn.Linear):
        def __init__(self, inputs: int, outputs: int):
            super().__init__(*(64 if size == 4096 else size for size in (inputs, outputs)))

    with pytest.MonkeyPatch.context() as patch:
        for net in (models.AlexNet, models.VGG):
            patch.setattr(sys.modules[net.__module__], "nn", SimpleNamespace(**{**vars(nn), "Linear": Linear}))
        yield


def _patch_widths(patch: pytest.MonkeyPatch) -> None:
    from crosschannel.models import alexnet, colornet, vgg

    for name in ("crosschannel", "caffenet", "split-brain"):
        patch.setitem(alexnet.VARIANTS, name, replace(alexnet.VARIANTS[name], widths=(24, 64, 96, 96, 64)))
    patch.setattr(vgg, "_BLOCKS", tuple((width // 4, count) for width, count in vgg._BLOCKS))
    patch.setattr(colornet, "_BLOCKS", {name: (row[0] // 4, *row[1:]) for name, row in colornet._BLOCKS.items()})


@pytest.fixture
def narrow_net() -> Iterator[None]:
    """Divide the widths of AlexNet, VGG-16 and ColorNet by four, in this process and its forks."""
    with pytest.MonkeyPatch.context() as patch:
        _patch_widths(patch)
        yield


@pytest.fixture(scope="module")
def narrow_nets() -> Iterator[pytest.MonkeyPatch]:
    """Like ``narrow_net``, for all tests and fixtures of a module except those that use ``full_nets``."""
    with pytest.MonkeyPatch.context() as patch:
        _patch_widths(patch)
        yield patch


@pytest.fixture
def full_nets(narrow_nets) -> Iterator[None]:
    narrow_nets.undo()
    yield
    _patch_widths(narrow_nets)


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, driven by Playwright."""
    import shutil

    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
