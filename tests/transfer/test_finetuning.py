"""What is trained, what stays, what is new; and twenty steps against a restatement in plain PyTorch."""

import copy
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import transfer
from crosschannel import UserError, load_backbone, wrap
from crosschannel.config.training import OptimConfig, RuntimeConfig, ScheduleConfig, TrainConfig
from crosschannel.data import Record, Stream, load_batches
from crosschannel.data.order import mix
from crosschannel.data.views import SampleRNG
from crosschannel.models import AlexNet, Backbone, InputSpec
from crosschannel.models.layers import absorb_batchnorm
from transfer import finetuning
from transfer.finetuning import FineTuned, FineTunedClassifier, frozen_names, initialise, prepare
from transfer.pascal.config import PascalConfig
from transfer.pascal.devkit import open_devkit
from transfer.protocols.classify.config import ClassifyConfig
from transfer.protocols.classify.task import RandomScaleCrops

sys.path.insert(0, str(Path(__file__).parent))
from devkits import make_devkit

pytestmark = pytest.mark.usefixtures("narrow_nets")


@pytest.fixture(scope="module")
def voc(tmp_path_factory, photos):
    return make_devkit(tmp_path_factory.mktemp("voc"), photos)


@pytest.fixture(scope="module")
def split(voc):
    return open_devkit(str(voc), PascalConfig("", ""))


def recipe(**keys) -> ClassifyConfig:
    """Four small steps."""
    told = {
        "optim": OptimConfig("sgd", 1e-4, weight_decay=1e-3, bias_lr=2.0, bias_decay=True, clip=10.0),
        "schedule": ScheduleConfig("step", every=10, factor=0.5),
        "train": TrainConfig(4, steps=4, precision="float32", channels_last=False, compile=False),
        "runtime": RuntimeConfig(0, tensorboard=False),
        "calibrate": False,
        "test_crops": 2,
    }
    return ClassifyConfig("", "", **{**told, **keys})


@pytest.fixture(scope="module")
def alexnet(narrow_nets):
    return load_backbone("random:alexnet,fc=24,data=builtin:sample,seed=1")


@pytest.fixture(scope="module")
def resnet():
    return load_backbone("random:timm:test_resnet,size=64,resize=72")


