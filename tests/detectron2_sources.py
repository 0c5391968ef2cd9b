"""detectron2 for tests: the Python sources of v0.6, which the package index has as pb1-detectron2, without its compiled
extension. They stay outside the virtual environment, in build/.

DETECTRON2_SOURCES names a folder of other sources, such as a checkout of upstream's.
"""

import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest

ROOT = Path(__file__).parent.parent
_NAME = "pb1-detectron2"


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
    if not (folder / "detectron2").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", f"{_NAME}==0.6"]
        found = subprocess.run(
            [sys.executable, "-m", "pip", *words, "--dest", str(folder)], capture_output=True, text=True, timeout=300
        )
        archives = sorted(folder.glob("*.tar.gz"))
        if found.returncode or not archives:
            pytest.skip(f"the package index has no {_NAME} 0.6: {found.stderr.strip()[-200:]}")
        with tarfile.open(archives[0]) as archive:
            top = archive.getnames()[0].split("/")[0]
            archive.extractall(folder / "unpacked", filter="data")
        (folder / "unpacked" / top / "detectron2").rename(folder / "detectron2")
    return folder
