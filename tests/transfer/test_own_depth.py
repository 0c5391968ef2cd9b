"""Depth by linear regression on a frozen layer, as users write it: one file of theirs, float maps as targets."""

import re
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from crosschannel import load_backbone
from crosschannel.data.memory import as_image_set
from crosschannel.runs.result import load_result
from slurm.cli import main as slurm
from transfer.cli import main
from transfer.protocols import load_protocol

NET = "random:alexnet,fc=0,size=64,resize=64,seed=1"
MODULE = '''
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from crosschannel.data import ImageSet
from crosschannel.data.views import Squashed
from crosschannel.errors import UserError
from crosschannel.config.types import Positive
from crosschannel.training.task import Evaluation
from transfer.config import FeaturesConfig, Pooling
from transfer.feature_cache import extract_features
from transfer.features import FrozenFeatures
from transfer.layers import LayersSection, layers_table
from transfer.prediction import Prediction, load_views
from transfer.protocol import NumberFormat, Protocol, Split, unweighted_metrics, weighted_mean
from transfer.targets import Values


@dataclass
class DepthConfig(FeaturesConfig):
    """Predict depth at each position of a frozen layer by linear regression."""

    protocol: ClassVar[str] = "mydepth:depth"

    penalty: Positive = 1e-3
    """weight of the squared norm of the coefficients"""


class DepthImages(ImageSet):
    """PNG pictures beside NPY maps of the same name, in metres."""

    def __init__(self, folder):
        self.paths = sorted(folder.glob("*.png"))
        if not self.paths:
            raise UserError(f"no pictures in {folder}")
        self.names = [path.stem for path in self.paths]
        self.labels = np.full(len(self.names), -1)

    def read(self, index):
        return self.paths[index].read_bytes()

    def fields(self, index):
        return {"depth": np.load(self.paths[index].with_suffix(".npy"))}

    def content_key(self):
        return str([(str(path), path.stat().st_mtime_ns) for path in self.paths])


def open_depth(data, config):
    if isinstance(data, Split):
        return data
    if not isinstance(data, str):
        return Split(*data, Values("depth", "m"), "images from memory")
    return Split(DepthImages(Path(data) / "train"), DepthImages(Path(data) / "test"), Values("depth", "m"), data)


def depth_grids(images, side):
    """Mean depth around each position of a square map, (n, side, side)."""
    depths = [torch.from_numpy(images.fields(index)["depth"])[None, None] for index in range(len(images))]
    return torch.cat([F.adaptive_avg_pool2d(depth, side)[0] for depth in depths])


def with_constant(maps):
    """Features (n, C, g, g) as rows (n * g * g, C + 1)."""
    rows = maps.movedim(1, 3).flatten(0, 2).double()
    return torch.cat([rows, torch.ones(len(rows), 1)], 1)


def measure(measurement):
    config, layers = measurement.config, measurement.choose_layers()
    measurement.announce(f"layers {', '.join(layers)}")
    train, test = extract_features(measurement, layers, Squashed(measurement.backbone.input.size))
    rows, weights = {"names": np.array(list(test.images.names))}, {}
    for layer in layers:
        x, side = with_constant(train.maps[layer]), train.maps[layer].shape[-1]
        truth = depth_grids(train.images, side).flatten().double()
        solved = torch.linalg.solve(x.T @ x + config.penalty * torch.eye(x.shape[1]), x.T @ truth)
        predicted = (with_constant(test.maps[layer]) @ solved).view(-1, side, side)
        error = predicted - depth_grids(test.images, side)
        rows[f"{layer}/squared_error"] = error.square().mean((1, 2)).numpy()
        weights[layer] = solved
    measurement.world.broadcast_from_main(lambda: save_file(weights, measurement.run.path / "regression.safetensors"))
    return Evaluation(unweighted_metrics(metrics, rows), len(rows["names"]), rows)


def metrics(rows, weights):
    return {
        name.replace("squared_error", "rmse"): weighted_mean(row, weights) ** 0.5
        for name, row in rows.items()
        if name.endswith("/squared_error")
    }


def predictor(run):
    from safetensors.torch import load_file

    solved = load_file(run.path / "regression.safetensors")
    layer = run.layer or min(solved, key=lambda name: run.metrics[f"{name}/rmse"])
    backbone = run.load_backbone(open_depth)
    features = FrozenFeatures(backbone, [layer], run.config.pooling, run.device)

    def predict(data):
        maps = features(load_views(data, Squashed(backbone.input.size)).images)[layer]
        depth = (with_constant(maps.cpu()) @ solved[layer]).view(maps.shape[-2:])
        return Prediction(pictures={"depth": Image.fromarray((25 * depth).clamp(0, 255).byte().numpy())})

    return predict


depth = Protocol(
    config=DepthConfig,
    open_data=open_depth,
    measure=measure,
    metrics=metrics,
    show=lambda result: layers_table(result, lambda kind: f"{kind}, m"),
    section=LayersSection("Depth", "rmse", what="Root mean squared error"),
    formats={"rmse": NumberFormat(1, 3, "m")},
    returns="``LAYER/rmse`` in metres",
    positional_key="layer",
    predict=predictor,
    annotations="whose field depth is (H, W) floats",
)
'''


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Pictures whose brightness is depth, between 2 and 10 m."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 12)):
        (folder / part).mkdir()
        for number in range(count):
            ends = rng.uniform(2, 10, 4)
            across, down = np.meshgrid(np.linspace(0, 1, 80), np.linspace(0, 1, 80))
            depth = (ends[0] * (1 - across) + ends[1] * across) / 2 + (ends[2] * (1 - down) + ends[3] * down) / 2
            noise = rng.normal(0, 3, (80, 80, 3))
            pixels = (25 * depth[..., None] + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{part}{number}.png")
            np.save(folder / part / f"{part}{number}.npy", depth.astype(np.float32))
    return folder


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "mydepth.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mydepth", None)