ALEXNET = {
    "fc8": ({"score"}, ["fc8", "head"]),
    "fc6": ({"fc6", "fc7", "score"}, ["fc6", "pool"]),
    "conv4": ({"conv4", "conv5", "fc6", "fc7", "score"}, ["conv4"]),
    "all": ({"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "score"}, ["all", "conv1"]),
}


def trained_parts(net: FineTuned) -> set[str]:
    """Layers of which any parameter gets gradients."""
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    return {name.split(".")[0] if name.startswith("score") else name.split(".")[2] for name in names}


@pytest.mark.parametrize("column", ALEXNET)
def test_only_the_intended_parameters_of_an_alexnet_have_gradients_and_move(alexnet, split, column, tmp_path):
    expected, names = ALEXNET[column]
    for name in names:
        config = recipe(train_from=name)
        backbone, new = prepare(alexnet, config)
        net = FineTunedClassifier(backbone, 20, 0.5)
        net.freeze(*frozen_names(net, config))
        assert trained_parts(net) == expected and new == []
    before = {name: value.clone() for name, value in alexnet.state_dict().items()}
    absorbed = copy.deepcopy(alexnet)
    absorb_batchnorm(absorbed.net)
    transfer.classify(alexnet, split, column, recipe(), out=tmp_path / "run")
    assert all(torch.equal(before[name], value) for name, value in alexnet.state_dict().items())
    kept, start = load_file(tmp_path / "run" / "net.safetensors"), absorbed.state_dict()
    for name, value in start.items():
        layer = name.split(".")[1]
        assert torch.equal(kept[f"backbone.{name}"], value) == (layer not in expected), name


@pytest.mark.parametrize(("start", "moved"), [("head", set()), ("stage4", {"layer3", "layer4"}), ("all", None)])
def test_only_the_intended_parameters_of_a_resnet_move_statistics_too(resnet, split, start, moved, tmp_path):
    """timm's stage1 is the stem: stage4 is layer3."""
    transfer.classify(resnet, split, start, recipe(size=64), out=tmp_path / "run")
    kept = load_file(tmp_path / "run" / "net.safetensors")
    for name, value in resnet.state_dict().items():
        part = name.removeprefix("net.model.").split(".")[0]
        if value.is_floating_point() and value.numel() > 1:
            assert torch.equal(kept[f"backbone.{name}"], value) == (moved is not None and part not in moved), name


def test_frozen_norm_keeps_statistics_scale_and_shift(resnet, split, tmp_path):
    transfer.classify(resnet, split, "all", recipe(size=64, frozen_norm=True), out=tmp_path / "run")
    kept = load_file(tmp_path / "run" / "net.safetensors")
    norms = {name for name, module in resnet.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, value in resnet.state_dict().items():
        assert torch.equal(kept[f"backbone.{name}"], value) == (name.rpartition(".")[0] in norms), name


def plain_training(backbone: Backbone, stream, labels, trained: set[str], score: nn.Linear, seed: int, steps: int):
    """AlexNet's fine-tuning as a script would have it: no module of this library's training."""
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    convs = {name: backbone.net.get_submodule(name).conv for name in names}
    weights = {name: (conv.weight.detach().clone(), conv.bias.detach().clone()) for name, conv in convs.items()}
    weights["score"] = (score.weight.detach().clone(), score.bias.detach().clone())
    for name, pair in weights.items():
        for tensor in pair:
            tensor.requires_grad_(name in trained)
    moving = [weights[name] for name in weights if name in trained]
    optimizer = torch.optim.SGD(
        [{"params": [w for w, _ in moving], "lr": 1e-4}, {"params": [b for _, b in moving], "lr": 2e-4}],
        momentum=0.9, weight_decay=1e-3,
    )  # fmt: skip

    def net(x):
        x = F.relu(F.conv2d(x, *weights["conv1"], stride=4))
        x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2, ceil_mode=True), *weights["conv2"], padding=2, groups=2))
        x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2, ceil_mode=True), *weights["conv3"], padding=1))
        x = F.relu(F.conv2d(x, *weights["conv4"], padding=1, groups=2))
        x = F.relu(F.conv2d(x, *weights["conv5"], padding=1, groups=2))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = F.dropout(F.relu(F.conv2d(x, *weights["fc6"])), 0.5)
        x = F.dropout(F.relu(F.conv2d(x, *weights["fc7"])), 0.5)
        return F.linear(x.flatten(1), *weights["score"])

    for step, batch in enumerate(load_batches(stream, 0, 4 * steps, 4)):
        torch.manual_seed(mix(seed, step, 0) >> 1)
        for group, rate in zip(optimizer.param_groups, (1e-4, 2e-4), strict=True):
            group["lr"] = rate * 0.5 ** (step // 10)
        logits, target = net(backbone.preprocess(batch.images)), labels[batch.indices]
        loss = sum(
            F.softplus(-logits[i, c]) if target[i, c] == 1 else F.softplus(logits[i, c])
            for i in range(4) for c in range(20) if target[i, c] >= 0
        ) / 4  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for pair in moving for p in pair], 10.0)
        optimizer.step()
    return weights


@pytest.mark.parametrize("column", ["fc8", "fc6", "all"])
def test_twenty_steps_are_those_of_plain_pytorch(alexnet, split, column, tmp_path):
    config = recipe(train_from=column, train=TrainConfig(4, steps=20, precision="float32", channels_last=False))
    config = replace(config, train=replace(config.train, compile=False))
    transfer.classify(alexnet, split, column, config, out=tmp_path / "run")
    torch.manual_seed(config.seed)
    backbone, _ = prepare(alexnet, config)
    start = FineTunedClassifier(backbone, 20, 0.5)
    stream = Stream(split.train, RandomScaleCrops(227), config.seed)
    initialise(start, [], config, stream)
    labels = torch.from_numpy(split.train.labels)
    expected = plain_training(backbone, stream, labels, ALEXNET[column][0], start.score, config.seed, 20)
    kept = load_file(tmp_path / "run" / "net.safetensors")
    moved = 0.0
    for name, pair in expected.items():
        for kind, value in zip(("weight", "bias"), pair, strict=True):
            ours = kept[f"score.{kind}" if name == "score" else f"backbone.net.{name}.conv.{kind}"]
            assert (ours - value).abs().max() <= 1e-4, name
            begun = start.state_dict()[f"score.{kind}" if name == "score" else f"backbone.net.{name}.conv.{kind}"]
            moved = max(moved, (ours - begun).abs().max().item())
    assert moved > 5e-4


