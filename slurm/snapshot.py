"""A copy of the code that a job runs, so that later edits do not change what is queued; with git's word on it."""

import compileall
import fnmatch
import importlib.util
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from crosschannel.config.load import config_folder
from crosschannel.errors import UserError
from crosschannel.factories import working_folder_importable
from crosschannel.files import is_run_folder
from crosschannel.version import __version__

PACKAGES = ("crosschannel", "transfer", "slurm")


def snapshot(target: Path, more: Sequence[str] = ()) -> None:
    """Copy this library, its configs and the user's packages, and record their git state.

    Args:
        target: a new folder, to be put on PYTHONPATH.
        more: the user's top-level packages and modules that the job imports.

    Raises:
        UserError: no such package.
    """
    sources = {name: _source(name) for name in (*PACKAGES, *more)}  # all are there before anything is made
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    states = {}
    for name, source in sources.items():
        if source.is_dir():
            shutil.copytree(source, part / name, ignore=_left_out)
        else:
            shutil.copy(source, part / source.name)
        states |= _git_state(source.parent, part)
    if not (part / "crosschannel" / "configs").is_dir():
        shutil.copytree(config_folder(), part / "configs")
    described = {"version": __version__, "packages": [*PACKAGES, *more], "git": states}
    (part / "code.json").write_text(json.dumps(described, indent=2) + "\n")
    compileall.compile_dir(part, quiet=2)  # once, and not by every rank
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def _source(name: str) -> Path:
    source = _find_source(name)
    if source is None or name == "configs":  # a folder of ours in the copy
        raise UserError(f"no package {name!r} to take along: code names top-level packages or modules of yours")
    return source


def _find_source(name: str) -> Path | None:
    """The folder of a package, with or without ``__init__.py``, or the file of a module; None if there is none."""
    with working_folder_importable():
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec is not None and spec.has_location else None


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Compiled files, and folders of runs, which hold the copy itself."""
    runs = {name for name in names if is_run_folder(Path(folder, name)) or Path(folder, name, "slurm").is_dir()}
    return runs | set(fnmatch.filter(names, "*.pyc")) | {"__pycache__"} & set(names)


def is_local(package: str) -> bool:
    """Whether a package is user code outside site-packages, which may change while a job is queued."""
    source = _find_source(package)
    if package in PACKAGES or source is None:
        return False
    in_packages = {"site-packages", "dist-packages"} & {parent.name for parent in source.parents}
    return not in_packages and Path(sysconfig.get_path("stdlib")).resolve() not in source.parents


def _git_state(folder: Path, target: Path) -> dict[str, dict[str, object]]:
    """The commit of a checkout and, as ``FOLDER.patch``, what differs from it; nothing outside a checkout."""
    top, commit = (_git(folder, "rev-parse", what).decode().strip() for what in ("--show-toplevel", "HEAD"))
    if not commit:
        return {}
    patch, name = _git(folder, "diff", "--binary", "HEAD"), f"{Path(top).name}.patch"
    if patch:
        (target / name).write_bytes(patch)
    untracked = _git(Path(top), "ls-files", "--others", "--exclude-standard").decode(errors="replace").splitlines()
    return {top: {"commit": commit, "patch": name if patch else None, "untracked": untracked[:100]}}


def _git(folder: Path, *command: str) -> bytes:
    """What git says; nothing where there is no git or no checkout."""
    try:
        asked = ["git", "-C", str(folder), *command]
        return subprocess.run(asked, capture_output=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return b""
