"""Imported weights give the numbers of the nets they come from; files that cannot be are one sentence."""

import cv2
import numpy as np
import pytest
import torch
import torchvision
from caffe_writer import Net, field, layer
from caffe_writer import model as caffemodel
from published_nets import ECCV16, DeepCluster, RotNet, randomise
from safetensors.torch import save_file
from torch import nn

from crosschannel import UserError, load_backbone, load_colorizer
from crosschannel.cli import main
from crosschannel.hub.caffe_nets import CAFFE_MEAN
from crosschannel.hub.convert import import_weights

RGB = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
NORMALISED = (RGB - MEAN) / STD


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-4


def torchvisions(name: str) -> nn.Module:
    """An AlexNet or VGG-16 of torchvision's, with fully connected layers of 64 instead of 4,096 channels."""
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(weights=None)
    first, *_, last = numbers = [i for i, module in enumerate(net.classifier) if isinstance(module, nn.Linear)]
    for i in numbers:
        inputs = net.classifier[i].in_features if i == first else 64
        net.classifier[i] = nn.Linear(inputs, 10 if i == last else 64)
    return randomise(net.to_empty(device="cpu"))


@pytest.mark.parametrize("wrapping", ["plain", "module", "safetensors"])
def test_torchvisions_alexnet(tmp_path, wrapping):
    net = torchvisions("alexnet")
    state = net.state_dict()
    path = tmp_path / ("a.safetensors" if wrapping == "safetensors" else "a.pth")
    if wrapping == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if wrapping == "plain" else {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    backbone = load_backbone(str(path))
    with torch.no_grad():
        maps = backbone(RGB, ["conv3", "pool5", "fc7"])
        pool5 = net.features(NORMALISED)
        assert close(maps["conv3"], net.features[:8](NORMALISED)) and close(maps["pool5"], pool5)
        assert close(maps["fc7"].flatten(1), net.classifier[:6](pool5.flatten(1)))
    assert backbone.provenance.details["format"] == "torchvision-alexnet"


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_torchvisions_vgg16(tmp_path, name):
    net = torchvisions(name)
    torch.save(net.state_dict(), tmp_path / "v.pth")
    backbone = load_backbone(str(tmp_path / "v.pth"))
    with torch.no_grad():
        maps = backbone(RGB[:1], ["conv2_2", "conv5_3", "pool5", "fc7"])
        x = NORMALISED[:1]
        assert close(maps["conv5_3"], net.features[:-1](x))
        assert close(maps["conv2_2"], net.features[: 9 if name == "vgg16" else 13](x))
        assert close(maps["fc7"].flatten(1), net.classifier[:6](net.features(x).flatten(1)))
        assert close(backbone.head(maps["pool5"]), maps["fc7"].flatten(1))
    state = {key: value for key, value in net.state_dict().items() if key.startswith("features")}
    torch.save({**state, "classifier.weight": torch.zeros(10, 512)}, tmp_path / "cifar.pth")  # the head of another task
    found = import_weights(tmp_path / "cifar.pth")
    assert found.net.layers[-1] == "conv5_3" and found.left_out == ["classifier"]
    trunk = {key: value for key, value in net.state_dict().items() if key.startswith("features")}
    torch.save(trunk, tmp_path / "trunk.pth")
    assert load_backbone(str(tmp_path / "trunk.pth")).layers[-1] == "conv5_3"


@pytest.mark.parametrize("sobel", [True, False])
def test_deepclusters_alexnet_with_its_stem(tmp_path, sobel):
    net = randomise(DeepCluster(sobel))
    net.set_sobel()
    state = {k.replace("features.", "features.module."): v for k, v in net.state_dict().items()}
    torch.save({"epoch": 3, "arch": "alexnet", "state_dict": state}, tmp_path / "checkpoint.pth.tar")
    backbone = load_backbone(str(tmp_path / "checkpoint.pth.tar"))
    assert backbone.input.kind == ("sobel" if sobel else "rgb")
    with torch.no_grad():
        pool5, fc7 = net(NORMALISED)
        maps = backbone(RGB, ["pool5", "fc7"])
    assert close(maps["pool5"], pool5) and close(maps["fc7"].flatten(1), fc7)


def test_deepclusters_vgg16_with_its_stem(tmp_path):
    net = torchvisions("vgg16_bn")
    net.features[0] = randomise(nn.Conv2d(2, 64, 3, padding=1))
    state = {f"features.module.{k}": v for k, v in net.features.state_dict().items()}
    state |= {f"classifier.{k}": v for k, v in net.classifier.state_dict().items() if not k.startswith("6")}
    state |= {"top_layer.weight": torch.zeros(10, 64), "top_layer.bias": torch.zeros(10)}
    state |= {"sobel.0.weight": torch.zeros(1, 3, 1, 1), "sobel.1.weight": torch.zeros(2, 1, 3, 3)}
    torch.save({"epoch": 1, "arch": "vgg16", "state_dict": state}, tmp_path / "checkpoint.pth.tar")
    backbone = load_backbone(str(tmp_path / "checkpoint.pth.tar"))
    assert backbone.input.kind == "sobel"
    with torch.no_grad():
        maps, x = backbone(RGB[:1], ["conv5_3", "fc7"]), backbone.preprocess(RGB[:1])
        assert close(maps["conv5_3"], net.features[:-1](x))
        assert close(maps["fc7"].flatten(1), net.classifier[:6](net.features(x).flatten(1)))


def test_rotnets_alexnet(tmp_path):
    net = randomise(RotNet())
    torch.save({"epoch": 50, "network": net.state_dict()}, tmp_path / "net.pth")
    found = import_weights(tmp_path / "net.pth", "alexnet")
    assert found.format == "rotnet-alexnet" and found.left_out == ["_feature_blocks.9.0"]
    backbone = load_backbone(str(tmp_path / "net.pth"))
    with torch.no_grad():
        pool5, fc7 = net(NORMALISED)
        maps = backbone(RGB, ["pool5", "fc7"])
    assert close(maps["pool5"], pool5) and close(maps["fc7"].flatten(1), fc7)


def test_eccv16_keeps_its_own_decode_and_is_not_annealed_twice(tmp_path):
    net = randomise(ECCV16())
    net.model_out.weight.data = torch.randn(2, 313, 1, 1) * 0.3
    torch.save(net.state_dict(), tmp_path / "eccv16.pth")
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(tmp_path / "eccv16.pth"), "--as", "colornet", "--out", str(out)]) == 0
    lightness = torch.rand(1, 1, 64, 96) * 100
    for source in (tmp_path / "eccv16.pth", out):
        colorizer = load_colorizer(str(source))
        with torch.no_grad():
            logits, ab = net(lightness)
            assert close(colorizer.net(lightness - 50), logits)
            assert close(colorizer.predict_ab(lightness), ab)
            annealed = colorizer.predict_ab(lightness, 0.38)
        bins = colorizer.task.objective.quantizer.bins
        expected = torch.einsum("qc,nqhw->nchw", bins, (logits / 0.38).softmax(1))
        assert torch.allclose(annealed, expected, atol=1e-2)
    backbone = load_backbone(str(out))
    assert backbone.input.kind == "grey" and "conv7_3" in backbone.layers
    assert backbone.input.scale == 0.01 and torch.equal(backbone.net.conv1_1.conv.weight, net.model1[0].weight)
    assert torch.equal(colorizer.decoder.native, net.model_out.weight[:, :, 0, 0] * 110)


