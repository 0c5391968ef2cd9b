import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import crosschannel
from crosschannel import UserError, load_backbone
from crosschannel.hub import parse_source, read_weights, save_backbone, untrained
from crosschannel.models import VGG16, AlexNet, InputSpec, NetSpec, initialisation, spec_of
from crosschannel.models.backbone import Provenance

RGB = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    net = AlexNet(fc=0).train()
    net(torch.randn(8, 1, 128, 128) * 20)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    spec = NetSpec("alexnet", fc=0)
    save_backbone(path, net.eval(), spec, InputSpec("grey", 128, 144), Provenance("test", {"steps": 1}))
    return path, net


def test_a_saved_backbone_comes_back_with_its_input_and_provenance(saved):
    path, net = saved
    backbone = load_backbone(f"{path},geometry=padded", layers=["conv3"])
    assert backbone.input == InputSpec("grey", 128, 144) and backbone.provenance.details == {"steps": 1}
    with torch.no_grad():
        expected = net(backbone.preprocess(RGB))
        assert torch.equal(backbone(RGB, ["pool5"])["pool5"], expected)
    assert list(backbone(RGB)) == ["conv3"]


def test_frozen_means_eval_and_no_gradients(saved):
    frozen, free = load_backbone(str(saved[0])), load_backbone(str(saved[0]), frozen=False)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in free.parameters()) and free.training
    random = load_backbone("random:alexnet,fc=0,size=64,norm=false", frozen=False)
    assert random.training and all(p.requires_grad for p in random.parameters())


def test_dtype_and_geometry_and_lab(saved):
    assert next(load_backbone(str(saved[0]), dtype=torch.float64).parameters()).dtype == torch.float64
    exact = load_backbone(str(saved[0]))(RGB, ["conv5"])["conv5"]
    for dtype in (torch.bfloat16, torch.float64):
        rough = load_backbone(str(saved[0]), dtype=dtype)(RGB, ["conv5"])["conv5"]
        assert rough.dtype == dtype and (rough - exact).abs().max() < 0.1 * exact.abs().max()
    probe = load_backbone(f"{saved[0]},geometry=probe")
    assert probe(torch.rand(1, 3, 227, 227), ["conv1"])["conv1"].shape[-1] == 55
    assert load_backbone(str(saved[0])).net.geometry == "padded"  # a trunk stays as it was trained
    lab = load_backbone(f"{saved[0]},input=lab,geometry=probe")
    assert torch.allclose(lab(RGB, ["conv5"])["conv5"], probe(RGB, ["conv5"])["conv5"], atol=1e-4)


def test_what_cannot_be_said_of_a_backbone(saved):
    with pytest.raises(UserError, match="cannot take crops of 64 px"):
        load_backbone("random:alexnet,size=64")  # its fc6 needs more
    with pytest.raises(UserError, match="cannot take crops of 16 px"):
        load_backbone("kmeans:alexnet,size=16,fc=0")
    backbone = load_backbone(str(saved[0]), layers="conv5", frozen=False).train()
    backbone.net.conv1.norm.eval()
    assert backbone.channels["conv5"] == 256 and list(backbone(RGB)) == ["conv5"]
    assert backbone.net.conv2.norm.training and not backbone.net.conv1.norm.training


def test_loading_leaves_the_random_state(saved):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_backbone(str(saved[0]))
    assert torch.equal(torch.rand(1), expected)


def damaged(meta: dict, key: str, value) -> dict:
    return {**meta, key: value if isinstance(value, str) else json.dumps(value)}


@pytest.mark.parametrize(
    ("key", "value"),
    [("net", "{"), ("net", []), ("net", {"name": "alexnet", "colour": 1}), ("net", {"name": "alexnet", "fc": -5}),
     ("net", {"name": "alexnet", "fc": 10**7}), ("net", {"name": "alexnet", "in_channels": 10**8}),
     ("net", {"name": "alexnet", "variant": "no"}), ("net", {"name": "alexnet", "fc": 8}),
     ("schema", "x"), ("input", {"kind": 3}), ("provenance", {})],
)  # fmt: skip
def test_damaged_metadata_is_one_sentence(saved, tmp_path, key, value):
    with safe_open(saved[0], "pt") as file:
        meta = file.metadata()
    save_file(load_file(saved[0]), tmp_path / "b.safetensors", damaged(meta, key, value))
    with pytest.raises(UserError):
        load_backbone(str(tmp_path / "b.safetensors"))