def test_a_trunk_gets_fresh_fully_connected_layers_in_the_geometry_of_transfer(split):
    trunk = load_backbone("random:alexnet,fc=0,geometry=padded,size=64,resize=72")
    backbone, new = prepare(trunk, recipe(fc=16))
    assert new == ["fc6", "fc7"] and backbone.net.spec.options.geometry == "probe" and backbone.input.size == 227
    assert backbone.net.fc6.conv.weight.shape == (16, 64, 6, 6) and not backbone.net.has_norm
    for layer in ("conv1", "conv5"):
        absorbed = absorb_batchnorm(copy.deepcopy(trunk.net)).get_submodule(layer).conv.weight
        assert torch.equal(backbone.net.get_submodule(layer).conv.weight, absorbed)
    net = FineTunedClassifier(backbone, 20, 0.5)
    initialise(net, new, recipe(fc=16), Stream(split.train, RandomScaleCrops(227), 0))
    weight, bias = net.backbone.net.fc6.conv.weight, net.backbone.net.fc6.conv.bias
    assert weight.std().item() == pytest.approx(0.01, rel=0.02) and (bias == 0.1).all()
    for more in ({}, {"random_from": "fc8"}, {"random_from": "fc7"}):
        with pytest.raises(
            UserError, match=r"fc8 would freeze the newly initialised layer fc6; set train_from to fc6 or all"
        ):
            prepare(trunk, recipe(train_from="fc8", **more))


@pytest.fixture
def few(monkeypatch):
    """Calibration and k-means look at a fifth of their crops."""
    monkeypatch.setattr(finetuning, "_CROPS", 16)


def test_kmeans_fills_the_new_layers_below_the_classifier(split, few):
    trunk = load_backbone("random:alexnet,fc=0,geometry=padded,size=64,resize=72")
    config = recipe(fc=16, new_layers="kmeans")
    backbone, new = prepare(trunk, config)
    net, stream = FineTunedClassifier(backbone, 20, 0.5), Stream(split.train, RandomScaleCrops(227), 0)
    convs = net.backbone.net.conv5.conv.weight.clone()
    initialise(net, new, config, stream)
    assert torch.equal(net.backbone.net.conv5.conv.weight, convs)
    batch = next(load_batches(stream, 0, 80, 80))
    with torch.no_grad():
        before_relu = net.backbone.net.fc6.conv(
            net.backbone.features(net.backbone.preprocess(batch.images), ["pool5"])["pool5"]
        )
    assert before_relu.std(0).mean().item() == pytest.approx(1, abs=0.2)  # unit variance on 160 crops
    assert net.score.weight.std().item() == pytest.approx(0.01, rel=0.2)


def test_random_from_makes_layers_anew(alexnet, split):
    backbone, new = prepare(alexnet, recipe(random_from="fc6"))
    assert new == ["fc6", "fc7"]
    net = FineTunedClassifier(backbone, 20, 0.5)
    kept = backbone.net.fc6.conv.weight.clone(), backbone.net.conv5.conv.weight.clone()
    initialise(net, new, recipe(), Stream(split.train, RandomScaleCrops(227), 0))
    assert not torch.equal(kept[0], backbone.net.fc6.conv.weight) and torch.equal(
        kept[1], backbone.net.conv5.conv.weight
    )
    assert prepare(alexnet, recipe(random_from="conv4"))[1] == ["conv4", "conv5", "fc6", "fc7"]
    with pytest.raises(UserError, match="would freeze the newly initialised layer conv4"):
        prepare(alexnet, recipe(random_from="conv4", train_from="fc6"))


