"""Kinds of data: what the rows say without opening, and data of one's own."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from crosschannel import UserError, factories
from crosschannel.cli import main as crosschannel
from crosschannel.data import datasets, open_images
from crosschannel.data.datasets import DATASETS, import_path_of, kind_of
from crosschannel.runs.result import read_result
from slurm.cli import main as slurm
from transfer.cli import main as transfer

OWN = """
import numpy as np
from crosschannel import ImageSet

def images(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 40, 40, 3), np.uint8)
    pixels[::2, :, :, 0] = 0
    return pixels, np.arange(count) % 2

def both():
    return images(24, 0), images(8, 1)

def training():
    return images(30, 0)

def film(name):
    return images(int(name), 2)

def broken():
    raise RuntimeError("no disk")

def nothing():
    return "photos"

class Mine(ImageSet):
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def read(self, index):
        import io
        from PIL import Image
        file = io.BytesIO()
        Image.new("RGB", (40, 40), (index, 0, 0)).save(file, "PNG")
        return file.getvalue()

    def content_key(self):
        return "mine"

def mine():
    return Mine(names=[str(i) for i in range(6)], labels=[0, 1] * 3)

def unlabelled():
    return Mine(names=["a"])

def unequal():
    return Mine(names=["a", "b"], labels=[0])

def empty():
    return Mine(names=[], labels=[])
"""


@pytest.fixture
def mydata(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mydata", None)


@pytest.mark.parametrize(
    ("data", "kind", "paths"),
    [
        ("builtin:sample", "builtin", []),
        ("torchvision:imagenette", "torchvision", []),
        ("https://host/shards", "remote", []),
        ("package.module:function", "function", []),
        ("photos", "files", ["photos"]),
        ("train-{0..2}.tar", "files", ["train-0.tar", "train-1.tar", "train-2.tar"]),
    ],
)
def test_kind_and_paths_are_known_without_opening_the_data(data, kind, paths):
    row = kind_of(data)
    assert row is DATASETS[kind] and row.paths(data) == paths
    assert row.needs_download == (kind == "torchvision") and bool(import_path_of(data)) == (kind == "function")


def test_a_folder_has_classes_if_its_training_images_have(photo_folder, tmp_path):
    assert kind_of(str(photo_folder)).has_classes(str(photo_folder))
    assert not kind_of(str(tmp_path)).has_classes(str(tmp_path))


def test_a_users_function_works_in_pretrain_and_transfer(mydata, narrow_nets):
    small = ["--model.fc=0", "--crop.size=32", "--crop.resize=36", "--train.batch=4", "--train.steps=1",
             "--runtime.workers=0", "--runtime.tensorboard=false", "--device=cpu"]  # fmt: skip
    assert crosschannel(["pretrain", "--data=mydata:both", "--out=run", *small]) == 0
    words = ["knn", "--backbone=run", "--data=mydata:both", "--layer=conv1", "--k=1", "--workers=0", "--device=cpu"]
    assert transfer([*words, "--out=knn"]) == 0
    assert read_result(Path("knn")).n == 8 and read_result(Path("knn")).data == "mydata:both"
    train, val = open_images("mydata:training", 0.2)
    assert (len(train), len(val)) == (24, 6)
    train, val = open_images("mydata:mine", 0.5)
    assert sorted([*train.names, *val.names]) == list("012345") and train.labels.dtype == "int64"


def test_a_changed_module_is_not_resumed(mydata, narrow_nets, capsys):
    words = ["pretrain", "--data=mydata:both", "--out=run", "--model.fc=0", "--crop.size=32", "--crop.resize=36",
             "--train.batch=4", "--train.steps=2", "--runtime.workers=0", "--runtime.tensorboard=false",
             "--device=cpu"]  # fmt: skip
    assert crosschannel(words) == 0
    for name in ("result.json", "backbone.safetensors"):
        Path("run", name).unlink()
    Path("mydata.py").write_text(OWN + "\n# another\n")
    assert crosschannel(words) == 2 and "mydata.py" in capsys.readouterr().err


def test_a_package_opens_data_by_a_prefix(mydata, monkeypatch):
    point = EntryPoint("film", "mydata:film", datasets.ENTRY_POINTS)
    monkeypatch.setattr(factories, "entry_points", lambda group: [point] if group == datasets.ENTRY_POINTS else [])
    train, val = open_images("film:20", 0.25)
    words = ["submit", "--dry-run", "--profile=local", "--", "transfer", "knn", "--backbone=random:alexnet", "--out=x"]
    assert slurm([*words, "--data=film:nights"]) == 0  # nothing is opened
    assert import_path_of("film:nights") == "mydata:film"
    assert (len(train), len(val)) == (15, 5) and torch.from_numpy(train.labels).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("mydata:broken", "mydata:broken failed: RuntimeError: no disk"),
        ("mydata:absent", "cannot import 'mydata:absent': AttributeError"),
        ("nowhere:photos", "cannot import 'nowhere:photos': ModuleNotFoundError"),
        ("mydata:nothing", "train must be an ImageSet"),
        ("mydata:unlabelled", "train: Mine has no labels"),
        ("mydata:unequal", "train: Mine has 2 names and 1 labels"),
        ("mydata:empty", "train: Mine has 0 names and 0 labels"),
    ],
)
def test_a_failing_function_raises_a_user_error(mydata, data, words):
    with pytest.raises(UserError, match=words):
        open_images(data)


def test_submit_refuses_missing_packages_and_folders(mydata, photo_folder, capsys):
    words = ["submit", "--dry-run", "--profile=local", "--", "transfer", "knn", "--backbone=random:alexnet", "--out=x"]
    assert slurm([*words, "--data=mydata:both"]) == 0
    assert slurm([*words, "--data=nowhere:photos"]) == 2 and "no package nowhere" in capsys.readouterr().err
    assert slurm([*words, "--data=gone"]) == 2 and "no data at gone" in capsys.readouterr().err
