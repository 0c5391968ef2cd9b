"""Preprocessing of pretrained weights: its origin is reported, and every attribute can be overridden."""

import json
import math
import re

import pytest
import timm
import torch
import torchvision

import transfer
from crosschannel import UserError, load_backbone
from crosschannel.cli import main
from crosschannel.models import InputSpec
from crosschannel.models.describe import describe_input

TORCHVISION = "torchvision:shufflenet_v2_x0_5"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIT = "vit_tiny_patch16_224"
STATED = {
    "input_size": (3, 192, 192),
    "crop_pct": 0.75,
    "interpolation": "bilinear",
    "mean": (0.1, 0.2, 0.3),
    "std": (1, 2, 3),
}
AS_STATED = InputSpec("rgb", 192, 256, "bilinear", (0.1, 0.2, 0.3), (1, 2, 3))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Plain state dicts of a ViT, a ResNet and a small torchvision net."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(timm.create_model(VIT).state_dict(), folder / "vit.pth")
    torch.save(timm.create_model("resnet10t").state_dict(), folder / "resnet.pth")
    torch.save(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), folder / "shuffle.pth")
    return folder


def cfg(name: str) -> dict:
    """Return timm's own preprocessing config of a tag."""
    return timm.models.get_pretrained_cfg(name).to_dict()


@pytest.mark.parametrize(
    ("source", "tag", "origin"),
    [
        (f"timm:{VIT},weights=vit.pth", VIT, "timm's default tag augreg_in21k_ft_in1k, since vit.pth has none"),
        (f"timm:{VIT}.augreg_in21k,weights=vit.pth", f"{VIT}.augreg_in21k", "timm's tag augreg_in21k, since vit.pth"),
        ("timm:resnet10t,weights=resnet.pth", "resnet10t", "timm's default tag c3_in1k, since resnet.pth has none"),
        (f"timm:{VIT},weights=none", VIT, "timm's default tag augreg_in21k_ft_in1k"),
        (
            f"random:timm:{VIT},weights=vit.pth",
            VIT,
            "timm's default tag augreg_in21k_ft_in1k, since vit.pth has none",
        ),
    ],
)
def test_origin_of_the_preprocessing_is_reported_for_weights_of_a_file(weights, monkeypatch, source, tag, origin):
    monkeypatch.chdir(weights)
    backbone = load_backbone(source)
    config = cfg(tag)
    assert (backbone.input.mean, backbone.input.std) == (config["mean"], config["std"])
    assert backbone.input.interpolation == config["interpolation"]
    (line, *_) = describe_input(backbone)
    size = config["input_size"][1]
    resize = math.floor(size / config["crop_pct"])
    assert line.startswith(f"input: rgb, size {size}, resize {resize}, ") and origin in line
    for key in ("size", "resize", "interpolation", "mean", "std"):
        assert f"{key}=" in line and f"{key} " in line


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"mean": "0.485:0.456:0.406", "std": "0.229:0.224:0.225"}, IMAGENET),
        ({"mean": "0", "std": "1"}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"resize": "256", "interpolation": "bilinear"}, {"resize": 256, "interpolation": "bilinear"}),
        ({"size": "160"}, {"size": 160}),
    ],
)
@pytest.mark.parametrize(
    "source", [f"timm:{VIT},weights=vit.pth", "torchvision:shufflenet_v2_x0_5,weights=shuffle.pth"]
)
def test_source_options_override_every_input_attribute(weights, monkeypatch, source, options, changed):
    monkeypatch.chdir(weights)
    backbone = load_backbone(source + "".join(f",{key}={value}" for key, value in options.items()))
    assert {key: getattr(backbone.input, key) for key in changed} == changed
    assert f"with {' and '.join(sorted(options))} from the source" in describe_input(backbone)[0]


@pytest.mark.parametrize("place", ["pretrained_cfg", "default_cfg", "config.json", "config.json of old"])
@pytest.mark.parametrize("source", ["timm:resnet10t", "timm:resnet10t.c3_in1k"])
def test_preprocessing_stored_with_a_file_is_used(weights, tmp_path, place, source):
    state, path = torch.load(weights / "resnet.pth"), tmp_path / "w.pth"
    torch.save({"state_dict": state} | ({place: STATED} if place.endswith("cfg") else {}), path)
    if place == "config.json":
        (tmp_path / place).write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": STATED}))
    elif place == "config.json of old":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", **STATED}))
    backbone = load_backbone(f"{source},weights={path}")
    assert backbone.input == AS_STATED
    assert re.search(rf"\(from {place.split()[0]} (of|next to) w.pth;", describe_input(backbone)[0])
    assert load_backbone(f"{source},weights={path},mean=0.5").input.mean == (0.5,) * 3


