"""Every snippet of README and docs is true: Python and command lines are run, on small stand-ins for the data, weights
and numbers of steps that they name; what needs a network or a cluster is checked as far as it goes without."""

import contextlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crosschannel
import transfer
from crosschannel.cli import PROGRAM as CROSSCHANNEL
from crosschannel.cli import main as crosschannel_main
from crosschannel.data.sample import sample_images
from crosschannel.models import alexnet
from crosschannel.study.answers import Answers, Timing, read_answers
from crosschannel.study.manifest import read_study
from slurm.cli import PROGRAM as SLURM
from slurm.cli import main as slurm
from transfer.cli import PROGRAM as TRANSFER
from transfer.cli import main as transfer_main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "hub"))
sys.path.insert(0, str(ROOT / "tests" / "transfer"))
from caffe_writer import layer as caffe_layer  # noqa: E402
from detectron2_sources import add_detectron2  # noqa: E402
from devkits import make_devkit, make_sbd  # noqa: E402

pytestmark = pytest.mark.usefixtures("narrow_nets")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def save_published_nets(root: Path) -> None:
    """Files as their authors' would be, of random weights: DeepCluster's AlexNet, CaffeNet, a Lab caffemodel."""
    widths = alexnet.VARIANTS["caffenet"].widths
    net = {"features.0": (96, 3, 11), "features.4": (256, 96, 5), "features.8": (384, 256, 3)}
    net |= {"features.11": (384, 384, 3), "features.14": (256, 384, 3)}
    state = {}
    for name, (out, channels, kernel) in net.items():
        number = int(name.rpartition(".")[2]) + 1
        conv, norm = torch.nn.Conv2d(channels, out, kernel), torch.nn.BatchNorm2d(out)
        state |= {f"{name}.{k}": v for k, v in conv.state_dict().items()}
        state |= {f"features.{number}.{k}": v for k, v in norm.state_dict().items()}
    torch.save({"state_dict": state}, root / "checkpoint.pth.tar")
    inputs = [3, *(width // groups for width, groups in zip(widths, (2, 1, 2, 2), strict=False))]
    layers = [(f"conv{i + 1}", (widths[i], inputs[i], side, side)) for i, side in enumerate((11, 5, 3, 3, 3))]
    data = b"".join(
        caffe_layer(name, "Convolution", [np.random.default_rng(0).normal(0, 0.01, shape), np.zeros(shape[0])])
        for name, shape in layers
    )
    for name in ("bvlc_reference_caffenet", "colorization"):
        (root / f"{name}.caffemodel").write_bytes(data)


@pytest.fixture(scope="module")
def place(narrow_nets, tmp_path_factory, photo_folder, photos):
    """A working folder with the runs and data that the pages speak of."""
    root = tmp_path_factory.mktemp("place")
    quick = ["--train.steps=4", "--train.batch=8", "--runtime.workers=0", "--runtime.tensorboard=false"]
    run = root / "runs" / "imagenette-0"
    assert crosschannel_main(["pretrain", "--config=quickstart", *quick, f"--data={photo_folder}", f"--out={run}"]) == 0
    for name in ("alexnet-imagenet-0", "alexnet-paper-imagenet-0"):
        shutil.copytree(run, root / "runs" / name)
    colornet = ["--model.name=colornet", *SMALLER["pretrain"], f"--data={photo_folder}"]
    assert crosschannel_main(["pretrain", *colornet, f"--out={root / 'runs' / 'colornet-imagenet-0'}"]) == 0
    shutil.copytree(run, root / "runs" / "full")
    flags = ["--objective.kind=l2", *SMALLER["pretrain"], f"--data={photo_folder}", f"--out={root / 'runs' / 'l2'}"]
    assert crosschannel_main(["pretrain", *flags]) == 0
    for place in ("grey.jpg", "holiday/a.png", "scans/b.png", *(f"photos/{i}.png" for i in range(8))):
        (root / place).parent.mkdir(exist_ok=True)
        mode = "L" if place.startswith("photos") else "RGB"  # a page takes these for masks
        Image.effect_noise((40, 30), 64).convert(mode).save(root / place)
    (root / "my.yaml").write_text("model: {name: alexnet}\n")
    for name, page in (("mytasks", "add-a-task.md"), ("class_means", "add-a-protocol.md")):
        (root / f"{name}.py").write_text("\n\n".join(blocks(ROOT / "docs" / page, "python")))
    save_published_nets(root)
    probe = [
        "--backbone=runs/alexnet-imagenet-0",
        f"--data={photo_folder}",
        "--layer=conv2",
        f"--out={root / 'runs' / 'probe'}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert transfer_main(["linear-probe", "--config=quickstart", *LOOP, *probe]) == 0
    make_devkit(root, photos, masks=True)
    make_devkit(root, photos, 12, 8, "2012", masks=True)
    segmentation = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    for part, name in (("train", "trainval"), ("val", "test")):
        shutil.copy(segmentation / f"{name}.txt", segmentation / f"{part}.txt")
    listed = root / "VOCdevkit" / "VOC2011" / "ImageSets" / "Segmentation"
    listed.mkdir(parents=True)
    shutil.copy(segmentation / "val.txt", listed / "val.txt")
    make_sbd(root, photos, {"train": [f"{i:06d}" for i in range(14)]})
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
    mine = torch.nn.Sequential()
    mine.blocks = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 8), torch.nn.Conv2d(4, 4, 3))
    names = {
        "my_net": mine,
        "crosschannel": crosschannel,
        "transfer": transfer,
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


ONLINE = {"fetch", "push", "study serve", "demo"}  # and those that end with Ctrl-C alone
DATA = {"torchvision:imagenette", "/data/imagenet", "/data/imagenette", "path/to/photos", "photos/", "imagenet/"}
WEIGHTS = {
    "torchvision:alexnet": "torchvision:alexnet,weights=none",
    "timm:vit_small_patch14_dinov2": "timm:vit_tiny_patch16_224,weights=none,size=64",
    "timm:resnet50": "timm:resnet50,weights=none,size=64",
}
LOOP = [
    "--train.steps=2",
    "--train.batch=4",
    "--train.accumulate=1",
    "--runtime.workers=0",
    "--train.precision=float32",
]
SMALLER = {  # flags that make a command quick
    "pretrain": [*LOOP, "--model.fc=0", "--crop.size=32", "--crop.resize=40", "--val_images=4"],
    "evaluate": ["--size=32", "--workers=0", "--resamples=20", "--limit=6"],
    "linear-probe": LOOP,
    "knn": ["--workers=0"],
    "classify": [*LOOP, "--fc=64", "--test-crops=1", "--calibrate=false", "--runtime.tensorboard=false"],
    "svm": ["--pooling=average", "--workers=0", "--jobs=1", "--low-shot=1", "--draws=1", "--costs=1", "--cache=memory"],
    "segment": [*LOOP, "--crop=64", "--fc=8", "--calibrate=false", "--runtime.tensorboard=false"],
    "detect": [
        *LOOP,
        "--fc=8",
        "--calibrate=false",
        "--scales=[64]",
        "--test-scale=64",
        "--sample.regions=8",
        "--rpn.after=[20,10]",
        "--runtime.tensorboard=false",
    ],
    "proposals": ["--workers=0"],
    "dense": [*LOOP, "--k=2", "--cache=memory", "--runtime.tensorboard=false"],
    "study build": ["--images=4", "--pairs=3", "--practice=1", "--size=64"],
    "study report": ["--resamples=100"],
    "few-shot": ["--workers=0", "--jobs=1", "--draws=1", "--shots=1,2"],
}


LARGE = ("--config faster-rcnn-c4", "--format onnx")  # 4 to 15 s each; other tests export to ONNX
# Weights that are not here, and a net that narrow nets cannot begin with (tests/commands/test_pretrain_tasks.py does).
ABSENT = ("zoo:", "torchvision:vgg16")


def answer_all(folder: Path) -> None:
    """Three people who recognise every attention check, so that they count, and say "left" otherwise."""
    folder, manifest = read_study(folder)
    answers = Answers(folder, manifest)
    for participant in ("a", "b", "c"):
        session = answers.begin(participant)
        trials = {trial["token"]: trial for trial in read_answers(folder)[1]}
        while (state := answers.state(session)).trial:
            trial = trials[state.trial]
            side = trial["fake"] if trial["kind"] == "check" else "left"
            answers.answer(session, state.trial, side, Timing(1000, 1000, 500, False))
    answers.close()


def kind_of(command: str, words: list[str]) -> tuple[str, ...]:
    """A command with the flags that choose what it computes."""
    if command == "evaluate":
        return command, *words
    flags = " ".join(words).replace("=", " ")
    chosen = re.findall(r"--(?:config|task|objective\.kind|model\.name|train-from|mode|layer\.kind) \S+", flags)
    return command, *sorted(chosen)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run folders by kind of command, and where the next one goes."""
    return {}, tmp_path_factory.mktemp("finished")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kinds", "every"])
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_command_lines_run(page, every, place, finished, tmp_path, monkeypatch, capsys):
    """Line after line in one folder, so that a line finds the outputs of those before it.

    Every line is parsed; of the runs that differ in paths and rates alone the first one stands for the others.
    """
    # README's take over ten seconds, and always run: a new user types them first.
    runs, folder = finished
    shutil.copytree(place, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    programs = {"crosschannel": CROSSCHANNEL, "transfer": TRANSFER}
    for line in commands(page):
        program, command, *words = shlex.split(line)
        if command == "study":
            command, *words = f"study {words[0]}", *words[1:]
        if program == "crosschannel-slurm":
            run_launcher(command, words)
            continue
        if command == "pretrain" and "--data" not in words:
            words += ["--data", "imagenette"]
        if "faster-rcnn" in line and every:
            add_detectron2()
        if command == "study serve":
            answer_all(Path(words[0]))
        left_out = ABSENT if every else ABSENT + LARGE
        is_fetched = command in ONLINE or (command == "colorize" and "--model" not in words)
        if is_fetched or any(part in line for part in left_out):
            programs[program].parse(command, words)
            continue
        words = ["imagenette" if word in DATA else WEIGHTS.get(word, word) for word in words]
        words = [
            name
            for word in words
            for name in (sorted(map(str, Path().glob(word))) if re.match(r"runs/.*\*", word) else [word])
        ]
        run = {"crosschannel": crosschannel_main, "transfer": transfer_main}[program]
        if {"--help", "--print_config"} & set(words):
            with contextlib.suppress(SystemExit):
                assert run([command, *words]) == 0
            continue
        words += SMALLER.get(command, [])
        if command not in SMALLER:
            assert run([command, *words]) == 0, f"{line}\n{capsys.readouterr().err}"
            continue
        out, kind = Path(programs[program].parse(command, words).out), kind_of(command, words)
        shutil.rmtree(out, ignore_errors=True)  # a run of an earlier line, or of the set-up, makes place
        if kind in runs and not every:
            out.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if runs[kind].is_dir() else shutil.copy)(runs[kind], out)
            continue
        assert run([command, *words]) == 0, f"{line}\n{capsys.readouterr().err}"
        if kind not in runs:
            runs[kind] = folder / f"{len(runs)}{out.suffix}"
            (shutil.copytree if out.is_dir() else shutil.copy)(out, runs[kind])


def run_launcher(command: str, words: list[str]) -> None:
    if command == "submit":
        assert slurm([command, "--dry-run", "--no-path-check", *words]) == 0
        return
    words = words[1:] if command == "resume" else ["--follow=true" if word == "-f" else word for word in words]
    SLURM.parse(command, words)


def test_the_profile_in_the_docs_submits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (profile,) = (block for page in PAGES for block in blocks(page, "yaml"))
    (tmp_path / "mine.yaml").write_text(profile)
    run_launcher("submit", ["--profile=mine.yaml", "--", "crosschannel", "pretrain", "--data=x", "--train.batch=64"])