def command(data, out, *flags):
    return ["mydepth:depth", f"--backbone={NET}", f"--data={data}", "--layer=conv2,conv3", f"--out={out}",
            "--workers=0", "--pooling=average", "--precision=float32", *flags]  # fmt: skip


def test_figures_are_those_of_least_squares(scenes, tmp_path):
    assert main(command(scenes, "run", "--penalty=10")) == 0
    result = load_result("run")
    images = sys.modules["mydepth"].open_depth(str(scenes), None).train
    backbone, arrays = load_backbone(NET, data=as_image_set(images)), {}  # its BatchNorms have their statistics
    for part in ("train", "test"):
        paths = sorted((scenes / part).glob("*.png"))
        squashed = np.stack([Image.open(path).resize((64, 64), Image.Resampling.BILINEAR) for path in paths])
        with torch.no_grad():
            maps = backbone(torch.from_numpy(squashed).permute(0, 3, 1, 2), ["conv3"])["conv3"]
        side = maps.shape[-1]
        edges = np.linspace(0, 80, side + 1)
        depths = np.stack([np.load(path.with_suffix(".npy")) for path in paths])
        cells = [(int(np.floor(low)), int(np.ceil(high))) for low, high in pairwise(edges)]
        means = np.stack([depths[:, a:b, c:d].mean((1, 2)) for a, b in cells for c, d in cells], 1)
        x = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).double().numpy()
        arrays[part] = np.c_[x, np.ones(len(x))], means.ravel()
    (x, truth), (x_test, truth_test) = arrays["train"], arrays["test"]
    extended = np.r_[x, np.sqrt(10) * np.eye(x.shape[1])]
    solved = np.linalg.lstsq(extended, np.r_[truth, np.zeros(x.shape[1])], rcond=None)[0]
    expected = np.sqrt(np.mean((x_test @ solved - truth_test) ** 2))
    assert set(result.metrics) == {"conv2/rmse", "conv3/rmse"}
    assert result.metrics["conv3/rmse"] == pytest.approx(expected, rel=0.03)  # Pillow rounds some pixels otherwise
    assert expected < np.std(truth_test) / 2


def test_runs_resume_compare_report_predict_and_submit(scenes, tmp_path, capsys):
    assert main(command(scenes, "first")) == 0
    printed = capsys.readouterr()
    assert "24 training and 12 test images, depth in m" in printed.err
    value = load_result("first").metrics["conv3/rmse"]
    assert re.search(rf"conv3 .*{value:.3f}", printed.out)
    assert main(command(scenes, "first")) == 0 and "is finished" in capsys.readouterr().err
    assert main(command(scenes, "second", "--penalty=10")) == 0
    capsys.readouterr()
    assert main(["compare", "first", "second", "--resamples=200"]) == 0
    printed = capsys.readouterr().out
    assert f"{value:.3f}" in printed and "in %" not in printed
    assert main(["report", "first", "second", "--out=page"]) == 0
    page = (tmp_path / "page/report.md").read_text()
    assert f"{value:.3f}" in page and "Root mean squared error in m on" in page and "rmse, m, by layer" in page
    assert main(["predict", "first", str(scenes / "test/test0.png"), "--out=predicted"]) == 0
    assert {path.name for path in (tmp_path / "predicted").iterdir()} >= {"test0-depth.png", "sheet-1.png"}
    assert not (tmp_path / "predicted/scores.csv").exists()
    capsys.readouterr()
    assert slurm(["submit", "--dry-run", "--profile=local", "--", "transfer", *command(scenes, "job")]) == 0
    assert slurm(["submit", "--dry-run", "--", "transfer", *command(scenes / "gone", "job")]) == 2
    assert "no data at" in capsys.readouterr().err


def test_another_depth_is_another_run(scenes, tmp_path, capsys):
    assert main(command(scenes, "run", "--layer=conv2")) == 0
    (tmp_path / "run/result.json").unlink()
    path = scenes / "train/train0.npy"
    original = np.load(path)
    try:
        np.save(path, original + 1)
        assert main(command(scenes, "run", "--layer=conv2")) == 2
    finally:
        np.save(path, original)


def test_a_call_takes_images_from_memory(scenes):
    depth = load_protocol("mydepth:depth")
    split = sys.modules["mydepth"].open_depth(str(scenes), None)
    from_folder = depth(NET, str(scenes), "conv3", workers=0)
    for data in (split, (split.train, split.test)):
        from_memory = depth(NET, data, "conv3", workers=0)
        assert from_memory.metrics == from_folder.metrics and from_memory.data == "images from memory"