def test_untrained_twin_uses_the_input_stored_with_the_trained_weights(weights, tmp_path):
    torch.save({"model": torch.load(weights / "shuffle.pth"), "pretrained_cfg": STATED}, tmp_path / "w.pth")
    twin = load_backbone(f"random:{TORCHVISION},weights={tmp_path / 'w.pth'},size=64").input
    assert (twin.mean, twin.std, twin.interpolation) == (AS_STATED.mean, AS_STATED.std, AS_STATED.interpolation)
    old, new = (f"random:torchvision:mobilenet_v2,size=64,weights=IMAGENET1K_V{version}" for version in (1, 2))
    assert (load_backbone(old).input.resize, load_backbone(new).input.resize) == (256, 232)  # torchvision's own


@pytest.mark.parametrize("side", [64, 160, 224])
def test_vit_weights_are_resized_unless_the_file_has_the_requested_size(weights, tmp_path, side):
    vit = timm.create_model(VIT, img_size=side, num_classes=0).eval()
    torch.save(vit.state_dict(), tmp_path / "w.pth")
    x = torch.rand(1, 3, side, side)
    for path, model in ((tmp_path / "w.pth", vit), (weights / "vit.pth", timm.create_model(VIT, num_classes=0).eval())):
        if model is not vit:
            model.load_state_dict({k: v for k, v in torch.load(path).items() if not k.startswith("head.")})
            model.set_input_size(img_size=side)  # timm's own resampling
        backbone = load_backbone(f"timm:{VIT},weights={path},size={side}")
        with torch.no_grad():
            theirs = model.forward_features(x)[:, 0]
            assert torch.allclose(
                backbone.features(x, ["block12_class"])["block12_class"].flatten(1), theirs, atol=1e-5
            )


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"architectures": ["ViT"]}', json.dumps({"architecture": VIT, "pretrained_cfg": STATED})]
)
def test_unrelated_config_json_is_ignored(weights, tmp_path, content):
    (tmp_path / "w.pth").write_bytes((weights / "resnet.pth").read_bytes())
    (tmp_path / "config.json").write_text(content)
    backbone = load_backbone(f"timm:resnet10t,weights={tmp_path / 'w.pth'}")
    assert backbone.input.mean == cfg("resnet10t")["mean"] and "w.pth has none" in describe_input(backbone)[0]


@pytest.mark.parametrize(
    "change", [{"mean": "x"}, {"std": (0, 0, 0)}, {"input_size": 3}, {"crop_pct": "a"}, {"mean": (1,)}]
)
def test_invalid_stored_preprocessing_is_reported_in_one_sentence(weights, tmp_path, change):
    torch.save({"model": torch.load(weights / "resnet.pth"), "pretrained_cfg": STATED | change}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"pretrained_cfg of w.pth is not a valid input specification") as caught:
        load_backbone(f"timm:resnet10t,weights={tmp_path / 'w.pth'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["random:alexnet,fc=0,size=64,norm=false", "timm:resnet10t,weights=none,input=grey"])
def test_mean_is_refused_for_a_grey_input(source):
    with pytest.raises(UserError, match="mean and std apply to RGB, but this net has grey input"):
        load_backbone(f"{source},mean=0.5")


def test_files_of_published_formats_take_the_same_options(tmp_path):
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "a.pth")
    backbone = load_backbone(f"{tmp_path / 'a.pth'},mean=0.5,std=0.25,interpolation=bicubic")
    assert backbone.input == InputSpec("rgb", 224, 256, "bicubic", (0.5,) * 3, (0.25,) * 3)
    assert "from the format torchvision-alexnet, with interpolation and mean and std" in describe_input(backbone)[0]


def test_input_is_printed_before_a_measurement_and_by_the_layers_command(weights, photo_folder, tmp_path, capsys):
    source = f"timm:resnet10t,weights={weights / 'resnet.pth'},size=64"
    keys = {"layers": "stage1", "k": (1,), "workers": 0, "quiet": False}
    transfer.knn(source, str(photo_folder), out=tmp_path / "run", **keys)
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("input: ")]
    first = next(number for number, text in enumerate(lines) if "training and" in text)
    assert lines.index(line) < first and "size 64" in line and "since resnet.pth has none" in line
    assert json.loads((tmp_path / "run" / "backbone.json").read_text())["details"]["preprocessing"].startswith("timm's")
    assert main(["layers", source]) == 0
    assert line in capsys.readouterr().err
