"""What a batch is scored by, with painters and nets whose answers are known."""

import io

import numpy as np
import pytest
import torch
from batches import base_batch
from PIL import Image
from torch import nn

from crosschannel.color import ABQuantizer, load_prior, rebalancing_weights, rgb_to_lab
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.data import MemoryImages, Stream
from crosschannel.evaluation.config import EvaluateConfig, Method
from crosschannel.evaluation.cost import features
from crosschannel.evaluation.evaluator import Evaluator
from crosschannel.evaluation.judges import Interpretability
from crosschannel.evaluation.methods import ColorizationMethod, PairBatch, Pairs, WithDonors
from crosschannel.evaluation.metrics import metrics
from crosschannel.evaluation.plots import auc_by_image_count
from crosschannel.evaluation.scores import colourfulness
from crosschannel.files import atomic_write
from crosschannel.hub import classifiers
from crosschannel.models import InputSpec, NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig

CPU = torch.device("cpu")


@pytest.fixture
def batch(photos):
    images = torch.from_numpy(np.stack([photo[:32, :32] for photo in photos[:3]])).permute(0, 3, 1, 2)
    return PairBatch(**vars(base_batch(3)), images=images, donors=None)


class Wrong(ColorizationMethod):
    """Says the truth times a half plus a few units, and far off in one picture."""

    def __call__(self, pictures):
        ab = pictures.ab * 0.5 + 7
        ab[0, :, :4] += 300
        return ab


@pytest.mark.parametrize("prior", ["own", "file"])
def test_figures_are_those_of_brute_force(batch, tmp_path, prior):
    config = EvaluateConfig(data="")
    if prior == "file":
        packaged = load_prior()
        packaged.save(tmp_path / "prior.npz")
        config.prior = str(tmp_path / "prior.npz")
    evaluator = Evaluator(config, [Wrong(Method("wrong", "x"), None)], None, None, CPU)
    rows, curves = evaluator.score(batch)
    rows = {"names": np.array(["a", "b", "c"]), **{name: column.numpy() for name, column in rows.items()}}
    found = metrics(rows, np.ones((1, 3)))
    truth = rgb_to_lab(batch.images)[:, 1:]
    predicted = Wrong(Method("wrong", "x"), None)(evaluator.pictures(batch))
    distances = (predicted - truth).norm(dim=1).flatten().numpy()
    bins = ABQuantizer(1).encode(truth)[0][:, 0].flatten().numpy()
    weights = 1 / np.bincount(bins, minlength=313)[bins]
    if prior == "file":
        weights = rebalancing_weights(load_prior().smoothed, 0).numpy()[bins]
    for name, w in (("raw", np.ones(len(bins))), ("rebalanced", weights)):
        expected = np.mean([w[distances <= t].sum() / w.sum() for t in range(151)])
        assert found[f"wrong/auc_{name}"][0] == pytest.approx(expected, abs=1e-6), name
    assert curves["wrong"].sum() == len(bins) and curves["wrong"][:, -1].sum() >= 4 * 32


def constant_net(kind: str, bias: torch.Tensor) -> Colorizer:
    """A colorizer that says the same of every pixel."""
    net, task = create("colorization", ColorizationConfig(kind=kind), NetSpec("alexnet", fc=0))
    nn.init.zeros_(net.head.out.weight)
    net.head.out.bias.data = bias
    return Colorizer(net, task, 32).eval().requires_grad_(False)


def test_annealing_a_known_distribution_makes_it_more_colourful(batch):
    """Half of the mass on a red and a third on a blue bin, the rest on grey: ab in numpy, at T = 1 and T = 0.38."""
    bins = ABQuantizer().bins.numpy()
    p = np.full(313, 1e-9)
    for colour, mass in (((60, 40), 0.5), ((20, -60), 0.3), ((0, 0), 0.2)):
        p[np.abs(bins - colour).sum(1).argmin()] = mass
    net = constant_net("class", torch.log(torch.from_numpy(p)).float())
    rgb = batch.images.float() / 255
    chroma, colourful = {}, {}
    for temperature in (1.0, 0.38):
        sharp = p ** (1 / temperature)
        expected = (sharp / sharp.sum()) @ bins
        ab = net.ab(rgb, temperature)
        assert torch.allclose(ab[0, :, 5, 5], torch.from_numpy(expected).float(), atol=1e-2)
        chroma[temperature] = ab.norm(dim=1).mean()
        colourful[temperature] = colourfulness(net(rgb, temperature)).mean()
    assert chroma[0.38] > chroma[1.0] and colourful[0.38] > colourful[1.0]


