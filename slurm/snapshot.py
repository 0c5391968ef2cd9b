"""A copy of the code that a job runs, so that later edits do not change what is queued; with git's word on it."""

import compileall
import importlib.util
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from crosschannel.command_line import config_folder
from crosschannel.errors import UserError
from crosschannel.factories import working_folder_importable
from crosschannel.version import __version__

PACKAGES = ("crosschannel", "transfer", "slurm")


def snapshot(target: Path, more: Sequence[str] = ()) -> None:
    """Copy our packages and configs, and the user's, and record git's state.

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
            shutil.copytree(source, part / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
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
    spec = _spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"no package {name!r} to take along: code names top-level packages or modules of yours")
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations else origin


def _spec(name: str) -> ModuleSpec | None:
    with working_folder_importable():
        return importlib.util.find_spec(name) if name.isidentifier() else None


def is_local(package: str) -> bool:
    """Whether a package of the user's is not installed in the environment, and so may be edited while a job waits."""
    spec = _spec(package)
    if package in PACKAGES or spec is None or spec.origin is None:
        return False
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}
    return not installed & set(Path(spec.origin).resolve().parents)


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
