"""Exported nets give our numbers in other libraries' hands."""

import json
import os
import re
import shutil

import pytest
import torch
import torchvision
import yaml
from detectron2_sources import add_detectron2
from torch import nn

from crosschannel import UserError, load_backbone
from crosschannel.cli import main
from crosschannel.hub import save_backbone
from crosschannel.models import VGG16, AlexNet, InputSpec, NetSpec, spec_of
from crosschannel.models.backbone import Provenance
from crosschannel.runs.result import load_result

RGB = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def save(path, net, spec, size=96, kind="grey"):
    """A file of a net whose BatchNorm has seen something."""
    torch.manual_seed(0)
    net.train()(torch.randn(4, spec.in_channels, size, size) * 20)
    save_backbone(path, net.eval(), spec, InputSpec(kind, size, size), Provenance("test", {"steps": 1}))
    return str(path)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    return save(tmp_path_factory.mktemp("vgg") / "vgg16.safetensors", VGG16(), NetSpec("vgg16"))


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("alexnet") / "backbone.safetensors"
    return save(path, AlexNet(fc=0), NetSpec("alexnet", fc=0))


def test_vgg16_in_torchvision(vgg, tmp_path):
    out = tmp_path / "vgg.pth"
    assert main(["export", vgg, "--format=torchvision", f"--out={out}"]) == 0
    assert "model.features[0] = torch.nn.Conv2d(1," in (tmp_path / "README.md").read_text()
    model = torchvision.models.vgg16_bn(weights=None).eval()
    model.features[0] = nn.Conv2d(1, 64, 3, padding=1)
    lacking = model.load_state_dict(torch.load(out, weights_only=True), strict=False)
    assert all(key.startswith("classifier") for key in lacking.missing_keys) and not lacking.unexpected_keys
    backbone = load_backbone(vgg)
    with torch.no_grad():
        expected = model.features[:-1](backbone.preprocess(RGB))
        assert torch.allclose(backbone(RGB, ["conv5_3"])["conv5_3"], expected, rtol=1e-4, atol=1e-4 * expected.max())
    assert load_backbone(str(out)).layers == backbone.layers  # and back


def test_an_alexnet_of_torchvisions_shape_in_torchvision(tmp_path):
    model = torchvision.models.alexnet(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "in.pth")
    assert main(["export", str(tmp_path / "in.pth"), "--format=torchvision", f"--out={tmp_path / 'out.pth'}"]) == 0
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    theirs = model.state_dict()
    assert set(theirs) - set(state) == {"classifier.6.weight", "classifier.6.bias"}
    assert all(torch.equal(state[key], theirs[key]) for key in state)


def test_a_net_that_cannot_fit_is_refused_with_the_reason(alexnet, tmp_path, capsys):
    assert main(["export", alexnet, "--format=torchvision", f"--out={tmp_path / 'o.pth'}"]) == 2
    assert "can be exported, not alexnet (crosschannel, with BatchNorm)" in capsys.readouterr().err
    for flags, message in (
        (["--out=o.pth"], "must end in .safetensors"),
        ([f"--out={tmp_path}"], "it is a folder"),
        ([f"--out={tmp_path / 'x' / 'y' / 'o.safetensors'}"], "does not exist"),
        ([f"--out={tmp_path / 'o.safetensors'}", f"--probes=[{tmp_path}]"], "is not a finished probe run"),
    ):
        assert main(["export", alexnet, *flags]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "README.md").write_text("# My thesis\n")
    assert main(["export", alexnet, f"--out={tmp_path / 'o.safetensors'}"]) == 2
    assert (
        "README.md already exists, and its content was not written by `crosschannel export`" in capsys.readouterr().err
        and not (tmp_path / "o.safetensors").exists()
    )


def test_what_no_library_can_take_is_refused_and_leaves_nothing(alexnet, tmp_path, capsys):
    for source, form, message in (
        (f"{alexnet},input=lab", "timm", "does not register this architecture"),
        ("random:vgg16,norm=false,input=rgb", "timm", "does not register this architecture"),
        ("torchvision:resnet18,weights=none", "onnx", "read by hooks"),
    ):
        assert main(["export", source, f"--format={form}", f"--out={tmp_path / 'new' / 'net.out'}"]) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.rglob("net.out*"))


def test_a_vit_comes_back(tmp_path):
    out = tmp_path / "vit.safetensors"
    assert main(["export", "random:timm:vit_tiny_patch16_224", f"--out={out}", "--card=false"]) == 0
    assert load_backbone(str(out)).layers[-1] == "block12"
    assert out.stat().st_mode & 0o444 == 0o444 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_licences_go_on(alexnet, tmp_path):
    first, second = tmp_path / "a" / "a.safetensors", tmp_path / "b" / "b.safetensors"
    assert main(["export", alexnet, f"--out={first}", "--licence=cc-by-nc-4.0 # all rights"]) == 0
    assert main(["export", str(first), f"--out={second}"]) == 0
    front = yaml.safe_load((tmp_path / "b" / "README.md").read_text().split("---")[1])
    assert front["license"] == load_backbone(str(second)).provenance.details["licence"] == "cc-by-nc-4.0 # all rights"
    assert main(["export", "random:alexnet,fc=0,size=64", f"--out={second}"]) == 0
    assert yaml.safe_load((tmp_path / "b" / "README.md").read_text().split("---")[1])["license"] == "unknown"


