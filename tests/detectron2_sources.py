"""detectron2 for tests: the Python sources of v0.6 without the compiled extension.

They are downloaded from the package index, where they are called pb1-detectron2, to build/, outside the virtual
environment. Set DETECTRON2_SOURCES to use the sources in another folder, such as an upstream checkout.
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
    """Make detectron2 importable in this process and return its version; skip the test if the index lacks it."""
    folder = Path(os.environ.get("DETECTRON2_SOURCES") or _download_once())
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


def _download_once() -> Path:
    folder = ROOT / "build" / "detectron2-0.6"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # one worker downloads, the others wait
        if not folder.is_dir():
            unpacked = _unpack(_download(Path(temporary)))
            unpacked.rename(folder)
    return folder


def _download(folder: Path) -> Path:
    """Download the archive with pip, which checks its hash; skip the test if the index lacks it."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{_NAME}==0.6 --hash=sha256:{_SHA256}\n")
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *flags, "-r", str(requirement), "--dest", str(folder)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    archives = list(folder.glob("*.tar.gz"))
    if not archives and "DO NOT MATCH" not in completed.stderr:
        pytest.skip(f"the package index has no {_NAME} 0.6: {completed.stderr.strip()[-200:]}")
    assert archives and completed.returncode == 0, completed.stderr
    return archives[0]


def _unpack(path: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(path.parent, filter="data")
        return path.parent / archive.getnames()[0].split("/")[0]
