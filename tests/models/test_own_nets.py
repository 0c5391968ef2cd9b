"""Hand-written nets as backbones: what `all` lists, how they say what they take, and pretraining one."""

import importlib
import re
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import crosschannel
import transfer
from crosschannel import UserError, load_backbone, load_colorizer, wrap
from crosschannel.cli import main
from crosschannel.config.load import build_stored
from crosschannel.hub import load_pretext
from crosschannel.hub.files import read_weights, save_backbone
from crosschannel.models import AlexNet, Backbone, InputSpec, NetSpec, build_net
from crosschannel.models.backbone import Provenance
from crosschannel.models.regions import plan_regions
from transfer.cli import main as transfer_main

MODULE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, x):
        x = x + self.attention(x, x, x)[0]
        return x + self.mlp(x)


class ViT(nn.Module):
    def __init__(self, size=64, width=16):
        super().__init__()
        self.auxiliary = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(width)
        self.stem = nn.Conv2d(3, width, 16, 16)
        self.position = nn.Parameter(torch.randn(1, (size // 16) ** 2, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.pooled = nn.LSTM(width, 4, batch_first=True)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.pooled(self.norm(x))[0][:, -1])


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.ModuleDict({"a": nn.Conv2d(8, 16, 3, 2, 1), "b": nn.Conv2d(16, 24, 3, 2, 1)})
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages.values():
            x = stage(x).relu()
        return self.head(x.mean((2, 3)))


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Conv()

    def forward(self, x):
        return self.net(x)


def conv():
    return Conv()


def any_channels(in_channels=3):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
"""


@pytest.fixture
def mynets(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mynets", None)
    yield importlib.import_module("mynets")
    sys.modules.pop("mynets", None)


def test_all_is_what_a_forward_pass_reaches_in_its_order(mynets):
    backbone = wrap(mynets.ViT(), size=64)
    assert backbone.layers == ("stem", "blocks.0", "blocks.1", "blocks.2", "norm", "head")
    assert "not reached" in backbone.net.left_out["auxiliary"] and "no feature map" in backbone.net.left_out["pooled"]
    assert backbone.channels["blocks.1"] == 16 and backbone.strides["blocks.1"] == 16
    assert wrap(backbone, size=128).input.size == 128 and wrap(backbone) is backbone
    assert wrap(mynets.Conv(), size=64).layers == ("stem", "stages.a", "stages.b", "head")
    assert wrap(mynets.Wrapper(), size=64).layers == ("net.stem", "net.stages.a", "net.stages.b", "net.head")


def test_listing_changes_nothing_of_the_net(mynets):
    net = mynets.Conv().train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    backbone = wrap(net, size=64)
    assert torch.equal(torch.get_rng_state(), before) and all(module.training for module in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = net.eval().stages["a"](net.stem(backbone.preprocess(x)))
        assert torch.equal(backbone(x, ["stages.a"])["stages.a"], expected)


def test_patterns_match_part_by_part(mynets):
    backbone = wrap(mynets.ViT(), size=64)
    assert backbone.choose_layers("blocks.*") == ("blocks.0", "blocks.1", "blocks.2")
    assert backbone.choose_layers("blocks.*.mlp") == ("blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp")
    assert backbone.choose_layers("norm,blocks.[01]") == ("blocks.0", "blocks.1", "norm")
    with pytest.raises(
        UserError, match=r"unknown layer 'conv\*'; available: stem, blocks.0, .* such as blocks.0.attention"
    ):
        backbone.choose_layers("conv*")


def test_a_class_that_calls_something_layers_is_read_by_its_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)])

        def forward_features(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

        forward = forward_features

    assert wrap(Net(), size=32).layers == ("layers.0", "layers.1")


def test_what_a_net_takes_is_said_in_python_and_in_its_source(mynets):
    said = wrap(mynets.ViT(), size=64, mean=0.5, std=(0.1, 0.2, 0.3), interpolation="bicubic").input
    source = "mynets:ViT,size=64,mean=0.5,std=0.1:0.2:0.3,interpolation=bicubic"
    assert load_backbone(source).input == said
    assert (said.size, said.resize, said.mean) == (64, 73, (0.5, 0.5, 0.5))  # 256 / 224 of it
    for wrong, words in (("mean=x", "mean must be"), ("std=0", "std"), ("interpolation=cubist", "interpolation"),
                         ("mean=1:2", "mean must be a number, or three")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            load_backbone(f"mynets:ViT,size=64,{wrong}")


def test_a_size_that_does_not_fit_says_how_to_say_it(mynets, photo_folder, capsys):
    assert transfer_main(["knn", "--backbone=mynets:ViT", f"--data={photo_folder}", "--out=o", "--workers=0"]) == 2
    said = capsys.readouterr().err
    assert "cannot take crops of 224 px" in said and "SOURCE,size=N or crosschannel.wrap(net, size=N)" in said
    with pytest.raises(UserError, match="size=N"):
        wrap(mynets.ViT()).channels  # noqa: B018


def test_all_on_a_hand_written_net_from_the_command_line(mynets, photo_folder, tmp_path, capsys):
    words = ["knn", "--backbone=mynets:ViT,size=64", f"--data={photo_folder}", "--workers=0", "--k=3"]
    assert transfer_main([*words, "--out=o"]) == 0
    assert "excluded: layer 'auxiliary' is not reached" in capsys.readouterr().err
    result = transfer.load_result(tmp_path / "o")
    assert {name.partition("/")[0] for name in result.metrics} == {
        "stem", "blocks.0", "blocks.1", "blocks.2", "norm", "head",
    }  # fmt: skip


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict"])
def test_weights_of_a_factory_are_bare_or_wrapped(mynets, tmp_path, wrapper):
    net = mynets.Conv().eval()
    state = net.state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "ck.pth")
    backbone = load_backbone("mynets:conv,weights=ck.pth,size=64")
    rgb = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone(rgb, ["head"])["head"][:, :, 0, 0], net(backbone.preprocess(rgb)))
    with pytest.raises(UserError, match=r"no weights file 'gone\.pth'"):
        load_backbone("mynets:conv,weights=gone.pth")
    torch.save({"stem.0.weight": state["stem.0.weight"]}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part.pth lacks head.bias \(and"):
        load_backbone("mynets:conv,weights=part.pth")


def test_a_picture_or_numbers_up_to_255_are_refused(mynets):
    backbone = load_backbone("random:alexnet,fc=0,size=64,resize=72")
    rgb = torch.rand(1, 3, 64, 64)
    wrong = {
        r"tensor \(N, 3, H, W\), not PIL\.Image\.Image": Image.new("RGB", (64, 64)),
        r"\(N, 3, H, W\), not list": [rgb[0]],
        r"\(N, 3, H, W\), got \(3, 64, 64\); add a dimension": rgb[0],
        r"got \(1, 64, 64, 3\); permute it": rgb.permute(0, 2, 3, 1),
        r"got \(1, 1, 64, 64\); repeat": rgb[:, :1],
        r"got \(1, 4, 64, 64\)": torch.rand(1, 4, 64, 64),
        "uint8 or float": (rgb * 255).long(),
        "got torch.bool": rgb > 0.5,
        "at least one pixel": rgb[:, :, :0],
        "divide by 255, or pass uint8": 255 * rgb,
        "… [78].*divide by 255": (1 + 7 * rgb).double(),
        "are not normalised": (rgb - 0.45) / 0.225,
        "not normalised": 2 * rgb.half() - 1,
        "got NaN": rgb.log().log(),
    }
    for message, batch in wrong.items():
        for call in (backbone, backbone.preprocess):
            backbone(rgb)  # in range, but the next batch is checked as well
            with pytest.raises(UserError, match=message):
                call(batch)
    maps = backbone(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8))
    assert torch.allclose(maps["conv1"], backbone(torch.ones(1, 3, 64, 64))["conv1"])
    assert backbone(rgb * 1.1 - 0.05)["conv1"].isfinite().all()  # the overshoot of bicubic resizing


def test_values_are_not_checked_while_a_graph_is_traced():
    backbone = load_backbone("random:alexnet,fc=0,size=64,resize=72", layers=["conv1"])
    rgb = torch.rand(2, 3, 64, 64)
    expected = backbone(rgb)["conv1"]
    exported = torch.export.export(backbone, (rgb,)).module()
    assert torch.allclose(exported(rgb)["conv1"], expected, atol=1e-5)
    traced = torch.jit.trace(lambda x: backbone(x)["conv1"], rgb, check_trace=False)
    assert torch.allclose(traced(rgb), expected, atol=1e-5)
    mapped = torch.vmap(lambda x: backbone(x[None])["conv1"][0])(rgb)
    assert torch.allclose(mapped, expected, atol=1e-4)
    assert backbone.preprocess(rgb.to("meta")).shape == (2, 1, 64, 64)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "None"),
        (3, "3"),
        (torch.rand(1, 3, 8, 8), r"torch\.Tensor of shape \(1, 3, 8, 8\)"),
        ([nn.ReLU()], "list"),
        (nn.Conv2d, r"the class Conv2d \(pass an instance\)"),
        (torch.utils.data.TensorDataset(torch.rand(2, 3)), r"torch\.utils\.data\.dataset\.TensorDataset"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrong_types_are_reported_in_one_sentence(value, message):
    for call in (wrap, load_backbone, load_colorizer, lambda it: Backbone(it, InputSpec())):
        with pytest.raises(UserError, match=f"not {message}"):
            call(value)
    for call in (lambda it: wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), it), lambda it: Backbone(AlexNet(fc=0), it)):
        if value is not None:
            with pytest.raises(UserError, match="an input must be an InputSpec"):
                call(value)


def test_modules_and_sources_are_not_interchangeable(tmp_path):
    with pytest.raises(UserError, match=r"models\.alexnet\.AlexNet; use crosschannel\.wrap to make a backbone"):
        load_backbone(AlexNet(fc=0))
    with pytest.raises(UserError, match=r"not 'timm:resnet18'; crosschannel\.load_backbone"):
        wrap("timm:resnet18")
    with pytest.raises(UserError, match="ReLU without them"):
        Backbone(nn.ReLU(), InputSpec())
    for wrong in ({"a": "gone"}, ["0", "gone"]):
        with pytest.raises(UserError, match="no submodule 'gone'"):
            wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), layers=wrong)
    assert wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), layers=["0"]).layers == ("0",)
    save_backbone(tmp_path / "b.safetensors", AlexNet(fc=0), NetSpec(), InputSpec(), Provenance())
    assert load_backbone(tmp_path / "b.safetensors").provenance.source == str(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"size": 0}, "input size must be within 1..4096"),
        ({"size": -3}, "input size must be within 1..4096"),
        ({"size": True}, "input size must be a whole number, got True"),
        ({"size": "224"}, "input size must be a whole number, got '224'"),
        ({"size": 224.0}, "input size must be a whole number, got 224.0"),
        ({"size": 300, "resize": 256}, "input resize must be at least its size, 300, got 256"),
        ({"resize": None}, "input resize must be a whole number, got None"),
        ({"kind": "rbg"}, "input kind must be 'grey' or 'lab' or 'rgb'"),
        ({"kind": None}, "input kind must be .*, got None"),
        ({"interpolation": "cubist"}, "input interpolation must be an interpolation mode of torch or timm"),
        ({"mean": (0.5, 0.5)}, "must have three values"),
        ({"mean": 0.5}, "input mean must be a list, each element a number, got 0.5"),
        ({"mean": "abc"}, "input mean must be a list, each element a number, got 'abc'"),
        ({"mean": (123.675, 116.28, 103.53)}, "within 0..1, for RGB in .* got .123.675"),
        ({"mean": (-0.5, 0.5, 0.5)}, "within 0..1"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "input mean must be a finite number"),
        ({"std": (58.395, 57.12, 57.375)}, "input std must be at most 50"),
        ({"std": (0.0, 0.5, 0.5)}, "input std must be above 0"),
        ({"std": (0.5, -0.5, 0.5)}, "input std must be above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "input std must be"),
        ({"std": (0.5, float("inf"), 0.5)}, "input std must be"),
        ({"std": (0.5, True, 0.5)}, "input std must be a list, each element a number, got"),
        ({"std": [0.5] * 4}, "must have three values"),
    ],
    ids=str,
)
def test_invalid_inputs_are_refused_at_construction(attributes, message):
    with pytest.raises(UserError, match=message):
        InputSpec(**{"kind": "rgb", **attributes})
    with pytest.raises(UserError, match=message):
        replace(InputSpec("rgb"), **attributes)


def test_inputs_accept_arrays_and_numpy_integers():
    plain = InputSpec("rgb", 224, 256, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 1.0))
    for kind in (np.array, torch.tensor, list):
        values = {"mean": kind([0.5, 0.25, 0.0]), "std": kind([0.5, 0.5, 1.0])}
        assert InputSpec("rgb", np.int64(224), np.int32(256), **values) == plain
    assert InputSpec("rgb", 224, 256, std=(1 / 255,) * 3).std[0] == 1 / 255  # Caffe's
    with pytest.raises(UserError, match="unknown input attribute 'sizes'; available: kind, size"):
        wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), sizes=64)


def test_inputs_of_earlier_versions_are_read():
    """Earlier versions stored crops larger than ``resize``, and resized images to the larger of both."""
    stored = asdict(InputSpec("rgb", 224, 256)) | {"size": 512, "resize": 445}
    assert build_stored(InputSpec, stored, "a file") == InputSpec("rgb", 512, 512)
    with pytest.raises(UserError, match="a file is damaged or from another version: input mean must be within"):
        build_stored(InputSpec, stored | {"mean": [123.0, 116.0, 103.0]}, "a file")


def test_layer_patterns_work_everywhere(mynets):
    backbone = wrap(mynets.ViT(), size=64)
    rgb, blocks = torch.rand(1, 3, 64, 64), ["blocks.0", "blocks.1", "blocks.2"]
    for layers in (
        "blocks.*",
        ["blocks.*"],
        ["blocks.[01]", "blocks.2"],
        "blocks.0,blocks.?",
        ("blocks.*", "blocks.1"),
    ):
        assert list(backbone(rgb, layers)) == blocks
        assert list(backbone.features(backbone.preprocess(rgb), layers)) == blocks
        assert backbone.choose_layers(layers) == tuple(blocks)
        assert Backbone(backbone.net, backbone.input, layers).default_layers == tuple(blocks)
    assert list(backbone(rgb, ["norm", "blocks.*.mlp"])) == ["norm", *(f"{block}.mlp" for block in blocks)]
    assert list(backbone(rgb, "all")) == list(backbone.layers)
    alexnet = load_backbone("random:alexnet,fc=0,size=64,resize=72", layers=["conv[35]"])
    assert list(alexnet(rgb)) == ["conv3", "conv5"]
    for wrong, error in (
        ("conv9*", r"unknown layer 'conv9\*'"),
        (5, "names or patterns"),
        ([], "names"),
        ([None], "names"),
    ):
        with pytest.raises(UserError, match=error):
            alexnet(rgb, wrong)
    assert plan_regions(alexnet, "conv4*").layer == "conv4"
    with pytest.raises(UserError, match=r"'conv\*' matches conv1, conv2, .*; choose one"):
        plan_regions(alexnet, "conv*")
    assert plan_regions(backbone, "blocks.1.mlp").layer == "blocks.1.mlp"  # deeper than those listed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50", "did you mean timm:resnet50"),
        ("alexnet", "did you mean random:alexnet"),
        ("nonsense", "no such file or run folder$"),
    ],
)
def test_a_name_alone_suggests_a_source(name, words):
    with pytest.raises(UserError, match=words):
        load_backbone(name)


QUICK = ["--crop.size=48", "--crop.resize=56", "--train.batch=8", "--train.precision=float32", "--runtime.workers=0",
         "--runtime.tensorboard=false", "--device=cpu"]  # fmt: skip


@pytest.mark.parametrize("factory", ["conv", "any_channels"])
def test_pretraining_a_net_of_ones_own(mynets, photo_folder, tmp_path, factory):
    words = ["pretrain", f"--model.name=mynets:{factory}", f"--data={photo_folder}", *QUICK]
    assert main([*words, "--train.steps=4", "--out=whole"]) == 0
    whole = load_pretext("whole").net.eval()
    assert whole.net.in_channels == 1 and whole.net.model is not None
    assert whole.net.last_stride == 8 and whole.net.last_origin == 0
    backbone = load_backbone("whole")
    rgb = torch.rand(1, 3, 48, 48)
    x = backbone.preprocess(rgb)
    last = backbone.layers[-1]
    assert torch.equal(backbone(rgb, [last])[last], whole.net(x))  # the same net under both heads
    colours = load_colorizer("whole")(Image.new("RGB", (70, 50), (90, 90, 90)))
    assert colours.size == (70, 50)
    twin = load_backbone("random:whole", data=str(photo_folder))
    assert twin.layers == backbone.layers and not torch.equal(twin(rgb, [last])[last], backbone(rgb, [last])[last])
    # what was not trained has not moved, and what was has
    fresh = load_pretext_state(tmp_path, words)
    trained = read_weights(tmp_path / "whole" / "backbone.safetensors")[0]
    assert any(not torch.equal(fresh[name], trained[name]) for name in trained)
    if factory == "conv":
        assert torch.equal(fresh["model.head.weight"], trained["model.head.weight"])


def load_pretext_state(folder, words):
    assert main([*words, "--train.steps=1", "--optim.lr=1e-12", "--out=fresh"]) == 0
    return read_weights(folder / "fresh" / "backbone.safetensors")[0]


def test_pretraining_says_what_a_factory_lacks(mynets, photo_folder, capsys):
    (words := ["pretrain", f"--data={photo_folder}", *QUICK, "--out=o"])
    for name, said in (("mynets:gone", "cannot import"), ("mynets:ViT", "cannot take crops of 48 px"),
                       ("os:getcwd", "in the standard library"), ("nonsense", "package.module:factory")):  # fmt: skip
        assert main([*words, f"--model.name={name}"]) == 2
        assert said in capsys.readouterr().err


def test_what_was_fetched_runs_no_factory(mynets, photo_folder, tmp_path, monkeypatch, capsys):
    words = ["pretrain", "--model.name=mynets:conv", f"--data={photo_folder}", *QUICK, "--train.steps=1", "--out=run"]
    assert main(words) == 0
    monkeypatch.setattr("crosschannel.hub.from_files.fetch_repository", lambda name: tmp_path / "run")
    (tmp_path / "alone").mkdir()
    for name in ("backbone.safetensors", "colorizer.safetensors"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "alone" / name)
    for load in (load_backbone, load_colorizer, lambda name: load_backbone(f"random:{name}")):
        for source in ("hf-hub:somebody/net", "alone"):  # or a file from anywhere
            with pytest.raises(UserError, match="imported only if the config of a local run folder names it"):
                load(source)
    capsys.readouterr()
    assert main(["push", "run", "somebody/net"]) == 2 and "a user-defined model" in capsys.readouterr().err
    assert main(["export", "run", "--out=e/b.safetensors"]) == 2 and "from its run folder" in capsys.readouterr().err


def test_a_timm_net_from_the_hub_is_no_factory(photo_folder, tmp_path, monkeypatch):
    words = ["pretrain", "--model.name=timm:resnet18", f"--data={photo_folder}", *QUICK, "--train.steps=1"]
    assert main([*words, f"--out={tmp_path / 'run'}"]) == 0
    monkeypatch.setattr("crosschannel.hub.from_files.fetch_repository", lambda name: tmp_path / "run")
    assert load_backbone("hf-hub:somebody/net").layers[-1] == "stage5"


def test_the_first_convolution_is_the_one_that_is_widened(mynets, photo_folder):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, padding_mode="reflect"), nn.ReLU())
            self.project = nn.Conv2d(8, 16, 1)

        def forward(self, x):
            return self.project(self.stem(x))

    mynets.deep = lambda: Net().requires_grad_(False)
    net = build_net(NetSpec("mynets:deep", 1), 48)
    assert (net.model.stem[0].in_channels, net.model.project.in_channels) == (1, 8)
    assert net.model.stem[0].padding_mode == "reflect" and all(p.requires_grad for p in net.parameters())


def test_layers_are_listed_by_a_command(mynets, capsys):
    assert main(["layers", "mynets:ViT,size=64"]) == 0
    said = capsys.readouterr()
    assert re.search(r"blocks.1 +│ +16 +│ +16", said.out) and "'auxiliary' is not reached" in said.err


def test_a_random_twin_is_made_as_the_net_is_whatever_its_weights(mynets, tmp_path):
    torch.save(mynets.ViT().state_dict(), tmp_path / "ck.pth")
    source = "mynets:ViT,weights=ck.pth,size=64,mean=0.5"
    net, twin, again = (load_backbone(f"{kind}{source}") for kind in ("", "random:", "random:"))
    assert twin.input == net.input and twin.layers == net.layers
    states = [backbone.net.model.state_dict() for backbone in (net, twin, again)]
    for name in ("position", "stem.weight", "blocks.0.attention.in_proj_weight"):
        assert torch.equal(states[1][name], states[2][name]) and not torch.equal(states[0][name], states[1][name])
    mynets.loaded = lambda: (net := mynets.ViT(), net.load_state_dict(torch.load(tmp_path / "ck.pth")))[0]
    with pytest.raises(UserError, match="ViT, which has no reset_parameters"):  # a position that is always the same
        load_backbone("random:mynets:loaded,size=64")


def test_the_public_names_are_shown():
    assert set(dir(crosschannel)) == set(crosschannel.__all__) and "load_backbone" in dir(crosschannel)