@pytest.mark.parametrize(
    ("source", "layers"),
    [
        ("random:alexnet,fc=0,size=96,input=lab", ("conv2", "conv4")),
        pytest.param("random:vgg16,size=96", ("conv1_2", "pool1", "conv5_3"), marks=pytest.mark.slow),
        pytest.param("random:timm:test_resnet,size=64", (), marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_same_maps_at_any_batch_and_size(source, layers, narrow_net, tmp_path):
    import onnxruntime

    out = tmp_path / "net.onnx"
    flags = [f"--layer={','.join(layers)}"] if layers else []
    assert main(["export", source, "--format=onnx", *flags, f"--out={out}", "--card=false"]) == 0
    backbone = load_backbone(source)
    session = onnxruntime.InferenceSession(str(out))
    names = tuple(output.name for output in session.get_outputs())
    assert names == (layers or backbone.layers)
    for shape in ((1, 3, 96, 96), (3, 3, 128, 160)):
        rgb = torch.rand(shape)
        with torch.no_grad():
            maps = backbone(rgb)
        for name, found in zip(names, session.run(None, {"rgb": rgb.numpy()}), strict=True):
            assert torch.allclose(torch.from_numpy(found), maps[name], rtol=1e-4, atol=1e-4 * float(maps[name].max()))


def test_the_card_says_what_it_is_and_what_it_reaches(finished_run_for_card, tmp_path):
    run, probe = finished_run_for_card
    folder = tmp_path / "my-net"
    folder.mkdir()
    flags = [f"--out={folder / 'backbone.safetensors'}", "--licence=cc0-1.0", f"--probes=[{probe}]"]
    assert main(["export", str(run), *flags]) == 0
    card = (folder / "README.md").read_text()
    front = card.split("---")[1]
    assert 'license: "cc0-1.0"' in front and "library_name: crosschannel" in front
    assert "| conv3 | conv5 |" in card and "kl_share" in card and "(sample.png)" in card
    assert (folder / "sample.png").is_file()
    backbone = load_backbone(str(folder))  # the folder is a source
    assert backbone.provenance.details["licence"] == "cc0-1.0" and len(backbone.provenance.details["config_hash"]) == 16
    assert spec_of(backbone.net).name == "alexnet"
    with pytest.raises(UserError, match="was not built by crosschannel"):
        spec_of(nn.Linear(1, 1))


CARDS = {
    "safetensors": ("alexnet", "backbone.safetensors"),
    "torchvision": ("vgg", "vgg.pth"),
    "torchvision of RGB": ("torchvision:alexnet,weights=none", "alexnet.safetensors"),
    "timm": ("alexnet", "net.pth"),
    "timm's own": ("random:timm:test_resnet,size=64", "resnet.pth"),
    "onnx": ("alexnet", "net.onnx"),
    "onnx of a colorizer": ("run", "colorizer.onnx"),
    "detectron2": ("random:alexnet,fc=0,size=64", "net.pkl"),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * ("colorizer" in c)) for c in CARDS])
def test_the_python_of_a_card_runs_as_it_is_printed(case, request, tmp_path, monkeypatch, finished_run_for_card):
    source, name = CARDS[case]
    source = str(finished_run_for_card[0]) if source == "run" else source
    source = request.getfixturevalue(source) if source in ("alexnet", "vgg") else source
    part = ["--part=colorizer"] if "colorizer" in case else []
    if case == "detectron2":
        add_detectron2()
    out = tmp_path / "card" / name
    form = case.split()[0].removesuffix("'s")
    assert main(["export", source, f"--format={form}", f"--out={out}", *part]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (out.parent / "README.md").read_text(), re.S)
    monkeypatch.chdir(out.parent)
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    assert any(word in found for word in ("maps", "features", "ab", "detector"))


def test_a_card_has_figures_of_its_own_trained_net_alone(finished_run_for_card, tmp_path, capsys):
    run, probe = finished_run_for_card
    stored = json.loads((probe / "result.json").read_text())
    twin = tmp_path / "twin"
    shutil.copytree(probe, twin)
    (twin / "result.json").write_text(json.dumps(stored | {"backbone": f"random:{stored['backbone']}"}))
    for wrong, words in ((run, "it is a run of `crosschannel pretrain`"), (twin, "the untrained net random:")):
        flags = [f"--out={tmp_path / 'net' / 'backbone.safetensors'}", f"--probes={wrong}"]
        assert main(["export", str(run), *flags]) == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "net").exists()


def test_a_card_says_what_a_stranger_asks(finished_run_for_card, tmp_path):
    run, probe = finished_run_for_card
    assert main(["export", str(run), f"--out={tmp_path / 'net' / 'backbone.safetensors'}", f"--probes={probe}"]) == 0
    _, front, text = (tmp_path / "net" / "README.md").read_text().split("---\n", 2)
    (index,) = yaml.safe_load(front)["model-index"]
    metrics = load_result(probe).metrics
    shown = {metric["name"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert index["name"] == "net" and shown["conv5 linear-probe top-1"] == round(100 * metrics["conv5/top1"], 2)
    said = ["hf-hub:OWNER/NAME", "## Training data", "without labels", "## Limitations", "not evidence of the true"]
    for words in (*said, "@inproceedings{zhang2016colorful"):
        assert words in text
