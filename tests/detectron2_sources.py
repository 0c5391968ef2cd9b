"""detectron2 for tests: the Python sources of v0.6, which the package index has as pb1-detectron2, without its compiled
extension. They stay outside the virtual environment, in build/.

DETECTRON2_SOURCES names a folder of other sources, such as a checkout of upstream's.
"""

import fcntl
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest

ROOT = Path(__file__).parent.parent
_NAME, _SHA256 = "pb1-detectron2", "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"


def add_detectron2() -> str:
    """Make ``import detectron2`` work in this process; returns its version. Skips where the index lacks it."""
    folder = Path(os.environ.get("DETECTRON2_SOURCES") or _downloaded())
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        sys.modules.setdefault("detectron2._C", ModuleType("detectron2._C"))
        for name, kind in {"bool": bool, "int": int, "float": float, "object": object}.items():
            if name not in np.__dict__:
                setattr(np, name, kind)
        if not hasattr(PIL.Image, "LINEAR"):
            PIL.Image.LINEAR = PIL.Image.BILINEAR
        importlib.invalidate_caches()
    return importlib.import_module("detectron2").__version__


def _downloaded() -> Path:
    folder = ROOT / "build" / "detectron2-0.6"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # one worker downloads, the others wait
        if not folder.is_dir():
            top = _unpack(_download(Path(temporary)))
            top.rename(folder)
    return folder


def _download(folder: Path) -> Path:
    """The archive, checked against its hash by pip; anything but an index that lacks it is an error."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{_NAME}==0.6 --hash=sha256:{_SHA256}\n")
    words = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *words, "-r", str(requirement), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    archives = list(folder.glob("*.tar.gz"))
    if not archives and "DO NOT MATCH" not in done.stderr:
        pytest.skip(f"the package index has no {_NAME} 0.6: {done.stderr.strip()[-200:]}")
    assert archives and done.returncode == 0, done.stderr
    return archives[0]


def _unpack(path: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(path.parent, filter="data")
        return path.parent / archive.getnames()[0].split("/")[0]