def test_lab_input_widens_a_grey_net_without_changing_what_it_says(alexnet):
    backbone, _ = prepare(alexnet, recipe(input="lab"))
    assert backbone.input.kind == "lab" and backbone.net.spec.in_channels == 3
    rgb = torch.rand(2, 3, 227, 227)
    absorbed = absorb_batchnorm(copy.deepcopy(alexnet.net))
    expected = absorbed.forward_features(alexnet.preprocess(rgb), ["fc7"])["fc7"]
    assert torch.allclose(backbone(rgb, ["fc7"])["fc7"], expected, atol=1e-4)
    assert not backbone.net.conv1.conv.weight[:, 1:].any()


REFUSED = [
    ({"input": "lab", "train_from": "fc6"}, "input lab adds filters to the first layer; set train_from to all"),
    ({"train_from": "fc9"}, r"train_from 'fc9' is unknown; choose fc8, fc6, all or a layer: conv1, pool1"),
    ({"random_from": "conv9"}, r"random_from 'conv9' is unknown; choose fc8"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_choices_that_cannot_be_are_one_sentence(alexnet, keys, words):
    with pytest.raises(UserError, match=words):
        prepare(alexnet, recipe(**keys))


def test_inputs_that_contradict_each_other_are_refused(alexnet, resnet):
    lab = load_backbone("random:alexnet,fc=0,input=lab,size=64,resize=72,norm=false")
    with pytest.raises(UserError, match="input grey: this backbone has input lab"):
        prepare(lab, recipe(input="grey"))
    with pytest.raises(UserError, match="input lab: this backbone has input rgb"):
        prepare(resnet, recipe(input="lab"))
    with pytest.raises(UserError, match="choose head, all or a layer: stage1"):
        prepare(resnet, recipe(train_from="fc8"))
    assert prepare(lab, recipe(input="lab", fc=8))[0].input.kind == "lab"


def test_calibration_is_for_nets_without_norms_whose_layers_follow_one_another(resnet, split, few):
    stream = Stream(split.train, RandomScaleCrops(227), 0)
    backbone, _ = prepare(load_backbone("random:alexnet,fc=8,data=builtin:sample"), recipe())
    net = FineTunedClassifier(backbone, 20, 0.5)
    before = backbone.net.conv3.conv.weight.clone()
    initialise(net, [], recipe(calibrate="auto"), stream)
    ratio = backbone.net.conv3.conv.weight / before
    assert ratio.std() < 1e-3 and abs(ratio.mean().item() - 1) > 0.05  # one factor a layer
    lrn = prepare(load_backbone("gaussian:alexnet,fc=8,variant=caffenet"), recipe())[0]
    same = lrn.net.conv3.conv.weight.clone()
    initialise(FineTunedClassifier(lrn, 20, 0.5), [], recipe(calibrate="auto"), stream)
    assert torch.equal(lrn.net.conv3.conv.weight, same)
    with pytest.raises(UserError, match="calibrate true needs a built-in architecture without normalisation layers"):
        initialise(FineTunedClassifier(prepare(resnet, recipe())[0], 20, 0.5), [], recipe(calibrate=True), stream)


def test_dropout_stays_active_above_frozen_layers(alexnet):
    backbone, _ = prepare(alexnet, recipe(train_from="fc8"))
    net = FineTunedClassifier(backbone, 20, 0.5)
    net.freeze(*frozen_names(net, recipe(train_from="fc8")))
    x = torch.rand(1, 1, 227, 227)
    assert not torch.equal(net.train()(x), net(x)) and torch.equal(net.eval()(x), net(x))


def test_parts_below_a_layer_are_what_its_map_depends_on(resnet):
    """Against a change of each parameter in turn."""
    backbone = copy.deepcopy(resnet)
    x, found = torch.randn(1, 3, 64, 64), backbone.parameters_through("stage2")
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm starts the last of a block at zero
            nn.init.ones_(module.weight)
    before = backbone.features(x, ["stage2"])["stage2"]
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 4 or "bn1.weight" in name:
                kept = parameter.clone()
                parameter.mul_(1.5)
                changed = not torch.equal(backbone.features(x, ["stage2"])["stage2"], before)
                parameter.copy_(kept)
                assert changed == (name in found), name
    assert "net.model.bn1" in backbone.modules_through("stage1")
    assert not any("layer3" in name for name in backbone.modules_through("stage2"))


def test_any_module_can_be_wrapped_and_fine_tuned(split, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential()
    module.stem, module.act, module.last = nn.Conv2d(3, 6, 9, 8), nn.ReLU(), nn.Conv2d(6, 12, 3)
    backbone = wrap(module, InputSpec("rgb", 64, 72))
    assert backbone.layers == ("stem", "act", "last") and wrap(backbone) is backbone
    start = {name: value.clone() for name, value in module.state_dict().items()}
    result = transfer.classify(backbone, split, "last", recipe(size=64), out=tmp_path / "run")
    kept = load_file(tmp_path / "run" / "net.safetensors")
    assert torch.equal(kept["backbone.net.model.stem.weight"], start["stem.weight"])
    assert not torch.equal(kept["backbone.net.model.last.weight"], start["last.weight"])
    assert result.backbone == "Sequential" and all(torch.equal(start[n], v) for n, v in module.state_dict().items())


def test_a_classifier_of_ones_own_gives_logits():
    import torchvision

    module = torchvision.models.resnet18(weights=None)
    assert wrap(module.eval()).logits(torch.rand(2, 3, 64, 64)).shape == (2, 1000)
    with pytest.raises(UserError, match="has no classifier"):
        Backbone(AlexNet(fc=0), InputSpec("grey", 64)).logits(torch.rand(1, 1, 64, 64))


def test_windows_are_sampled_bilinearly_without_antialiasing():
    """Against grid_sample in float64 on the window that a crop's draws give it."""
    generator = np.random.default_rng(0)
    pixels, size = generator.integers(0, 256, (60, 90, 3), dtype=np.uint8), 20
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for number in range(20):
        rng = SampleRNG(0, (number,))
        ours = RandomScaleCrops(size, mirror=False)(Record({"image": buffer.getvalue()}), rng).astype(float)
        u = rng.uniforms(4)
        side = round(size * (0.5 + 1.5 * u[0]))
        top, left = int(u[2] * (61 - side)), int(u[1] * (91 - side))
        window = torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1)[None].double()
        places = (torch.arange(size) + 0.5) / size * 2 - 1
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij")[::-1], -1)[None].double()
        theirs = F.grid_sample(window, grid, padding_mode="border", align_corners=False)
        assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 1.01


def test_kmeans_of_new_layers_leaves_the_statistics_of_others(split, few):
    trunk = load_backbone("random:alexnet,fc=0,size=64,resize=72")
    config = recipe(fc=16, new_layers="kmeans", absorb=False)
    backbone, new = prepare(trunk, config)
    net = FineTunedClassifier(backbone, 20, 0.5)
    initialise(net, new, config, Stream(split.train, RandomScaleCrops(227), 0))
    for layer in ("conv1", "conv5"):
        own, before = (n.get_submodule(layer).norm.state_dict() for n in (net.backbone.net, trunk.net))
        assert all(torch.equal(own[key], before[key]) for key in before)


def test_a_net_with_a_classifier_of_its_own_is_fine_tuned_below_it():
    torch.manual_seed(0)
    for source, top in (("torchvision:resnet18", "avgpool"), ("torchvision:mobilenet_v3_small", "avgpool")):
        backbone = load_backbone(f"random:{source},size=64,resize=72")
        assert backbone.top_layer == backbone.trunk_layer == top
        net = FineTunedClassifier(prepare(backbone, recipe())[0], 20, 0.5)
        frozen, _ = frozen_names(net, recipe(train_from="all"))
        assert frozen and all(".fc." in name or ".classifier." in name for name in frozen)
        assert net.score.in_features == backbone.channels[top] < 1000
    vit = load_backbone("random:torchvision:vit_b_16")
    assert vit.top_layer == "encoder"


def test_dropout_of_any_net_stays_active_below_frozen_layers(split):
    module = nn.Sequential()
    module.stem, module.drop, module.last = nn.Conv2d(3, 6, 9, 8), nn.Dropout(0.5), nn.Conv2d(6, 12, 3)
    config = recipe(train_from="head")
    net = FineTunedClassifier(prepare(wrap(module, InputSpec("rgb", 64, 72)), config)[0], 20, 0.5)
    net.freeze(*frozen_names(net, config))
    assert net.train().backbone.net.model.drop.training and not net.backbone.net.model.stem.training


def rate_ratios(net: FineTuned, images: torch.Tensor, draws: int = 1) -> dict[str, float]:
    """sqrt(mean(grad²) / mean(w²)) of the backbone's layers, with noise as the gradient of its last map.

    The mean of grad² is over ``draws`` of the noise, too.
    """
    x, backbone = net.preprocess(images), net.backbone.eval().requires_grad_(True)
    maps = backbone.features(x, [backbone.top_layer])[backbone.top_layer]
    generator = torch.Generator().manual_seed(9)
    weights = {name: value for name, value in backbone.net.named_parameters() if name.endswith("conv.weight")}
    squares = dict.fromkeys(weights, 0.0)
    for _ in range(draws):
        noise = torch.randn(maps.shape, generator=generator)
        gradients = torch.autograd.grad(maps, list(weights.values()), noise, retain_graph=True)
        for name, gradient in zip(weights, gradients, strict=True):
            squares[name] += gradient.square().mean().item() / draws
    return {name: (squares[name] / weight.square().mean().item()) ** 0.5 for name, weight in weights.items()}


@pytest.mark.slow  # minutes each: one draw of the noise tells the rate of a layer to some 15 percent
@pytest.mark.parametrize(
    "source",
    [
        "gaussian:alexnet,input=grey,fc=512",
        "random:alexnet,fc=512,data=builtin:sample",  # BatchNorm is absorbed
        "gaussian:alexnet,input=rgb,fc=512",
    ],
)
def test_calibrated_layers_including_conv1_learn_at_one_rate(source, split, full_nets, all_crops):
    config = recipe(calibrate=True)
    net = FineTunedClassifier(prepare(load_backbone(source), config)[0], 20, 0.5)
    stream = Stream(split.train, RandomScaleCrops(227), 0)
    initialise(net, [], config, stream)
    ratios = rate_ratios(net, next(load_batches(stream, 0, 80, 80)).images, draws=12)
    middle = sorted(ratios.values())[len(ratios) // 2]
    assert all(0.9 < ratio / middle < 1.1 for ratio in ratios.values()), ratios


def test_calibration_leaves_its_input_scale_beside_the_weights(split, monkeypatch):
    """A scale of the input that is folded into conv1 would make conv1 learn 1 / scale² times as fast."""
    monkeypatch.setattr(finetuning, "_CROPS", 4)
    net = FineTunedClassifier(prepare(load_backbone("gaussian:alexnet,input=grey,fc=8"), recipe())[0], 20, 0.5)
    images = next(load_batches(Stream(split.train, RandomScaleCrops(227), 0), 0, 8, 8)).images
    conv1 = net.backbone.net.conv1.conv
    before = conv1.weight.clone()
    initialise(net, [], recipe(calibrate=True), Stream(split.train, RandomScaleCrops(227), 0))
    scale, factor = net.input_scale.item(), (conv1.weight / before).mean().item()
    assert abs(scale - 1) > 0.05 and not net.input_scale.requires_grad
    assert torch.allclose(net.preprocess(images), scale * net.backbone.preprocess(images))
    folded = rate_ratios(net, images)["conv1.conv.weight"]
    with torch.no_grad():
        conv1.weight.mul_(scale)
        net.input_scale.fill_(1)
    assert rate_ratios(net, images)["conv1.conv.weight"] == pytest.approx(folded / scale**2, rel=1e-3) and factor > 0
    state = {name: value for name, value in net.state_dict().items() if name != "input_scale"}
    net.input_scale.fill_(3)
    net.load_state_dict(state)  # of an earlier version
    assert net.input_scale == 1