def test_a_file_of_the_first_schema_still_loads(tmp_path):
    save_backbone(tmp_path / "b.safetensors", VGG16(), NetSpec("vgg16"), InputSpec(), Provenance())
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        meta = file.metadata()
    net = {**json.loads(meta["net"]), "fc": 4096}  # as it was written for nets that have none
    save_file(
        load_file(tmp_path / "b.safetensors"),
        tmp_path / "old.safetensors",
        {**damaged(meta, "net", net), "schema": "1"},
    )
    assert load_backbone(str(tmp_path / "old.safetensors")).layers[-1] == "conv5_3"


def test_a_classic_alexnet_is_probed_at_227_whatever_it_was_trained_at(tmp_path):
    save_backbone(
        tmp_path / "b.safetensors", AlexNet(fc=8), NetSpec("alexnet", fc=8), InputSpec("grey", 180), Provenance()
    )
    backbone = load_backbone(str(tmp_path / "b.safetensors"))
    assert (backbone.input.size, backbone.input.resize) == (227, 256) and backbone.strides["pool5"] == 32
    padded = load_backbone(f"{tmp_path / 'b.safetensors'},geometry=padded")
    assert padded.input.size == 180 and padded.strides["conv5"] == 16
    assert load_backbone(f"{tmp_path / 'b.safetensors'},size=240").input == InputSpec("grey", 240, 256)
    twin = load_backbone(f"random:{tmp_path / 'b.safetensors'},norm=false")
    assert twin.input == backbone.input and twin.net.geometry == "probe"  # a baseline is the same net at the same size


def test_random_nets_follow_their_seed_and_have_real_statistics(photo_folder):
    source = f"random:alexnet,fc=0,size=64,data={photo_folder}"
    a, b, c = (load_backbone(f"{source},seed={seed}") for seed in (1, 1, 2))
    assert torch.equal(a(RGB, ["conv5"])["conv5"], b(RGB, ["conv5"])["conv5"])
    assert not torch.equal(a.net.conv1.conv.weight, c.net.conv1.conv.weight)
    assert a.net.conv3.norm.running_var.min() > 0 and not torch.allclose(
        a.net.conv3.norm.running_mean, torch.zeros(384)
    )
    values = a(RGB, ["conv5"])["conv5"]
    assert 0.05 < (values > 0).float().mean() < 0.95  # neither dead nor saturated


def test_random_of_a_trained_net_is_its_fresh_twin(saved, photo_folder):
    twin = load_backbone(f"random:{saved[0]},data={photo_folder}")
    trained = load_backbone(str(saved[0]))
    assert twin.layers == trained.layers and twin.input == trained.input
    assert not torch.equal(twin.net.conv1.conv.weight, trained.net.conv1.conv.weight)


def test_random_of_somebody_elses_file_is_its_fresh_twin(tmp_path, photo_folder):
    import torchvision

    trunk = torchvision.models.alexnet(weights=None).features
    torch.save({f"features.{name}": value for name, value in trunk.state_dict().items()}, tmp_path / "a.pth")
    twin = load_backbone(f"random:{tmp_path / 'a.pth'},data={photo_folder}")
    trained = load_backbone(str(tmp_path / "a.pth"))
    assert twin.layers == trained.layers and twin.input == trained.input and twin.net.variant == trained.net.variant
    assert not torch.equal(twin.net.conv1.conv.weight, trained.net.conv1.conv.weight)
    with pytest.raises(UserError, match="input must be one of rgb"):
        save_backbone(tmp_path / "rgb.safetensors", trained.net, spec_of(trained.net), trained.input, Provenance())
        load_backbone(f"{tmp_path / 'rgb.safetensors'},input=lab")


