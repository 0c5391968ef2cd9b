"""Fixtures that many tests share. Real photographs come from the embedded sample; the larger real data sets are
found through CROSSCHANNEL_TEST_DATA (default ../shared/data), and tests that need them skip by name without."""

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

# Two workers of pytest-xdist share two cores; the nets are so small that a second thread would mostly wait.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from forked import sessions as forked_sessions
from PIL import Image

torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and nohup a hang-up; so would its children.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
ROOT = Path(__file__).parent.parent


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection, which would copy them into each forked command."""
    gc.freeze()


_MARK = "CROSSCHANNEL_TEST_MODULE"
_POOLS = (b"resource_tracker", b"forkserver", b"loky")  # of libraries, which keep them for the next call


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left(request) -> Iterator[None]:
    """Processes that the tests of a module leave running are killed, and are an error."""
    mark = f"{_MARK}={request.module.__name__}-{os.getpid()}"
    before = _left(mark)
    name, value = mark.split("=")
    os.environ[name] = value
    yield
    del os.environ[name]
    deadline = time.monotonic() + 5
    while (left := _left(mark, before)) and time.monotonic() < deadline:  # some are about to end
        time.sleep(0.1)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert not left, f"left running: {left}"


def _left(mark: str, before: Collection[int] = ()) -> dict[int, str]:
    """Other running processes, by number, with their command lines: those with a variable in their environment, and
    forks, whose environment is that of the tests' start: children of this process and sessions of forked commands."""
    left = {}
    for process in {int(path.name) for path in Path("/proc").glob("[0-9]*")} - {os.getpid(), *before}:
        folder = Path("/proc", str(process))
        with contextlib.suppress(OSError):
            _, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            forked = int(parent) == os.getpid() or int(session) in forked_sessions
            if forked or mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                if command and not any(pool in command for pool in _POOLS):  # a zombie has none
                    left[process] = command.decode(errors="replace")
    return left


@pytest.fixture(scope="session")
def real_data() -> Path:
    path = Path(os.environ.get("CROSSCHANNEL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (set CROSSCHANNEL_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """The embedded photographs, (H, W, 3) uint8."""
    from crosschannel.data.sample import photographs

    images = photographs()
    return [np.array(Image.open(io.BytesIO(images.read(i))).convert("RGB")) for i in range(len(images))]


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory, photos) -> Path:
    """40 JPEG crops of real photographs in train/CLASS and 10 in val/CLASS."""
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
def few_crops() -> Iterator[None]:
    """Untrained nets take their statistics from 2 batches of crops instead of 10; not so in a test's ``all_crops``."""
    from crosschannel.hub import untrained

    whole = untrained.real_batches

    @functools.wraps(whole)
    def few(data, input, count=10, batch=16, seed=0):
        return whole(data, input, min(count, 2), batch, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrained, "real_batches", few)
        yield


@pytest.fixture
def all_crops(monkeypatch) -> None:
    from crosschannel.hub import untrained

    monkeypatch.setattr(untrained, "real_batches", untrained.real_batches.__wrapped__)


@pytest.fixture(scope="session", autouse=True)
def undrawn_curves() -> Iterator[None]:
    """The curve of a pretraining, a third of a small one's time, is drawn in its own test alone."""
    from crosschannel.commands import pretrain
    from crosschannel.files import atomic_write

    def undrawn(run, out, *_):
        with atomic_write(out) as part:
            part.write_bytes(b"not drawn")
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "validation_curve", undrawn)
        yield


@pytest.fixture(scope="session", autouse=True)
def small_classifiers() -> Iterator[None]:
    """torchvision's AlexNet and VGG have 64 units a fully connected layer instead of 4096: a tenth of the weights."""
    from torch import nn
    from torchvision import models

    class Linear(nn.Linear):
        def __init__(self, inputs: int, outputs: int):
            super().__init__(*(64 if size == 4096 else size for size in (inputs, outputs)))

    with pytest.MonkeyPatch.context() as patch:
        for net in (models.AlexNet, models.VGG):
            patch.setattr(sys.modules[net.__module__], "nn", SimpleNamespace(**{**vars(nn), "Linear": Linear}))
        yield


def _narrow(patch: pytest.MonkeyPatch) -> None:
    from crosschannel.models import alexnet, colornet, vgg

    for name in ("crosschannel", "caffenet", "split-brain"):
        patch.setitem(alexnet.VARIANTS, name, replace(alexnet.VARIANTS[name], widths=(24, 64, 96, 96, 64)))
    patch.setattr(vgg, "_BLOCKS", tuple((width // 4, count) for width, count in vgg._BLOCKS))
    patch.setattr(colornet, "_BLOCKS", {name: (row[0] // 4, *row[1:]) for name, row in colornet._BLOCKS.items()})


@pytest.fixture
def narrow_net() -> Iterator[None]:
    """AlexNet, VGG-16 and ColorNet at a quarter of their widths, in this process and its forks."""
    with pytest.MonkeyPatch.context() as patch:
        _narrow(patch)
        yield


@pytest.fixture(scope="module")
def narrow_nets() -> Iterator[pytest.MonkeyPatch]:
    """The same for all tests and fixtures of a module, but those with ``full_nets``."""
    with pytest.MonkeyPatch.context() as patch:
        _narrow(patch)
        yield patch


@pytest.fixture
def full_nets(narrow_nets) -> Iterator[None]:
    narrow_nets.undo()
    yield
    _narrow(narrow_nets)


@pytest.fixture(scope="session")
def chromium():
    """Debian's browser, by Playwright."""
    import shutil

    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