def caffe_layers(kind: str, channels: int):
    """(name, shape of the weights, options): in two groups, as CaffeNet has it, or in none, wide or narrow."""
    groups = 1 if kind in ("ungrouped", "narrow") else 2
    a, b, c, d, e = (64, 192, 384, 256, 256) if kind == "narrow" else (96, 256, 384, 384, 256)
    group = f"group: {groups}"
    return [
        ("conv1", (a, channels, 11, 11), f"pad: {2 if kind == 'narrow' else 0} kernel_size: 11 stride: 4"),
        ("conv2", (b, a // groups, 5, 5), f"pad: 2 kernel_size: 5 {group}"),
        ("conv3", (c, b, 3, 3), "pad: 1 kernel_size: 3"),
        ("conv4", (d, c // groups, 3, 3), f"pad: 1 kernel_size: 3 {group}"),
        ("conv5", (e, d // groups, 3, 3), f"pad: 1 kernel_size: 3 {group}"),
        ("fc6", (64, 9216), ""),
        ("fc7", (64, 64), ""),
    ]


def write_caffenet(folder, kind: str, channels: int = 3):
    """A CaffeNet with narrow fully connected layers, as model and prototxt; returns its layers."""
    generator = np.random.default_rng(0)
    net = Net(channels, 224 if kind == "narrow" else 227)
    for name, shape, options in caffe_layers(kind, channels):
        weight = generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        bias = generator.normal(0, 0.1, shape[0]).astype(np.float32)
        if name.startswith("conv"):
            net.add(name, "Convolution", [weight, bias], f"convolution_param {{ num_output: {shape[0]} {options} }}")
        else:
            net.add(name, "InnerProduct", [weight, bias], f"inner_product_param {{ num_output: {shape[0]} }}")
        if kind == "batchnorm" and name.startswith("conv"):
            mean, variance = generator.normal(0, 1, shape[0]), generator.uniform(0.5, 2, shape[0])
            scale, shift = generator.uniform(0.5, 1.5, shape[0]), generator.normal(0, 0.1, shape[0])
            net.batchnorm(f"{name}_bn", [5 * mean, 5 * variance, np.array([5])])
            net.add(f"{name}_scale", "Scale", [scale, shift], "scale_param { bias_term: true }", inplace=True)
        net.relu(f"relu_{name}")
        if name in ("conv1", "conv2"):
            number = name[-1]
            steps = {"lrn-before-pool": (net.lrn, net.pool), "lrn": (net.pool, net.lrn)}.get(kind, (net.pool,))
            for step in steps:
                step(f"{'norm' if step == net.lrn else 'pool'}{number}")
        elif name == "conv5":
            net.pool("pool5")
    net.write(folder)
    return [entry[:3] for entry in net.layers]


@pytest.mark.parametrize("kind", ["plain", "lrn", "lrn-before-pool", "batchnorm", "ungrouped", "narrow"])
def test_a_caffemodel_gives_what_opencvs_own_reader_gives(tmp_path, kind):
    write_caffenet(tmp_path, kind)
    net = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    backbone = load_backbone(str(tmp_path / "net.caffemodel"))
    side = 224 if kind == "narrow" else 227
    rgb = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    bgr = (rgb * 255 - torch.tensor(CAFFE_MEAN)[:, None, None]).flip(1)
    net.setInput(bgr.numpy())
    names = {name: f"relu_{name}" for name in ("conv1", "conv5", "fc7")}
    if kind.startswith("lrn"):
        names["norm2" if kind == "lrn" else "pool2"] = "norm2" if kind == "lrn" else "pool2"
    theirs = {name: torch.from_numpy(out) for name, out in zip(names, net.forward(list(names.values())), strict=True)}
    with torch.no_grad():
        ours = backbone(rgb, list(names))
    for name in names:
        assert close(ours[name].reshape(theirs[name].shape), theirs[name]), name
    assert backbone.provenance.details["format"] == "caffe" and backbone.input.size == side


def test_old_caffemodels_and_grey_and_lab_ones(tmp_path):
    layers = [entry for entry in write_caffenet(tmp_path, "plain") if entry[1] != "Scale"]
    (tmp_path / "v1.caffemodel").write_bytes(caffemodel(layers, v1=True))
    new, old = (load_backbone(str(tmp_path / f"{name}.caffemodel")) for name in ("net", "v1"))
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))
    lab = load_backbone(f"{tmp_path / 'net.caffemodel'},input=lab")
    assert lab.input.kind == "lab" and torch.equal(lab.net.conv1.conv.weight, new.net.conv1.conv.weight.flip(1))
    (tmp_path / "grey").mkdir()
    write_caffenet(tmp_path / "grey", "plain", channels=1)
    assert load_backbone(str(tmp_path / "grey" / "net.caffemodel")).input.kind == "grey"
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(tmp_path / "net.caffemodel"), "--as=caffe", f"--out={out}"]) == 0
    again = load_backbone(str(out))
    rgb = torch.rand(1, 3, 227, 227)
    assert torch.equal(again(rgb, ["fc7"])["fc7"], new(rgb, ["fc7"])["fc7"])
    assert again.input.mean == pytest.approx(tuple(m / 255 for m in CAFFE_MEAN))


def test_files_that_cannot_be_are_one_sentence_and_nothing_is_run(tmp_path, capsys):
    whole = torchvision.models.alexnet(weights=None).state_dict()
    owned = tmp_path / "owned"

    class Evil:
        def __reduce__(self):
            return (open, (str(owned), "w"))

    cases: dict[str, tuple[object, str]] = {
        "evil.pth": ({"state_dict": Evil()}, "not a weights file"),
        "page.pth": (b"<!DOCTYPE html><html>404</html>", "a web page"),
        "empty.pth": (b"", "not a weights file"),
        "numbers.pth": ([1, 2], "does not hold named tensors"),
        "other.pth": ({"encoder.weight": torch.zeros(2)}, "do not match any known format"),
        "lacking.pth": ({k: v for k, v in whole.items() if k != "features.6.bias"}, "lacks conv3.conv.bias"),
        "extra.pth": ({**whole, "features.99.weight": torch.zeros(1)}, "features.99.weight (and 0 more)"),
        "shape.pth": ({**whole, "features.10.bias": torch.zeros(7)}, "wrong shape for conv5.conv.bias"),
        "keys.pth": ({1: torch.zeros(2)}, "does not hold named tensors"),
        "sparse.pth": ({"features.0.weight": torch.eye(3).to_sparse()}, "does not hold named tensors"),
        "repeated.pth": (
            {**whole, "classifier.1.weight": torch.zeros(1).expand(10**7, 9216)},
            "has the unexpected tensor fc6",
        ),
        "scalar.pth": ({**whole, "classifier.1.weight": torch.tensor(1.0)}, "tensors of inconsistent shapes"),
        "number.caffemodel": (field(100, 5), "a number instead of bytes"),
        "8gb.caffemodel": (field(100, field(1, 1 << 33)), "a number instead of bytes"),
        "flat.caffemodel": (
            caffemodel([(f"conv{i}", "Convolution", [np.zeros(4)]) for i in range(1, 6)]),
            "tensors of inconsistent shapes",
        ),
        "cut.caffemodel": (
            caffemodel([("conv1", "Convolution", [np.zeros((96, 3, 11, 11))])])[:900],
            "damaged or not a caffemodel",
        ),
        "huge.caffemodel": (bytes([0xA2, 6, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]) + b"x", "claims 4294967295 bytes"),
        "text.caffemodel": (b"name: 'net' layer { }", "caffemodel"),
        "shapes.caffemodel": (caffemodel([("conv1", "Convolution", [np.zeros((3, 3))])]), "no convolution named conv2"),
        "cut.safetensors": (b"\xff\xff\xff\xff\0\0\0\0{}", "damaged or not a safetensors file"),
        "4gb.safetensors": ((4 << 30).to_bytes(8, "little") + b"{}", "damaged or not a safetensors file"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        assert main(["import", str(path), f"--out={tmp_path / 'o.safetensors'}"]) == 2, name
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and message in error[0], (name, error)
        with pytest.raises(UserError):
            load_backbone(str(path))
    assert not owned.exists() and not (tmp_path / "o.safetensors").exists()


def test_a_caffemodel_of_wrong_shapes_says_which(tmp_path):
    layers = write_caffenet(tmp_path, "plain")
    name, kind, arrays = next(entry for entry in layers if entry[0] == "conv2")
    for at, array, message in (
        (1, np.zeros(9), "conv2.conv.bias"),
        (0, np.zeros((256, 96, 5, 5)), "wrong shape for conv4.conv.weight"),
        (0, np.zeros((256, 32, 5, 5)), r"unsupported AlexNet \(96-256-384-384-256, 3 groups in conv2, no LRN\)"),
    ):
        changed = list(arrays)
        changed[at] = array.astype(np.float32)
        wrong = [(name, kind, changed) if entry[0] == "conv2" else entry for entry in layers]
        (tmp_path / "wrong.caffemodel").write_bytes(caffemodel(wrong))
        with pytest.raises(UserError, match=message):
            import_weights(tmp_path / "wrong.caffemodel")


def test_a_caffemodel_that_normalises_elsewhere_or_strides_otherwise_is_refused(tmp_path):
    layers = write_caffenet(tmp_path, "batchnorm")
    names = [name for name, _, _ in layers]
    at = names.index("conv1_bn")
    moved = [*layers[:at], layers[at + 2], *layers[at : at + 2], *layers[at + 3 :]]  # after the ReLU
    (tmp_path / "moved.caffemodel").write_bytes(caffemodel(moved))
    with pytest.raises(UserError, match="conv1_bn follows ReLU; only a norm directly after conv1 can be absorbed"):
        import_weights(tmp_path / "moved.caffemodel")
    short = [(n, k, [a[:5] for a in arrays] if n == "conv1_scale" else arrays) for n, k, arrays in layers]
    (tmp_path / "short.caffemodel").write_bytes(caffemodel(short))
    with pytest.raises(UserError, match="the norm after conv1 has 5 channels, but conv1 has 96"):
        import_weights(tmp_path / "short.caffemodel")
    plain = caffemodel(write_caffenet(tmp_path, "plain"))
    first = layer("conv1", "Convolution", dict((n, a) for n, _, a in write_caffenet(tmp_path, "plain"))["conv1"])
    length = next(i for i, byte in enumerate(first[2:]) if byte < 0x80)  # the message stands behind its key and length
    strided = field(100, first[3 + length :] + field(106, field(6, 2)))
    assert first in plain
    (tmp_path / "strided.caffemodel").write_bytes(plain.replace(first, strided))
    with pytest.raises(UserError, match="conv1 has stride 2; expected 4"):
        import_weights(tmp_path / "strided.caffemodel")


def test_import_says_what_it_cannot_do(tmp_path, capsys):
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "a.pth")
    base = ["import", str(tmp_path / "a.pth")]
    for flags, message in (
        (["--out=o.pth"], "must end in .safetensors"),
        ([f"--out={tmp_path / 'x' / 'o.safetensors'}"], "does not exist"),
        ([f"--out={tmp_path / 'o.safetensors'}", "--as=lenet"], "unknown format 'lenet'"),
        ([f"--out={tmp_path / 'o.safetensors'}", "--as=vgg16"], "of the family vgg16"),
        ([f"--out={tmp_path / 'o.safetensors'}", "--as=rotnet-alexnet"], "lacks _feature_blocks.0.0"),
        ([f"--out={tmp_path / 'o.safetensors'}", "--as=eccv16"], "lacks model1.0"),
        ([f"--out={tmp_path / 'o.safetensors'}", "--input=grey"], "has 3 input channels"),
    ):
        assert main([*base, *flags]) == 2
        assert message in capsys.readouterr().err
    assert main(["import", str(tmp_path / "gone.pth"), "--out=o.safetensors"]) == 2
