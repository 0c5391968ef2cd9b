"""Weights files for library nets: any prefix, several nets per file, any head or none."""

import argparse
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from crosschannel import UserError, load_backbone
from crosschannel.cli import main
from crosschannel.hub import load_classifier
from crosschannel.hub.convert import import_weights
from crosschannel.hub.state_dicts import choose_net

RGB = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    """Randomise the BatchNorm statistics of a model and switch it to eval mode."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def net():
    """Small torchvision net with an fc layer."""
    torch.manual_seed(0)
    return randomised(torchvision.models.shufflenet_v2_x0_5(weights=None))


def features(source: str) -> torch.Tensor:
    with torch.no_grad():
        return load_backbone(f"{source},size=64")(RGB, ["conv5"])["conv5"]


@torch.no_grad()
def expected(model: nn.Module) -> torch.Tensor:
    """Features before global pooling and fc, computed with torchvision's own modules."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return nn.Sequential(*list(model.children())[:-1])((RGB - mean) / std)


MLP = {"fc.0.weight": torch.ones(9, 1024), "fc.0.bias": torch.ones(9), "fc.2.weight": torch.ones(9, 9)}
HEADS = {"none": {}, "of 7 classes": {"fc.weight": torch.ones(7, 1024), "fc.bias": torch.ones(7)}, "an MLP": MLP}
PREFIXES = ["", "module.", "model.", "backbone.", "encoder_q.", "module.encoder_q.", "student.net.", "_orig_mod."]


@pytest.mark.parametrize(("prefix", "head"), [(p, list(HEADS)[i % 3]) for i, p in enumerate(PREFIXES)])
def test_any_prefix_and_any_head(tmp_path, net, prefix, head):
    trunk = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}
    torch.save({"state_dict": under(prefix, trunk | HEADS[head]), "epoch": 3}, tmp_path / "w.pth")
    backbone = load_backbone(f"torchvision:shufflenet_v2_x0_5,weights={tmp_path / 'w.pth'},size=64")
    with torch.no_grad():
        assert torch.allclose(backbone(RGB, ["conv5"])["conv5"], expected(net), atol=1e-5)
    has_fc = head == "of 7 classes"
    assert ("fc" in backbone.layers) == has_fc and ("fc" in backbone.net.left_out) != has_fc
    note = backbone.provenance.details["checkpoint"]
    assert f"net state_dict.{prefix}".removesuffix(".") in note
    assert ("unused: fc.0, fc.2" in note) == (head == "an MLP")


FAMILIES = ["mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "squeezenet1_0"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_torchvision_family_loads_without_its_head(tmp_path, name):
    torch.manual_seed(0)
    model = randomised(torchvision.models.get_model(name, weights=None))
    head = "fc" if hasattr(model, "fc") else "classifier"
    trunk = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(f"{head}.")}
    torch.save(under("backbone.", trunk), tmp_path / "w.pth")
    backbone = load_backbone(f"torchvision:{name},weights={tmp_path / 'w.pth'},size=64")
    assert head in backbone.net.left_out and head not in backbone.layers
    last = next(layer for layer in reversed(backbone.layers) if list(backbone.get_module(layer).parameters()))
    outputs = []
    model.get_submodule(last).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        model(backbone.preprocess(RGB))
        assert torch.allclose(backbone(RGB, [last])[last], outputs[0], atol=1e-5)


@pytest.fixture(scope="module")
def trunk():
    """Convolutions of torchvision's AlexNet."""
    return {k: v for k, v in torchvision.models.alexnet(weights=None).state_dict().items() if k.startswith("features")}


@pytest.mark.parametrize("fc", [{}, {"classifier.1": (8, 9216), "classifier.4": (8, 8)}])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_published_formats_keep_the_fc_layers_of_the_file(tmp_path, trunk, fc, ending):
    weights = {f"{name}.weight": torch.ones(shape) for name, shape in fc.items()}
    state = under("module.encoder_q.", trunk | weights | {f"{name}.bias": torch.ones(8) for name in fc})
    path = tmp_path / f"w.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save({"state_dict": state}, path)
    assert load_backbone(str(path)).layers[-1] == ("fc7" if fc else "pool5")


def test_torchvision_alexnet_without_classifier_loads_as_a_trunk(tmp_path, trunk):
    torch.save(under("backbone.", trunk), tmp_path / "w.pth")
    backbone = load_backbone(f"torchvision:alexnet,weights={tmp_path / 'w.pth'}")
    assert backbone.layers[-1] == "pool5" and torch.equal(backbone.net.conv1.conv.weight, trunk["features.0.weight"])


@pytest.mark.parametrize(("name", "layer"), [("resnet10t", "stage5"), ("vit_tiny_patch16_224", "block12_class")])
@pytest.mark.parametrize("classes", [0, 5])
def test_timm_files_load_with_any_head(tmp_path, name, layer, classes):
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=classes).eval()
    extra = {"fc.0.weight" if name == "resnet10t" else "head.mlp.0.weight": torch.ones(2, 2)} if not classes else {}
    torch.save({"model": under("module.backbone.", model.state_dict() | extra)}, tmp_path / "w.pth")
    backbone = load_backbone(f"timm:{name},weights={tmp_path / 'w.pth'}")
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps = model.forward_features(backbone.preprocess(x))
        theirs = maps if maps.ndim == 4 else maps[:, 0, :, None, None]
        assert torch.allclose(backbone(x, [layer])[layer], theirs, atol=1e-4)
    if classes:
        assert load_classifier(f"timm:{name},weights={tmp_path / 'w.pth'}").outputs == classes
    else:
        with pytest.raises(UserError, match="has no classifier: its file has no weights for"):
            load_classifier(f"timm:{name},weights={tmp_path / 'w.pth'}")


