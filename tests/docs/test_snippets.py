"""Every snippet of README and docs is true: Python is run, command lines are parsed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import crosschannel
from crosschannel.cli import PROGRAM as CROSSCHANNEL
from crosschannel.command_line import parse
from crosschannel.data.sample import sample_images
from slurm.cli import PROGRAM as SLURM
from slurm.cli import main as slurm
from transfer.cli import PROGRAM as TRANSFER

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory, photo_folder):
    """A working folder with the runs and data that the pages speak of."""
    root = tmp_path_factory.mktemp("place")
    quick = ["--train.steps=4", "--train.batch=8", "--runtime.workers=0", "--runtime.tensorboard=false"]
    from crosschannel.cli import main

    run = root / "runs" / "imagenette-0"
    assert main(["pretrain", "--config=quickstart", *quick, f"--data={photo_folder}", f"--out={run}"]) == 0
    for name in ("alexnet-0", "colornet-0"):
        shutil.copytree(run, root / "runs" / name)
    Image.new("RGB", (40, 30), "grey").save(root / "grey.jpg")
    for part, images in zip(("train", "val"), sample_images(), strict=True):
        for i, name in enumerate(images.names):
            path = root / "imagenette" / part / images.classes[images.labels[i]] / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images.read(i))
    return root


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page, place, monkeypatch):
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.layer3, model.layer4 = torch.nn.Conv2d(3, 4, 7, 8), torch.nn.Conv2d(4, 4, 3)
    names = {
        "crosschannel": crosschannel,
        "rgb": torch.rand(2, 3, 96, 96),
        "labels": torch.tensor([1, 2]),
        "picture": Image.new("RGB", (40, 30), "grey"),
        "model": model,
    }
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def commands(page: Path) -> list[str]:
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    lines = [line.partition("--no-python ")[2] or line for line in lines]
    return [
        line for line in lines if re.match(r"(crosschannel|transfer|crosschannel-slurm) ", line) and "…" not in line
    ]


@pytest.mark.parametrize(("page", "line"), [(page.stem, line) for page in PAGES for line in commands(page)])
def test_command_lines_parse(page, line, tmp_path, monkeypatch):
    program, command, *words = shlex.split(line)
    if program == "crosschannel-slurm":
        monkeypatch.chdir(tmp_path)
        if command == "submit":
            assert slurm([command, "--dry-run", "--no-path-check", *words]) == 0
        else:
            words = words[1:] if command == "resume" else ["--follow=true" if word == "-f" else word for word in words]
            parse(SLURM, command, words)
        return
    words = [word for word in words if word not in ("--help", "--print_config")]
    if "my.yaml" in words:
        words.remove("my.yaml"), words.remove("--config")
    if command == "pretrain" and not any(word.startswith("--data") for word in words):
        words.append("--data=photos")
    parse({"crosschannel": CROSSCHANNEL, "transfer": TRANSFER}[program], command, words)
