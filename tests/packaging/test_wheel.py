"""The wheel that the source archive builds pretrains from an empty folder, with the dependencies that it declares."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def run(*command, cwd, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    (source,) = (path for path in out.iterdir() if path.is_dir())
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=source)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_code_configs_prior_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "crosschannel/py.typed",
        "crosschannel/cli.py",
        "crosschannel/color/priors/imagenet-256.npz",
        "transfer/py.typed",
        "transfer/cli.py",
        "slurm/py.typed",
        "slurm/profiles/a100.yaml",
        *(f"crosschannel/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")),
    } <= names
    assert not any(name.startswith(("tests", "docs", "benchmarks")) for name in names)


def needed(requirements: Iterable[str]) -> Iterable[Distribution]:
    """Installed distributions that satisfy requirements, and what those require in turn."""
    found: dict[tuple[str, str], Distribution] = {}
    queue = [(Requirement(text), "") for text in requirements]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for key in [(requirement.name, extra) for extra in ("", *requirement.extras)]:
            if key not in found:
                found[key] = distribution(requirement.name)
                assert requirement.specifier.contains(found[key].version, prereleases=True), requirement
                queue += [(Requirement(text), key[1]) for text in found[key].requires or ()]
    return found.values()


@pytest.mark.system
def test_it_pretrains_with_the_dependencies_that_it_declares(wheel, tmp_path):
    """In an environment of its own, which links to the installed packages that it needs, and to no others."""
    venv, work = tmp_path / "venv", tmp_path / "empty"
    work.mkdir()
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=work)
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=work)
    site = next(venv.glob("lib/python*/site-packages"))
    (ours,) = Distribution.discover(name="crosschannel", path=[str(site)])
    for package in needed(ours.requires):
        for name in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(package.locate_file(name))
    command = [venv / "bin" / "crosschannel", "pretrain", "--config", "quickstart", "--train.steps", "20"]
    text = run(*command, cwd=work)
    assert "validation curve: runs/quickstart-0/curve.png" in text
    assert (work / "runs/quickstart-0/result.json").is_file() and (work / "runs/quickstart-0/curve.png").is_file()
    where = run(python, "-c", "import crosschannel; print(crosschannel.__file__)", cwd=work)
    assert str(venv) in where
    assert "finished" in run(*command, cwd=work)