def zeros(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("state_dict_ema", "state_dict"), ("model_ema", "model"), ("ema", "model"), ("ema_state_dict", "state_dict"),
        ("ema_model", "net"), ("teacher", "student"), ("base_encoder", "momentum_encoder"), ("ema.net", "raw.net"),
    ],
)  # fmt: skip
def test_averaged_weights_are_preferred_to_raw_ones(tmp_path, net, right, wrong, capsys):
    state = net.state_dict()
    file = {**under(f"{wrong}.", zeros(state)), **under(f"{right}.", state)}
    nested = {wrong: zeros(state), right: under("module.", state), "args": argparse.Namespace(lr=0.1), "epoch": 9}
    for content in (file, nested if "." not in right else file):
        torch.save(content, tmp_path / "w.pth")
        source = f"torchvision:shufflenet_v2_x0_5,weights={tmp_path / 'w.pth'}"
        assert torch.allclose(features(source), expected(net), atol=1e-5)
        assert features(f"{source},key={wrong}").abs().max() == 0
    assert main(["layers", f"{source},size=64"]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("weights: "))
    assert f"net {right}" in line and f"(not {wrong}" in line


def test_weights_of_a_torch_averaged_model_load(tmp_path, monkeypatch):
    averaged = AveragedModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    torch.save(averaged.state_dict(), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "averaged_nets.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    )
    backbone = load_backbone("averaged_nets:net,weights=w.pth,size=64")
    assert torch.equal(backbone.net.model[0].weight, averaged.module[0].weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: {"a": state, "b": state}, r"several matching nets \(a, b\); choose one with key="),
        (lambda state: {**state, **under("module.", state)}, "two tensors with the same name"),
        (
            lambda state: {k: v for k, v in state.items() if k != "stage3.0.branch1.0.weight"},
            "lacks stage3.0.branch1.0.weight",
        ),
        (
            lambda state: {**state, "stage3.9.branch1.0.weight": torch.zeros(2)},
            "has the unexpected tensor stage3.9.branch1.0.weight",
        ),
        (
            lambda state: {**under("encoder.", state), "encoder.stage2.7.w": torch.zeros(2)},
            "unexpected tensor stage2.7.w",
        ),
        (lambda state: {**state, "conv1.0.weight": torch.zeros(64, 3, 3, 3)}, "wrong shape for conv1.0.weight"),
        (lambda state: {"optimizer": {"lr": torch.zeros(1)}}, "lacks conv1.0.weight"),
        (lambda state: {"model": "resnet18"}, "does not hold named tensors"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, net, content, message):
    torch.save(content(dict(net.state_dict())), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(f"torchvision:shufflenet_v2_x0_5,weights={tmp_path / 'w.pth'}")
    assert "w.pth" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "torchvision:shufflenet_v2_x0_5,weights=w.pth,key=gone",
            "no matching net at key=gone; available: one, two.net",
        ),
        ("torchvision:resnet18,key=one,weights=none", "key= selects a net in a weights file"),
        ("timm:resnet18,key=one,weights=none", "key= selects a net in a weights file"),
        ("torchvision:resnet18,weights=gone.pth", "no weights file 'gone.pth'"),
        ("torchvision:resnet18,weights=IMAGENET1K_V7", "torchvision's: IMAGENET1K_V1, DEFAULT"),
        ("timm:resnet18.nothing", "timm's resnet18 has no tag 'nothing'; available tags: a1_in1k"),
    ],
)
def test_source_without_valid_weights_is_reported_in_one_sentence(tmp_path, monkeypatch, net, source, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"one": net.state_dict(), "two": {"net": net.state_dict()}}, "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(source)
    assert "\n" not in str(caught.value)


def test_import_reports_which_net_of_the_file_it_chose(tmp_path, trunk, capsys):
    torch.save({"model": zeros(trunk), "model_ema": under("module.", trunk)}, tmp_path / "a.pth")
    assert main(["import", str(tmp_path / "a.pth"), f"--out={tmp_path / 'ema.safetensors'}"]) == 0
    assert "read: net model_ema.module (not model; key= selects another)" in capsys.readouterr().out
    ours = load_backbone(str(tmp_path / "ema.safetensors")).net.conv1.conv.weight
    assert torch.equal(ours, trunk["features.0.weight"])
    assert main(["import", str(tmp_path / "a.pth"), "--key=model", f"--out={tmp_path / 'raw.safetensors'}"]) == 0
    assert load_backbone(str(tmp_path / "raw.safetensors")).net.conv1.conv.weight.abs().max() == 0
    assert import_weights(tmp_path / "a.pth", key="model").prefix_note.startswith("net model")


@pytest.mark.parametrize("seed", range(20))
def test_net_is_extracted_unchanged_from_any_checkpoint(seed):
    """Names have one to three parts, some of them equal, under a random prefix and next to other tensors."""
    generator = torch.Generator().manual_seed(seed)

    def number(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    def name(parts: int) -> str:
        return ".".join("abcde"[number(5)] + str(number(3)) for _ in range(parts))

    names = OrderedDict((f"{name(1 + number(3))}.weight", torch.rand(1)) for _ in range(10))
    prefix = "".join(f"{name(1)}x." for _ in range(number(4)))
    wrapped = {f"module.{prefix}{key}" if seed % 2 else prefix + key: value for key, value in names.items()}
    rest = {f"optimizer.{name(2)}.moment": torch.rand(1) for _ in range(5)}
    state = choose_net(wrapped | rest, names, "file").tensors
    assert {key: state[key] for key in names} == dict(names)
    assert prefix == "" or state.keys() == names.keys()
