"""Arguments of wrong types from Python raise one sentence that lists the accepted types."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crosschannel
import transfer
from crosschannel import UserError
from crosschannel.commands.colorize import colorize
from crosschannel.commands.export import export
from crosschannel.commands.pretrain import pretrain
from crosschannel.evaluation.evaluate import evaluate
from transfer import comparison, predict, report
from transfer.protocols import PROTOCOLS

X = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
Y = np.arange(24) % 2
NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
DATASET = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
NEITHER = [None, 3, 2.5, True, b"x", torch.zeros(2), X, [1, 2], {"a": 1}, object(), lambda x: x, nn.Conv2d, DATASET]
FUNCTIONS = [entry.load() for entry in PROTOCOLS.values()]
FROZEN = [f for f in FUNCTIONS if f.__name__ in ("knn", "linear_probe", "few_shot", "svm", "dense")]


@pytest.fixture(scope="module")
def backbone():
    return crosschannel.wrap(NET, size=16)


def names(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)


@pytest.mark.parametrize("function", FUNCTIONS, ids=names)
def test_wrong_backbones_data_configs_and_folders_are_refused(function, backbone):
    for value in NEITHER:
        with pytest.raises(UserError, match="backbone must be a source"):
            function(value, (X, Y))
        if value is not DATASET:
            with pytest.raises(UserError, match="data must be a"):
                function(backbone, value)
        if value is not None:
            with pytest.raises(UserError, match="config must be the name of a packaged config"):
                function(backbone, (X, Y), config=value)
            with pytest.raises(UserError, match="out must be a folder"):
                function(backbone, (X, Y), out=value)
    other = transfer.SVMConfig() if function is not transfer.svm else transfer.KNNConfig()
    with pytest.raises(UserError, match=f"got .*{type(other).__name__}"):
        function(backbone, (X, Y), config=other)


@pytest.mark.parametrize("function", FROZEN, ids=names)
@pytest.mark.parametrize("layers", [None, 3, [0], [], b"0", NET, np.array(["0"])], ids=names)
def test_wrong_layers_are_refused(function, layers, backbone):
    with pytest.raises(UserError, match="layers must be a name"):
        function(backbone, (X, Y), layers)


@pytest.mark.parametrize(
    "data",
    [DataLoader(DATASET), iter([1]), ("train", "val"), (X, X), (X, Y, X, Y), (DATASET, None), {1}, []],
    ids=names,
)
@pytest.mark.parametrize("function", FUNCTIONS, ids=names)
def test_nearly_valid_data_is_refused(function, data, backbone):
    with pytest.raises(UserError, match=r"data must be a .*, got "):
        function(backbone, data)


def test_labels_of_the_wrong_shape_are_refused(backbone):
    many = (X, np.stack([Y, 1 - Y], 1))
    for function in (transfer.knn, transfer.linear_probe, transfer.few_shot):
        with pytest.raises(UserError, match=r"must be one class index per image, \(n,\)"):
            function(backbone, (many, many))
        with pytest.raises(UserError, match=r"have no class.*labels count from 0"):
            function(backbone, ((X, Y - 1), (X, Y)))
    for function in (transfer.svm, transfer.classify):
        with pytest.raises(UserError, match="labels must be"):
            function(backbone, ((X, Y), (X, Y)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("workers", "2", "workers must be a whole number, got '2'"),
        ("batch", 2.5, "batch must be a whole number, got 2.5"),
        ("k", "5", "k must be a list, each element a whole number"),
        ("val_share", None, "val_share must be a number, got None"),
        ("device", torch.device("cpu"), "device must be a string"),
        ("precision", torch.float32, "precision must be 'auto' or 'float32'"),
        ("flag", 3, "unknown key 'flag'"),
        ("wrokers", 2, "did you mean workers"),
    ],
)
def test_keys_of_wrong_types_are_refused(key, value, words, backbone):
    with pytest.raises(UserError, match=words):
        transfer.knn(backbone, (X, Y), "0", **{key: value})


def test_numpy_and_torch_numbers_and_paths_are_accepted(backbone, tmp_path):
    keys = {"k": np.array([1, 3]), "workers": np.int64(0), "seed": torch.tensor(3), "temperature": [0.1]}
    result = transfer.knn(backbone, (X, Y), ["0"], out=tmp_path / "run", val_share=np.float32(0.25), **keys)
    assert result.n == 6 and result.config["k"] == [1, 3] and result.seed == 3
    same = transfer.compare(tmp_path / "run", str(tmp_path / "run"), resamples=100)
    assert [(d.metric, d.low, d.high) for d in same] == [("0/knn1", 0, 0), ("0/knn3", 0, 0)]


@pytest.mark.parametrize("value", [None, 3, ["a"], NET, {}, torch.zeros(1)], ids=names)
def test_wrong_runs_sources_and_configs_are_refused(value):
    for call in (
        transfer.load_result,
        transfer.load_predictor,
        crosschannel.load_backbone,
        crosschannel.load_colorizer,
    ):
        with pytest.raises(
            UserError, match=r"must be a string, such as .*, or a path, not|a string or a path\)?, got "
        ):
            call(value)
    with pytest.raises(UserError, match="compare needs two Results or finished run folders"):
        transfer.compare(value, value)
    for call in (pretrain, evaluate, colorize, export, report.main, predict.main, comparison.main):
        with pytest.raises(UserError, match=r"expected a config, \w+Config\(key=value, …\), got "):
            call(value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: crosschannel.wrap("random:alexnet"), "wrap requires an nn.Module, not 'random:alexnet'"),
        (lambda: crosschannel.wrap(nn.Conv2d), r"not the class Conv2d \(pass an instance\)"),
        (lambda: crosschannel.wrap(NET, input="rgb"), "an input must be an InputSpec"),
        (lambda: crosschannel.wrap(NET, layers=3), "layers must map layer names to submodules"),
        (lambda: crosschannel.wrap(NET, size="32"), "size must be a whole number"),
        (lambda: crosschannel.wrap(NET, sizes=32), "unknown input attribute 'sizes'"),
        (lambda: crosschannel.load_backbone(Path("nowhere")), "unknown source 'nowhere'"),
        (lambda: crosschannel.load_backbone("random:alexnet", device="gpu"), "unknown device 'gpu'"),
        (lambda: crosschannel.load_backbone("random:alexnet", device=[1]), "a device must be a string"),
        (lambda: crosschannel.load_backbone("random:alexnet", dtype="float16"), "dtype must be a torch.dtype"),
        (lambda: crosschannel.load_backbone("kmeans:alexnet", data=3), "an ImageSet, .images, labels."),
        (lambda: transfer.compare("a", "b", resamples=0), "resamples must be"),
        (lambda: transfer.compare("a", "b", level="x"), "level must be a number"),
    ],
)
def test_other_functions_refuse_wrong_types(call, words):
    with pytest.raises(UserError, match=words):
        call()