@pytest.fixture
def fewer_crops(monkeypatch):
    """What k-means asks for, batches and their size; it gets two of sixteen, since its time goes with the patches."""
    asked, whole = [], untrained.training_batches

    def fewer(data, input, count=10, batch=16, seed=0):
        asked.append((count, batch))
        return whole(data, input, 2, 16, seed)

    monkeypatch.setattr(untrained, "training_batches", fewer)
    return asked


def test_kmeans_source(photo_folder, fewer_crops, narrow_net):
    backbone = load_backbone(f"kmeans:alexnet,input=lab,fc=0,size=112,data={photo_folder}")
    assert fewer_crops == [(10, 80)]
    assert backbone.input.kind == "lab" and backbone.net.conv1.conv.weight.shape[1] == 3
    assert backbone.provenance.details["initialisation"] == "k-means"


def test_kmeans_fills_the_fully_connected_layers_with_noise_where_images_are_few(monkeypatch, fewer_crops, narrow_net):
    """256 outputs and 32 crops: normal weights, rows of one scale each."""
    monkeypatch.setattr(initialisation, "_centres", lambda patches, k, seed: patches[:k])
    backbone = load_backbone("kmeans:alexnet,fc=256,size=227,seed=1")
    fc6 = backbone.net.fc6.conv.weight.flatten(1)
    rows = fc6 / fc6.std(1, keepdim=True)
    assert abs((rows**4).mean() - 3) < 0.05 and fc6.std(1).max() > 1.2 * fc6.std(1).min()
    assert not (backbone.net.fc6.conv.bias == 1).any()


def test_gaussian_is_the_literatures_baseline(saved, tmp_path):
    """N(0, .01), biases 0 1 0 1 1, fc6 and fc7 N(0, .005) with biases 1, no BatchNorm."""
    backbone = load_backbone("gaussian:alexnet,input=lab,fc=64,seed=2")
    net = backbone.net
    for name, bias in (("conv1", 0), ("conv2", 1), ("conv3", 0), ("conv4", 1), ("conv5", 1)):
        conv = net.get_submodule(name).conv
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.03) and (conv.bias == bias).all(), name
    for name in ("fc6", "fc7"):
        conv = net.get_submodule(name).conv
        assert conv.weight.std().item() == pytest.approx(0.005, rel=0.03) and (conv.bias == 1).all(), name
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert backbone.input.kind == "lab" and backbone.input.size == 227
    assert backbone.provenance.details == {"initialisation": "gaussian", "seed": 2}
    twin = load_backbone(f"gaussian:{saved[0]}")
    assert twin.layers == load_backbone(str(saved[0])).layers and twin.input.size == 128
    spec, path = NetSpec("alexnet", fc=32, fc7=8), tmp_path / "narrow.safetensors"
    save_backbone(path, AlexNet(fc=32, fc7=8), spec, InputSpec("grey"), Provenance())
    assert load_backbone(f"gaussian:{path}").channels["fc7"] == 8
    assert load_backbone(f"gaussian:{path},fc=16").channels["fc7"] == 16
    again, other = load_backbone(f"gaussian:{saved[0]}"), load_backbone(f"gaussian:{saved[0]},seed=1")
    assert torch.equal(twin.net.conv3.conv.weight, again.net.conv3.conv.weight)
    assert not torch.equal(twin.net.conv3.conv.weight, other.net.conv3.conv.weight)


@pytest.mark.parametrize("source", ["gaussian:timm:resnet18", "gaussian:torchvision:alexnet", "gaussian:lenet"])
def test_gaussian_is_for_the_nets_of_the_literature(source):
    with pytest.raises(UserError, match="gaussian supports only alexnet, colornet, vgg16 and files of these nets"):
        load_backbone(source)


