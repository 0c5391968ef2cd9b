"""The wheel that the source archive builds, installed into a fresh environment, pretrains from an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.system
@pytest.mark.timeout(1800)
def test_it_pretrains_in_a_fresh_environment(wheel, tmp_path):
    venv, work = tmp_path / "venv", tmp_path / "empty"
    work.mkdir()
    python = venv / "bin" / "python"
    if uv := shutil.which("uv"):
        run(uv, "venv", "-q", "-p", sys.executable, venv, cwd=work)
        run(uv, "pip", "install", "-q", "--python", python, wheel, cwd=work)
    else:
        run(sys.executable, "-m", "venv", venv, cwd=work)
        run(python, "-m", "pip", "install", "-q", wheel, cwd=work)
    command = [venv / "bin" / "crosschannel", "pretrain", "--config", "quickstart", "--train.steps", "20"]
    text = run(*command, cwd=work)
    assert "validation curve: runs/quickstart-0/curve.png" in text
    assert (work / "runs/quickstart-0/result.json").is_file() and (work / "runs/quickstart-0/curve.png").is_file()
    where = run(python, "-c", "import crosschannel; print(crosschannel.__file__)", cwd=work)
    assert str(venv) in where
    assert "finished" in run(*command, cwd=work)
