"""What the classifiers learn, against scikit-learn, and what they leave alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

import transfer
from crosschannel import UserError, load_backbone
from crosschannel.config.training import OptimConfig, ScheduleConfig, TrainConfig
from crosschannel.data import CentreCrop, CropConfig, MemoryImages, Stream, load_batches, open_images
from crosschannel.models import Backbone, InputSpec
from crosschannel.models.module_net import ModuleNet
from transfer.features import FrozenFeatures
from transfer.protocol import as_config
from transfer.protocols.linear_probe.task import LayerProbe

pytestmark = pytest.mark.usefixtures("narrow_nets")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sample():
    return open_images("builtin:sample")


@pytest.fixture(scope="module")
def recipe():
    """Seconds: small batches of cached features."""
    config = as_config(transfer.linear_probe, "quickstart")
    runtime = replace(config.runtime, workers=0, tensorboard=False)
    return replace(config, train=TrainConfig(48, steps=20, precision="float32", compile=False), runtime=runtime)


@pytest.fixture
def alexnet():
    return load_backbone("random:alexnet,fc=0,size=64,resize=72", frozen=False)


def crops(images, size=64, resize=72):
    stream = Stream(images, CentreCrop(size, resize))
    return torch.cat([batch.images for batch in load_batches(stream, 0, len(images), 60)])


def test_accuracy_is_that_of_scikit_learns_logistic_regression(sample, recipe, alexnet):
    """The same features, both to convergence: full batches, Adam with the L2 penalty that C stands for."""
    train, val = sample
    alexnet.eval()
    features = FrozenFeatures(alexnet, ["conv1", "conv4"], "global", CPU)
    x, z = ({k: v.flatten(1).numpy() for k, v in features(crops(part)).items()} for part in sample)
    strength = 0.1  # well-conditioned, so that both arrive
    config = replace(
        recipe,
        pooling="global",
        norm="feature",
        optim=OptimConfig("adam", 0.03, weight_decay=1 / (strength * len(train))),
        schedule=ScheduleConfig("cosine", warmup=0.02),
        train=TrainConfig(len(train), steps=1500, precision="float32", compile=False),
    )
    result = transfer.linear_probe(alexnet, sample, ["conv1", "conv4"], config)
    for layer in ("conv1", "conv4"):
        scaler = StandardScaler().fit(x[layer])
        reference = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
        reference.fit(scaler.transform(x[layer]), train.labels)
        predicted = reference.predict(scaler.transform(z[layer]))
        assert abs(result.metrics[f"{layer}/top1"] - (predicted == val.labels).mean()) <= 0.01
        assert (result.rows[f"{layer}/prediction"] == predicted).mean() >= 0.98


def test_the_backbone_and_the_callers_state_are_bit_identical_afterwards(sample, recipe, alexnet):
    """In the middle of a training: train mode, gradients on, a random stream that goes on."""
    alexnet.train()
    alexnet.net.conv3.eval()
    before = {name: tensor.clone() for name, tensor in alexnet.state_dict().items()}
    modes = [module.training for module in alexnet.modules()]
    state = torch.get_rng_state()
    transfer.linear_probe(alexnet, sample, "conv3", replace(recipe, crop=CropConfig(0, 0, "random"), cache="off"))
    transfer.knn(alexnet, sample, "conv3")
    assert all(torch.equal(before[name], tensor) for name, tensor in alexnet.state_dict().items())
    assert [module.training for module in alexnet.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in alexnet.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_all_layers_in_one_pass_are_what_each_is_alone(sample, recipe, alexnet):
    together = transfer.linear_probe(alexnet, sample, "conv2,conv5", recipe)
    for layer in ("conv2", "conv5"):
        alone = transfer.linear_probe(alexnet, sample, layer, recipe)
        assert alone.metrics[f"{layer}/top1"] == together.metrics[f"{layer}/top1"]
        assert (alone.rows[f"{layer}/prediction"] == together.rows[f"{layer}/prediction"]).all()


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_stored_features_change_nothing(sample, recipe, alexnet, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path))
    stored, computed = (
        transfer.linear_probe(alexnet, sample, "conv1,conv5", replace(recipe, cache=kind)) for kind in (cache, "off")
    )
    assert stored.metrics == pytest.approx(computed.metrics, abs=1 / 120)
    again = transfer.linear_probe(alexnet, sample, "conv1,conv5", replace(recipe, cache=cache))
    assert again.metrics == stored.metrics


def test_a_sweep_has_a_classifier_a_rate_chosen_without_validation_images(sample, recipe, alexnet):
    rates = [1e-9, 1e-3]
    result = transfer.linear_probe(alexnet, sample, "conv3", replace(recipe, rates=rates))
    assert result.metrics["conv3/lr"] == 1e-3 and 0 < result.metrics["conv3/held_out_top1"] <= 1
    wrong = MemoryImages(list(sample[1].names), (sample[1].labels + 1) % 10, [sample[1].read(i) for i in range(120)])
    misled = transfer.linear_probe(alexnet, (sample[0], wrong), "conv3", replace(recipe, rates=rates))
    assert misled.metrics["conv3/lr"] == 1e-3  # validation says otherwise
    assert misled.metrics["conv3/top1"] < 0.3 < result.metrics["conv3/top1"]


def test_each_rate_of_a_sweep_is_that_rate_alone():
    """Two classifiers on one BatchNorm move as two probes of one classifier each."""
    from crosschannel.training.optim import build_optimizer, set_rate
    from transfer.protocols.linear_probe.task import Probes

    torch.manual_seed(0)
    x, labels = torch.randn(64, 5, 2, 2), torch.randint(0, 3, (64,))

    def train(rates):
        probes = Probes({"a": (5, 2, 2)}, 3, rates, "channel", True)
        optimizer = build_optimizer(probes, OptimConfig("sgd", 0.1, weight_decay=0.01), probes.rate_factors(0.1))
        for _ in range(5):
            set_rate(optimizer, 0.1)
            optimizer.zero_grad()
            sum(F.cross_entropy(logits, labels) for logits in probes({"a": x})["a"]).backward()
            optimizer.step()
        return [classifier.weight.detach() for classifier in probes.probes[0].classifiers]

    both = train([0.1, 0.7])
    assert torch.allclose(both[0], train([0.1])[0], atol=1e-6) and torch.allclose(both[1], train([0.7])[0], atol=1e-6)


@pytest.mark.parametrize(("norm", "dims"), [("channel", (0, 2, 3)), ("feature", (0,)), ("none", None)])
def test_norms_standardise_what_they_say(norm, dims):
    torch.manual_seed(0)
    x = torch.randn(500, 4, 3, 3) * torch.rand(4, 3, 3) * 9 + torch.randn(4, 3, 3)
    probe = LayerProbe((4, 3, 3), 2, norm=norm, zero=False).train()
    probe(x)
    standard = (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True, correction=0) if dims else x
    expected = probe.classifiers[0](standard.flatten(1))
    assert torch.allclose(probe(x)[0], expected, atol=1e-3)
    assert torch.allclose(probe.eval()(x)[0], expected, atol=2e-2)  # the running statistics are those of the images
    assert not list(probe.norm.parameters())


def test_ten_crops_vote_with_their_mean_softmax(sample, recipe, alexnet):
    """One step from a fixed start, so that the same classifier can be applied by hand."""
    config = replace(recipe, ten_crops=True, crop=CropConfig(48, 64, "centre", mirror=False), norm="none")
    result = transfer.linear_probe(alexnet, sample, "conv5", config)
    single = transfer.linear_probe(alexnet, sample, "conv5", replace(config, ten_crops=False))
    assert result.n == 120 and len(result.rows["names"]) == 120
    assert result.metrics["conv5/top1"] > 0.3
    assert (result.rows["conv5/prediction"] != single.rows["conv5/prediction"]).any()


def test_nothing_past_the_last_layer_is_computed(sample, recipe):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 7, 8), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            self.second(self.first(x))
            raise AssertionError("computed to the end")

    backbone = Backbone(ModuleNet(Net()), InputSpec("rgb", 64, 72))
    assert transfer.linear_probe(backbone, sample, "first", recipe).metrics["first/top1"] > 0.1


def test_any_module_with_named_layers_can_be_probed(sample, recipe):
    torch.manual_seed(0)
    module = nn.Sequential()
    module.stem, module.pool, module.embedding = nn.Conv2d(3, 6, 9, 8), nn.AdaptiveAvgPool2d(3), nn.Flatten()
    result = transfer.linear_probe(
        module, sample, "all", replace(recipe, crop=CropConfig(64, 72, "centre", mirror=False))
    )
    assert {f"{layer}/top1" for layer in ("stem", "pool", "embedding")} <= set(result.metrics)
    assert result.backbone == "Sequential"


def test_a_vit_is_probed_by_class_and_patch_tokens(sample, recipe):
    source = "random:timm:vit_tiny_patch16_224,size=64,resize=72"
    result = transfer.linear_probe(source, sample, "block12*", recipe)
    assert {"block12/top1", "block12_class/top1"} <= set(result.metrics)


def test_layers_are_names_lists_and_patterns(alexnet):
    assert alexnet.choose_layers("all") == alexnet.layers
    assert alexnet.choose_layers("conv5, conv1") == ("conv1", "conv5")
    assert alexnet.choose_layers("pool*") == ("pool1", "pool2", "pool5")
    with pytest.raises(UserError, match="unknown layer 'conv9'; available: conv1, pool1"):
        alexnet.choose_layers("conv9")


def test_features_that_are_not_finite_are_one_sentence(sample, recipe, alexnet):
    alexnet.net.conv2.conv.bias.data[3] = float("nan")
    with pytest.raises(UserError, match=r"the features of layer 'conv3' are not finite"):
        transfer.linear_probe(alexnet, sample, "conv1,conv3", recipe)


def test_class_accuracies_average_to_the_whole(sample, recipe, alexnet):
    result = transfer.linear_probe(alexnet, sample, "conv3", recipe)
    by_class = [result.metrics[f"conv3/top1/{name}"] for name in sample[0].classes]
    assert np.mean(by_class) == pytest.approx(result.metrics["conv3/top1"])  # twelve images of each
    assert result.metrics["conv3/top5"] >= result.metrics["conv3/top1"]
    assert json.dumps(result.metrics)