@pytest.mark.parametrize("option", ["norm=true", "data=photos"])
def test_gaussian_has_no_options_that_mean_nothing_to_it(option):
    with pytest.raises(UserError, match="unknown option"):
        load_backbone(f"gaussian:alexnet,{option}")


def test_torchvision_by_the_literatures_names(tmp_path):
    import torchvision

    torch.manual_seed(0)
    backbone = load_backbone("torchvision:alexnet,weights=none")
    assert backbone.layers == ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7")
    model = torchvision.models.alexnet(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    backbone = load_backbone(f"torchvision:alexnet,weights={tmp_path / 'a.pth'}")
    rgb = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps, x = backbone(rgb), backbone.preprocess(rgb)
        assert torch.allclose(maps["pool5"], model.features(x), atol=1e-6)
        assert torch.allclose(maps["fc7"].flatten(1), model.classifier[:6](model.features(x).flatten(1)), atol=1e-6)
    assert (maps["conv5"] >= 0).all()  # after its ReLU


@pytest.mark.parametrize(
    ("source", "input"),
    [
        ("inception_v3,weights=none", InputSpec("rgb", 299, 342)),
        ("swin_t,weights=none", InputSpec("rgb", 224, 232, "bicubic")),
        ("resnet50,weights=none,size=64", InputSpec("rgb", 64, 232)),  # as the weights that the name alone gives
        ("fcn_resnet50,weights=none", InputSpec("rgb", 224, 256)),
    ],
)
def test_torchvisions_nets_get_the_input_that_they_were_trained_on(source, input):
    assert load_backbone(f"torchvision:{source}").input == input


def test_the_input_is_that_of_the_weights_that_are_named(monkeypatch):
    import torchvision

    net = torchvision.models.mobilenet_v2(weights=None)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: net)  # no download
    assert load_backbone("torchvision:mobilenet_v2").input.resize == 232
    assert load_backbone("torchvision:mobilenet_v2,weights=IMAGENET1K_V1").input.resize == 256
    assert load_backbone("torchvision:vit_b_16,weights=IMAGENET1K_SWAG_E2E_V1").input.size == 384


def test_timm_with_weights_from_a_file(tmp_path):
    import timm

    torch.manual_seed(1)
    model = timm.create_model("resnet18").eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "my.pth")
    backbone = load_backbone(f"timm:resnet18,weights={tmp_path / 'my.pth'}")
    with torch.no_grad():
        expected = model.forward_features(backbone.preprocess(RGB))
    assert torch.allclose(backbone(RGB, ["stage5"])["stage5"], expected, atol=1e-4)