def test_a_constant_colour_is_copied_from_the_only_donor(photos, tmp_path):
    """With one red donor the baseline says one ab everywhere: its AuC is that of a constant."""

    def encoded(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    images = MemoryImages(["a", "b"], [0, 0], [encoded(photo[:40, :40]) for photo in photos[:2]])
    red = MemoryImages(["red"], [0], [encoded(np.full((50, 50, 3), (200, 30, 40), np.uint8))])
    stream = Stream(WithDonors(images, red, 0), Pairs(32, red))
    batch = stream.collate([stream[0], stream[1]])
    evaluator = Evaluator(
        EvaluateConfig(data=""), [ColorizationMethod(Method("random", "random"), None)], None, None, CPU
    )
    rows, _ = evaluator.score(batch)
    truth = rgb_to_lab(batch.images)[:, 1:]
    ab = rgb_to_lab(torch.tensor([200, 30, 40], dtype=torch.uint8)[None, :, None, None])[:, 1:]
    distances = (ab - truth).norm(dim=1)
    expected = torch.stack([(distances <= t).double().mean((1, 2)) for t in range(151)]).mean(0)
    assert torch.allclose(rows["random/auc"].double().sum(1) / 32**2, expected, atol=1e-6)


def test_donors_follow_the_seed_and_are_never_the_picture_itself(photos):
    images = MemoryImages([str(i) for i in range(20)], [0] * 20, [bytes([i]) for i in range(20)])

    def donors(seed):
        return [WithDonors(images, images, seed).fields(i)["donors"][0] for i in range(20)]

    assert donors(0) == donors(0) != donors(1)
    assert all(donor != i for seed in range(5) for i, donor in enumerate(donors(seed)))


def test_features_are_the_maps_that_a_net_makes():
    """Three layers, counted by hand: what works in place makes nothing new."""

    class Net(nn.Module):
        stride = 1

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.in_place = nn.ReLU(inplace=True)

        def forward(self, x):
            return torch.cat((self.in_place(self.two(self.one(x).relu())),) * 2, 1)

    _, task = create("colorization", ColorizationConfig(), NetSpec("alexnet", fc=0))
    rgb = torch.rand(1, 3, 16, 16)
    convolution, relu, strided, both = 4 * 256, 4 * 256, 8 * 64, 16 * 64
    assert features(Colorizer(Net(), task), rgb) == convolution + relu + strided + both


def test_classes_are_matched_by_name(monkeypatch):
    """A classifier that always says its second output, whose name is the pictures' third class."""

    def says_the_second(x):
        return torch.tensor([[0.0, 1.0, 0.5]]).expand(len(x), -1)

    net = classifiers.ImageClassifier(says_the_second, lambda x: x, InputSpec("rgb", 8, 8), ("b", "c", "a"), "cpu")
    monkeypatch.setattr("crosschannel.evaluation.judges.load_classifier", lambda source, device: net)
    judge = Interpretability("any", ("a", "b", "c"), CPU)
    assert judge.correct(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, -1])).tolist() == [0, 0, 1, -1]


def test_a_plot_over_photographs(tmp_path):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 9, (60, 313))
    rows = {
        "names": np.array([str(i) for i in range(60)]),
        "pixels": pixels,
        "net/auc": pixels * generator.random((60, 313)),
        "net/mse": np.full(60, 0.1),
    }
    auc_by_image_count(tmp_path / "x.png", rows, ["net"], 0, atomic_write)
    assert Image.open(tmp_path / "x.png").size[0] > 300


def test_grey_and_random_colours_land_on_the_paper(real_data, tmp_path):
    """Of 200 ImageNet photographs at half of the paper's size (which moves grey by less than 0.1 points)."""
    from crosschannel.cli import main
    from crosschannel.runs.result import load_result

    out = tmp_path / "run"
    flags = ["--methods", "grey", "random", "--size=128", "--limit=200", "--device=cpu", "--resamples=10"]
    assert main(["evaluate", f"--data={real_data / 'imagenet-256'}", f"--out={out}", *flags]) == 0
    figures = {name: 100 * value for name, value in load_result(out).metrics.items()}
    assert figures["grey/auc_raw"] == pytest.approx(89.1, abs=1)
    assert figures["random/auc_raw"] == pytest.approx(84.2, abs=1.5)
    assert figures["grey/auc_rebalanced"] == pytest.approx(58.0, abs=7)
    assert (out / "photographs.png").is_file()
