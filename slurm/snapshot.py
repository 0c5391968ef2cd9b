"""Copies of the code for jobs, so that later edits do not affect queued jobs. Each copy records its git state."""

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


def snapshot(target: Path, user_packages: Sequence[str] = ()) -> None:
    """Copy this library, its configs and the user's packages, and record their git state.

    Args:
        target: folder to create, which the job puts on PYTHONPATH.
        user_packages: names of the user's top-level packages and modules that the job imports.

    Raises:
        UserError: a package was not found.
    """
    sources = {name: _source(name) for name in (*PACKAGES, *user_packages)}  # checked before any file is written
    temp_dir = target.with_name(target.name + ".part")
    shutil.rmtree(temp_dir, ignore_errors=True)
    temp_dir.mkdir(parents=True)
    git_states = {}
    for name, source in sources.items():
        if source.is_dir():
            shutil.copytree(source, temp_dir / name, ignore=_ignored_names)
        else:
            shutil.copy(source, temp_dir / source.name)
        git_states |= _git_state(source.parent, temp_dir)
    if not (temp_dir / "crosschannel" / "configs").is_dir():
        shutil.copytree(config_folder(), temp_dir / "configs")
    metadata = {"version": __version__, "packages": [*PACKAGES, *user_packages], "git": git_states}
    (temp_dir / "code.json").write_text(json.dumps(metadata, indent=2) + "\n")
    compileall.compile_dir(temp_dir, quiet=2)  # so that the ranks need not compile it
    shutil.rmtree(target, ignore_errors=True)
    temp_dir.rename(target)


def _source(name: str) -> Path:
    source = _find_source(name)
    if source is None or name == "configs":  # this name is reserved for the copy of the library's configs
        raise UserError(f"no package {name!r} to copy; code must list your top-level packages or modules")
    return source


def _find_source(name: str) -> Path | None:
    """Return the folder of a package, with or without ``__init__.py``, or the file of a module; None if not found."""
    with working_folder_importable():
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec is not None and spec.has_location else None


def _ignored_names(folder: str, names: list[str]) -> set[str]:
    """Select the names to ignore: compiled files and run folders, which may contain the copy itself."""
    runs = {name for name in names if is_run_folder(Path(folder, name)) or Path(folder, name, "slurm").is_dir()}
    return runs | set(fnmatch.filter(names, "*.pyc")) | {"__pycache__"} & set(names)


def is_local(package: str) -> bool:
    """Return whether a package is user code outside site-packages, which may change while a job is queued."""
    source = _find_source(package)
    if package in PACKAGES or source is None:
        return False
    is_installed = {"site-packages", "dist-packages"} & {parent.name for parent in source.parents}
    return not is_installed and Path(sysconfig.get_path("stdlib")).resolve() not in source.parents


def _git_state(folder: Path, target: Path) -> dict[str, dict[str, object]]:
    """Return the commit of a checkout, and write its uncommitted changes to ``FOLDER.patch``; {} outside a checkout."""
    top, commit = (_git(folder, "rev-parse", arg).decode().strip() for arg in ("--show-toplevel", "HEAD"))
    if not commit:
        return {}
    patch, name = _git(folder, "diff", "--binary", "HEAD"), f"{Path(top).name}.patch"
    if patch:
        (target / name).write_bytes(patch)
    untracked = _git(Path(top), "ls-files", "--others", "--exclude-standard").decode(errors="replace").splitlines()
    return {top: {"commit": commit, "patch": name if patch else None, "untracked": untracked[:100]}}


def _git(folder: Path, *command: str) -> bytes:
    """Return the output of a git command; empty if git fails or is not installed."""
    try:
        argv = ["git", "-C", str(folder), *command]
        return subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return b""