@pytest.fixture
def my_nets(tmp_path, monkeypatch):
    """A module of factories in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
        "def zero():\n    net = small()\n    nn.init.zeros_(net[0].weight)\n    return net\n"
        "def wrong(): return 3\n"
    )


def test_a_factory_in_the_working_folder(my_nets):
    backbone = load_backbone("my_nets:small")
    assert backbone.layers == ("0", "1") and backbone(RGB)["1"].shape == (1, 4, 126, 126)
    with pytest.raises(UserError, match="returned int"):
        load_backbone("my_nets:wrong")
    with pytest.raises(UserError, match="cannot import"):
        load_backbone("my_nets:absent")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "has an empty name"),
        ("random:", "has an empty name"),
        ("nowhere/run", "unknown source"),
        ("random:lexnet", "unknown net 'lexnet'"),
        ("random:alexnet,seed=x", "whole number"),
        ("random:alexnet,seed", "invalid option"),
        ("random:alexnet,speed=1", "unknown option 'speed'"),
        ("random:colornet,fc=4096", "has no fully connected layers"),
        ("random:alexnet,input=cmyk", "one of grey, lab, rgb"),
        ("timm:resnet18000", "timm has no model"),
        ("timm:resnet18,weights=gone.pth", "no weights file 'gone.pth'"),
        ("torchvision:nothing", "torchvision has no model"),
        ("no_such_package:net", "cannot import"),
    ],
)
def test_a_source_that_is_none_is_one_sentence(source, message):
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(source)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_backbones(tmp_path, saved):
    whole = saved[0].read_bytes()
    bad = {
        "cut.safetensors": whole[: len(whole) // 2],
        "empty.safetensors": b"",
        "html.safetensors": b"<!DOCTYPE html><html></html>",
        "huge-header.safetensors": (4 << 30).to_bytes(8, "little") + b"{}",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            load_backbone(str(tmp_path / name))
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not written by crosschannel"):
        load_backbone(str(tmp_path / "other.safetensors"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="not a run folder or"):
        load_backbone(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="it is not a run folder"):
        load_backbone(str(tmp_path))


def test_weights_for_another_net_are_named(tmp_path, saved):
    _, net = saved
    path = tmp_path / "b.safetensors"
    save_backbone(path, net, NetSpec("alexnet", fc=32), InputSpec(), Provenance())
    with pytest.raises(UserError, match=r"lacks fc6\.conv\.bias"):
        load_backbone(str(path))


def test_a_malicious_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not a weights file"):
        load_backbone(f"timm:resnet18,weights={tmp_path / 'evil.pth'}")
    assert not (tmp_path / "owned").exists()


def test_the_metadata_says_what_a_reader_needs(saved):
    _, meta = read_weights(saved[0])
    assert meta.format == "crosschannel.backbone" and meta.layers[0] == "conv1" and meta.input.size == 128


def test_an_existing_path_is_a_path_whatever_it_looks_like(saved, tmp_path):
    for name in ("with,comma=1", "pkg:name"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "backbone.safetensors").write_bytes(saved[0].read_bytes())
        assert load_backbone(str(folder)).layers[0] == "conv1"


def test_sources_parse():
    source = parse_source("timm:resnet50.a1_in1k,weights=a/b.pth,size=160")
    assert (source.kind, source.name) == ("timm", "resnet50.a1_in1k")
    assert source.options == {"weights": "a/b.pth", "size": 160}
    assert parse_source("runs/a-0").kind == "path" and parse_source("pkg.mod:make").kind == "factory"


def test_import_is_lazy():
    import subprocess
    import sys

    code = "import sys, crosschannel; print([m for m in ('torch', 'timm', 'sklearn', 'pydantic') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    assert isinstance(crosschannel.__version__, str) and nn


def test_random_of_another_librarys_net_is_that_net_with_that_input(photo_folder):
    data = f"data={photo_folder}"
    for option, kind in (("size=64", "rgb"), ("input=grey", "grey")):
        backbone = load_backbone(f"random:timm:test_resnet,{option},{data}")
        assert backbone.layers == load_backbone("timm:test_resnet,weights=none").layers
        assert backbone.input.kind == kind and backbone.net.model.bn1.running_var.sub(1).abs().max() > 0.01
    a, b, c = (load_backbone(f"random:torchvision:squeezenet1_1,seed={seed}") for seed in (1, 1, 2))
    weights = [next(x.parameters()) for x in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(UserError, match="unknown option 'fc' for torchvision nets"):
        load_backbone("random:torchvision:squeezenet1_1,fc=3")


def test_random_of_a_factory_forgets_its_weights(my_nets):
    assert load_backbone("my_nets:zero").net.model[0].weight.abs().max() == 0
    assert load_backbone("random:my_nets:zero").net.model[0].weight.abs().max() > 0


def test_a_folder_called_like_a_net_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "alexnet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_backbone("random:alexnet,fc=0,norm=false").layers[0] == "conv1"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("seed=-1", "seed must be at least 0, got -1"),
        ("seed=1.5", "seed must be a whole number, got 1.5"),
        ("size=0", "size must be within 1..4096, got 0"),
        ("mean=true", "mean must be a number, or three numbers such as"),
        ("seed=99999999999999999999", r"seed must be at most 2\*\*63 - 1 in magnitude"),
    ],
)
def test_an_invalid_number_is_named(option, words):
    with pytest.raises(UserError, match=words):
        load_backbone(f"random:alexnet,fc=0,norm=false,{option}")
