"""Our nets under timm's names: the same maps, the shape that a file says, and what timm asks of a model."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import fx

import crosschannel.timm as ours
from crosschannel import load_backbone
from crosschannel.cli import main
from crosschannel.color import rgb_to_lightness
from crosschannel.color.lab import Lightness
from crosschannel.hub import save_backbone
from crosschannel.models import VGG16, AlexNet, InputSpec, NetSpec
from crosschannel.models.backbone import Provenance

NAMES = ["crosschannel_alexnet", "crosschannel_colornet", "crosschannel_vgg16"]
RGB = torch.rand(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))


def save(path: Path, net, spec: NetSpec, size: int) -> str:
    """A file of a net whose BatchNorm has seen something."""
    torch.manual_seed(0)
    net.train()(torch.randn(4, spec.in_channels, size, size) * 20)
    save_backbone(path, net.eval(), spec, InputSpec("grey", size, size), Provenance("test", {}))
    return str(path)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """As pretraining leaves it: conv1 … pool5, padded."""
    return save(tmp_path_factory.mktemp("trunk") / "backbone.safetensors", AlexNet(fc=0), NetSpec("alexnet"), 96)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """With fc6 and fc7 of another width than the usual one."""
    spec = NetSpec("alexnet", fc=64)
    return save(tmp_path_factory.mktemp("whole") / "backbone.safetensors", AlexNet(fc=64), spec, 180)


def from_file(path: str, name: str = "crosschannel_alexnet", **options):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path}, **options).eval()


@torch.no_grad()
def test_a_file_says_the_shape_of_its_net(trunk, whole, tmp_path):
    model, backbone = from_file(trunk, num_classes=10), load_backbone(trunk)
    maps = backbone(RGB, ["conv2", "conv5", "pool5"])
    assert torch.allclose(model.forward_features(RGB), maps["pool5"], atol=1e-5)
    assert torch.allclose(model(RGB), model.fc(maps["pool5"].mean((2, 3))), atol=1e-5)
    features = from_file(trunk, features_only=True, out_indices=(1, 4))
    for found, layer in zip(features(RGB), ("conv2", "conv5"), strict=True):
        assert torch.allclose(found, maps[layer], atol=1e-5)
    assert features.feature_info.channels() == [256, 256] and features.feature_info.reduction() == [8, 16]
    model = from_file(whole)
    assert torch.allclose(model.forward_features(RGB), load_backbone(whole)(RGB, ["fc7"])["fc7"], atol=1e-5)
    absorbed = save(tmp_path / "vgg.safetensors", VGG16(norm=False), NetSpec("vgg16", norm=False), 64)
    model, lightness = from_file(absorbed, "crosschannel_vgg16", in_chans=1), torch.randn(1, 1, 64, 64) * 20
    expected = load_backbone(absorbed).features(lightness, ["conv5_3"])["conv5_3"]
    assert torch.allclose(model.forward_features(lightness), expected, atol=1e-4 * float(expected.max()))


@torch.no_grad()
def test_without_metadata_a_wrong_shape_is_an_error_and_not_other_maps(trunk, whole, tmp_path):
    create = timm.create_model
    name = "crosschannel_alexnet"
    for options, message in (
        ({"checkpoint_path": trunk}, r"has no fc6 \(pass fc_width=0\)"),
        ({"checkpoint_path": trunk, "fc_width": 0}, "pass geometry='padded' or 'probe' for a trunk without fc6"),
        ({"checkpoint_path": trunk, "fc_width": 0, "features_only": True}, "for a trunk without fc6"),
        ({"checkpoint_path": trunk, "features_only": True}, "has no fc6"),
        ({"checkpoint_path": whole, "fc_width": 0}, "has fc6 and fc7, but this net has fc_width=0"),
    ):
        with pytest.raises(ValueError, match=message):
            create(name, **options)
    assert main(["export", trunk, "--format=timm", f"--out={tmp_path / 'trunk.pth'}"]) == 0
    bare = str(tmp_path / "trunk.pth")
    trunks = {"num_classes": 10, "fc_width": 0}
    for options, message in (
        ({}, "has no fc6"),
        (trunks, "for a trunk without fc6"),
        (
            {**trunks, "geometry": "padded", "norm": False},
            "the file does not match this net: only one of them has net.conv1.norm",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            from_file(bare, **options)
    right = from_file(bare, **trunks, geometry="padded")
    save_file(right.state_dict(), tmp_path / "own.safetensors")  # as timm writes a model
    again = from_file(str(tmp_path / "own.safetensors"), **trunks, geometry="padded")
    assert torch.equal(right.forward_features(RGB), again.forward_features(RGB))
    padded = create(name, checkpoint_path=trunk, fc_width=0, geometry="padded").eval()
    assert torch.allclose(padded.forward_features(RGB), load_backbone(trunk)(RGB, ["pool5"])["pool5"], atol=1e-5)
    with pytest.raises(ValueError, match="does not hold a vgg16 net"):
        from_file(trunk, "crosschannel_vgg16")


def test_what_export_says_works_as_it_stands(trunk, tmp_path, capsys, monkeypatch):
    for source in (trunk, f"{trunk},geometry=probe"):
        out = tmp_path / f"{len(source)}.safetensors"
        assert main(["export", source, "--format=timm", f"--out={out}", "--card=false"]) == 0
        said = capsys.readouterr().out.partition("\n")[2]
        monkeypatch.chdir(tmp_path)
        found: dict = {}
        exec(said, found)
        made = found["model"].eval()
        with torch.no_grad():
            expected = load_backbone(source)(RGB, ["pool5"])["pool5"]
            assert torch.allclose(made.forward_features(RGB), expected, atol=1e-5)


def test_timm_lists_and_describes_our_nets():
    assert timm.list_models("crosschannel*") == NAMES
    model = timm.create_model("crosschannel_alexnet", num_classes=10, fc_width=0).eval()
    config = timm.data.resolve_data_config({}, model=model)
    assert config["input_size"] == (3, 227, 227) and config["mean"] == (0, 0, 0) and config["std"] == (1, 1, 1)
    transform = timm.data.create_transform(**config)
    pixels = transform(Image.effect_noise((400, 300), 64).convert("RGB"))
    assert pixels.shape == (3, 227, 227) and pixels.min() >= 0 and pixels.max() <= 1
    grey = timm.create_model("crosschannel_vgg16", in_chans=1, num_classes=0).eval()
    assert grey(torch.randn(1, 1, 64, 64)).shape == (1, 512)
    model.reset_classifier(3)
    assert model(RGB).shape == (2, 3) and model.get_classifier() is model.fc
    assert ours.CrosschannelNet is type(model)


@pytest.mark.parametrize("name", NAMES)
def test_default_configs_are_true(name):
    """The map at the default input is of the default pool's size; so is the least input."""
    model = timm.create_model(name).eval()
    config, state = model.default_cfg, model.state_dict()
    with torch.no_grad():
        maps = model.forward_features(torch.rand(1, *config["input_size"]))
    assert maps.shape == (1, model.num_features, *config["pool_size"])
    assert f"{config['classifier']}.weight" in state and f"{config['first_conv']}.weight" in state
    model = timm.create_model(name, num_classes=3).train()
    model(torch.rand(2, *(config.get("min_input_size", (3, 64, 64))))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_least_input_of_an_alexnet_is_the_least():
    model = timm.create_model("crosschannel_alexnet").eval()
    side = model.default_cfg["min_input_size"][1]
    assert model(torch.rand(1, 3, side, side)).shape == (1, 1000)
    with pytest.raises(RuntimeError):
        model(torch.rand(1, 3, side - 1, side - 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_they_can_be_scripted_and_traced_symbolically(name):
    model = timm.create_model(name, num_classes=3).eval()
    rgb = RGB if name == "crosschannel_alexnet" else RGB[:1, :, :64, :64]
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    with torch.no_grad():
        expected = model(rgb)
        assert torch.allclose(torch.jit.load(buffer)(rgb), expected, atol=1e-5)
        assert torch.equal(fx.symbolic_trace(model)(rgb), expected)


def test_the_lightness_of_scripts_is_the_usual_one():
    levels = torch.cartesian_prod(*[torch.linspace(0, 1, 32)] * 3).T.reshape(1, 3, 256, 128)
    found, expected = Lightness()(levels), rgb_to_lightness(levels)
    assert (found - expected).abs().max() < 2e-4
    grey = torch.tensor(0.0).expand(1, 3, 1, 1).clone().requires_grad_()
    Lightness()(grey).sum().backward()
    assert grey.grad.isfinite().all()


def test_timms_own_tests_of_models(tmp_path):
    """``tests/test_models.py`` of a checkout of timm's sources, named by CROSSCHANNEL_TIMM_SOURCES."""
    checkout = os.environ.get("CROSSCHANNEL_TIMM_SOURCES")
    if not checkout:
        pytest.skip("CROSSCHANNEL_TIMM_SOURCES names no checkout of timm's sources")
    (tmp_path / "conftest.py").write_text("import crosschannel.timm\n")
    (tmp_path / "test_models.py").write_text((Path(checkout) / "tests" / "test_models.py").read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "crosschannel", "test_models.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alexnet", {"geometry": "zz"}, "geometry must be 'probe' or 'padded', got 'zz'"),
        ("alexnet", {"geometry": 1}, "geometry must be"),
        ("vgg16", {"geometry": "padded"}, "geometry must be omitted, since vgg16 has only one geometry"),
        ("alexnet", {"fc_width": -1}, "fc_width must be within 0..65536"),
        ("alexnet", {"fc_width": 1.5}, "fc_width must be"),
        ("alexnet", {"fc_width": 10**6}, "fc_width must be"),
        ("colornet", {"fc_width": 64}, "fc_width must be 0, since colornet has no fully connected layers"),
        ("alexnet", {"norm": "no"}, "norm must be True or False"),
        ("vgg16", {"in_chans": 4}, "in_chans must be 3"),
        ("vgg16", {"num_classes": -1}, "num_classes must be"),
        ("vgg16", {"num_classes": 2.5}, "num_classes must be"),
        ("vgg16", {"global_pool": "max"}, "global_pool must be 'avg' or ''"),
        ("vgg16", {"drop_rate": 2}, "drop_rate must be"),
        ("vgg16", {"drop_rate": "high"}, "drop_rate must be"),
        *(
            (name, {"features_only": True, "out_indices": indices}, "out_indices must be")
            for name in ("alexnet", "colornet")
            for indices in ((99,), (0, 7), (-8,), (), 0, 9, -1, True, ("conv1",), (0.5,), (True,))
        ),
        (
            "alexnet",
            {"pretrained": True, "pretrained_cfg_overlay": {"file": "gone.pth"}},
            "no weights file gone.pth",
        ),
        ("vgg16", {"colour": 1}, "crosschannel_vgg16 has no argument 'colour'; available: num_classes, in_chans"),
        ("alexnet", {"img_size": 224}, "has no argument 'img_size'"),
        ("alexnet", {"out_indices": (1,)}, "'out_indices' without features_only=True"),
    ],
)
def test_invalid_arguments_are_named(name, options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        timm.create_model(f"crosschannel_{name}", **options)


@pytest.mark.parametrize(
    ("indices", "expected"), [(2, [3, 4]), ((0, -1), [0, 4]), ([4, 1], [4, 1]), (5, [0, 1, 2, 3, 4])]
)
def test_out_indices_select_maps_as_in_timm(indices, expected):
    assert timm.models._features.feature_take_indices(5, indices)[0] == expected  # timm's own rule
    model = timm.create_model("crosschannel_alexnet", features_only=True, out_indices=indices)
    assert model.feature_info.channels() == [[96, 256, 384, 384, 256][i] for i in expected]


@torch.no_grad()
@pytest.mark.parametrize("net", ["trunk", "whole", "absorbed"])
def test_exported_folder_loads_as_a_timm_model(net, request, tmp_path):
    spec = NetSpec("alexnet", norm=False, geometry="padded")
    absorbed = (tmp_path / "b.safetensors", AlexNet(fc=0, norm=False), spec, 96)
    source = save(*absorbed) if net == "absorbed" else request.getfixturevalue(net)
    out = tmp_path / "folder" / "net.pth"
    assert main(["export", source, "--format=timm", f"--out={out}"]) == 0
    backbone = load_backbone(source)
    last = backbone.layers[-1]
    model = timm.create_model(f"local-dir:{out.parent}", pretrained=True).eval()
    assert torch.allclose(model.forward_features(RGB), backbone(RGB, [last])[last], atol=1e-5)
    config = timm.data.resolve_data_config({}, model=model)
    assert config["input_size"][-1] == backbone.input.size and tuple(config["mean"]) == (0, 0, 0)
    assert timm.data.create_transform(**config).transforms[0].size == backbone.input.resize
    maps = timm.create_model(f"local-dir:{out.parent}", pretrained=True, features_only=True).eval()(RGB)
    assert torch.allclose(maps[2], backbone(RGB, ["conv3"])["conv3"], atol=1e-5)
    assert timm.create_model(f"local-dir:{out.parent}", pretrained=True, num_classes=7)(RGB).shape == (2, 7)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet10t,size=32", "vit_tiny_patch16_224,size=64", "resnet10t,size=32,input=grey"])
def test_exported_timm_net_loads_from_its_folder(name, tmp_path):
    backbone = load_backbone(f"random:timm:{name}")
    out = tmp_path / "folder" / "model.safetensors"
    assert main(["export", f"random:timm:{name}", "--format=timm", f"--out={out}", "--card=false"]) == 0
    model = timm.create_model(f"local-dir:{out.parent}", pretrained=True).eval()
    x = torch.rand(1, backbone.input.channels, backbone.input.size, backbone.input.size)
    assert torch.equal(model.forward_features(x), backbone.net.model.forward_features(x))
    resize = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model)).transforms[0].size
    assert resize == backbone.input.resize
    config = timm.data.resolve_data_config({}, model=model)
    if backbone.input.kind == "rgb":
        stated = (config["input_size"][1], config["interpolation"], *config["mean"], *config["std"])
        assert stated == (backbone.input.size, backbone.input.interpolation, *backbone.input.mean, *backbone.input.std)


def test_export_warns_if_timm_would_read_another_file_of_the_folder(trunk, tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"another net")
    assert main(["export", trunk, "--format=timm", f"--out={tmp_path / 'net.pth'}"]) == 0
    assert "local-dir: reads model.safetensors in this folder, not net.pth" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert main(["export", trunk, "--format=timm", f"--out={tmp_path / 'other' / 'net.pth'}"]) == 2
    assert "config.json already exists" in capsys.readouterr().err and not (tmp_path / "other" / "net.pth").exists()
    assert main(["export", trunk, "--format=timm", f"--out={tmp_path / 'new' / 'config.json'}"]) == 2
