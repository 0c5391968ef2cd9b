"""Caffemodels of the literature, written as their authors' definitions have them, against OpenCV's own reader or the
net restated with torch."""

from functools import partial

import cv2
import numpy as np
import pytest
import torch
from caffe_writer import Net, model
from torch.nn import functional as F

from crosschannel.cli import main
from crosschannel.color import rgb_to_lab, rgb_to_lightness
from crosschannel.color.quantizer import ab_bins
from crosschannel.errors import UserError
from crosschannel.hub import load_backbone, load_colorizer
from crosschannel.hub.convert import import_weights
from crosschannel.models import spec_of
from crosschannel.models.adapt import trainable_copy, with_input, without_input_scale

GENERATOR = np.random.default_rng(0)


def arrays(*shape: int) -> list[np.ndarray]:
    """Weights that keep a signal alive, and biases."""
    weight = GENERATOR.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    return [weight.astype(np.float32), GENERATOR.normal(0, 0.1, shape[0]).astype(np.float32)]


def statistics(width: int) -> list[np.ndarray]:
    return [7 * GENERATOR.normal(0, 1, width), 7 * GENERATOR.uniform(0.5, 2, width), np.array([7])]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


def opencv(folder, x: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
    net = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    net.setInput(x.numpy())
    return [torch.from_numpy(out) for out in net.forward(names)]


def alexnet(net: Net, channels: int, groups=(1, 2, 1, 2, 2), lrn=False, slope=0.0, norms=(), fc=(32, 32), dense=True):
    """conv1 … fc7 of an AlexNet onto ``net``; ``groups`` of its convolutions, ``norms``: layers with BatchNorm."""
    widths = (channels, 96, 256, 384, 384, 256)
    for i, (kernel, pad) in enumerate(((11, 0), (5, 2), (3, 1), (3, 1), (3, 1))):
        name, stride = f"conv{i + 1}", 4 if i == 0 else 1
        weights = arrays(widths[i + 1], widths[i] // groups[i], kernel, kernel)
        net.convolution(name, weights, kernel_size=kernel, pad=pad, stride=stride, group=groups[i])
        if name in norms:
            net.batchnorm(f"bn{i + 1}", statistics(widths[i + 1]), eps=1e-2)
        net.relu(f"relu{i + 1}", slope)
        if i in (0, 1, 4):
            net.pool(f"pool{i + 1}")
        if lrn and i < 2:
            net.lrn(f"norm{i + 1}")
    for name, width, inputs in (("fc6", fc[0], 9216), ("fc7", fc[1], fc[0])) if dense and fc else ():
        net.add(name, "InnerProduct", arrays(width, inputs), f"inner_product_param {{ num_output: {width} }}")
        net.relu(f"relu_{name}", slope)


def lab(n: int = 1, side: int = 227) -> torch.Tensor:
    """Random Lab, L in 0..100."""
    draw = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))
    return torch.cat((draw[:, :1] * 100, draw[:, 1:] * 120 - 60), 1)


def test_a_rescaled_colorization_alexnet_keeps_the_scale_in_its_input(tmp_path):
    net = Net(1, 227)
    net.convolution("data_l", [np.full((1, 1, 1, 1), 1.44), np.array([-72.0])], kernel_size=1)
    alexnet(net, 1)
    net.add("fc8_", "InnerProduct", arrays(10, 32), "inner_product_param { num_output: 10 }")
    path = net.write(tmp_path)
    lightness = lab()[:, :1]
    theirs = opencv(tmp_path, lightness, ["relu1", "relu5", "relu_fc7"])
    backbone = load_backbone(str(path))
    assert backbone.input.kind == "grey" and import_weights(path).left_out == ["fc8_"]
    assert backbone.input.scale == pytest.approx(1.44)
    conv1 = next(weights for name, _, weights, _ in net.layers if name == "conv1")
    assert torch.equal(backbone.net.conv1.conv.weight, torch.from_numpy(conv1[0]).float())  # nothing folded in
    ours = backbone.features(1.44 * (lightness - 50), ["conv1", "conv5", "fc7"])
    for layer, expected in zip(ours.values(), theirs, strict=True):
        assert close(layer.reshape(expected.shape), expected)
    rgb = torch.rand(1, 3, 227, 227)
    assert torch.allclose(backbone.preprocess(rgb), 1.44 * (rgb_to_lightness(rgb) - 50), atol=1e-4)
    copy = tmp_path / "ours.safetensors"
    assert main(["import", str(path), f"--out={copy}"]) == 0
    assert load_backbone(str(copy)).input == backbone.input
    assert torch.equal(load_backbone(str(copy))(rgb)["conv5"], backbone(rgb)["conv5"])
    widened = with_input(trainable_copy(backbone), "lab")
    assert torch.allclose(widened.preprocess(rgb)[:, 1:], 1.44 * rgb_to_lab(rgb)[:, 1:], atol=1e-3)
    folded = without_input_scale(backbone)
    assert folded.input.scale == 1 and close(folded(rgb)["conv5"], backbone(rgb)["conv5"])
    assert backbone.input.scale != 1  # the export's copy is folded, not this one


@pytest.mark.parametrize("bias", [0.0, -50.0])
def test_an_input_layer_that_centres_elsewhere_is_refused(tmp_path, bias):
    net = Net(1, 227)
    net.convolution("data_l", [np.full((1, 1, 1, 1), 1.44), np.array([bias])], kernel_size=1)
    alexnet(net, 1)
    with pytest.raises(UserError, match="data_l does not centre L on 50"):
        import_weights(net.write(tmp_path))


def test_a_split_brain_net_with_every_layer_in_two_groups(tmp_path):
    net = Net(3, 227)
    scale = np.array([0.9, 0.6, 0.6]).reshape(3, 1, 1, 1)
    net.convolution("data_lab", [scale, np.array([-45.0, 0, 0])], kernel_size=1, group=3)
    alexnet(net, 3, groups=(1, 2, 2, 2, 2), dense=False)
    fc6, fc7 = arrays(32, 128, 6, 6), arrays(32, 16, 1, 1)
    net.convolution("fc6", fc6, kernel_size=6, pad=5, dilation=2, group=2)
    net.relu("relu6")
    net.convolution("fc7", fc7, kernel_size=1, group=2)
    net.relu("relu7")
    path = net.write(tmp_path)
    x = lab()
    (conv3, conv5) = opencv(tmp_path, x, ["relu3", "relu5"])
    backbone = load_backbone(str(path))
    assert backbone.input.kind == "lab" and backbone.input.scale == pytest.approx(0.9)
    centred = 0.9 * (x - torch.tensor([50.0, 0, 0])[:, None, None])
    maps = backbone.features(centred, ["conv3", "conv5"])
    assert close(maps["conv3"], conv3) and close(maps["conv5"], conv5)
    weights = {name: [torch.from_numpy(np.float32(a)) for a in found] for name, _, found, _ in net.layers if found}
    y = F.conv2d(x, *weights["data_lab"], groups=3)  # the training net, restated: every map on the pixel grid
    y = F.max_pool2d(F.conv2d(y, *weights["conv1"], stride=4, padding=5).relu(), 3, 2, 1, ceil_mode=True)
    y = F.max_pool2d(F.conv2d(y, *weights["conv2"], padding=2, groups=2).relu(), 3, 2, 1, ceil_mode=True)
    for name in ("conv3", "conv4", "conv5"):
        y = F.conv2d(y, *weights[name], padding=1, groups=2).relu()
    y = F.max_pool2d(y, 3, 1, 1)
    y = F.conv2d(y, *weights["fc6"], padding=5, dilation=2, groups=2).relu()
    padded = load_backbone(f"{path},geometry=padded").features(centred, ["fc6", "fc7"])
    assert close(padded["fc6"], y) and close(padded["fc7"], F.conv2d(y, *weights["fc7"], groups=2).relu())


def test_a_published_split_brain_net_stays_two_halves(tmp_path):
    net = Net(3, 227)
    scale = np.array([0.9, 0.6, 0.6]).reshape(3, 1, 1, 1)
    net.convolution("data_lab", [scale, np.array([-45.0, 0, 0])], kernel_size=1, group=3)
    alexnet(net, 3, groups=(1, 2, 2, 2, 2), dense=False)
    conv1 = next(found for name, _, found, _ in net.layers if name == "conv1")
    conv1[0][:48, 1:], conv1[0][48:, :1] = 0, 0
    path = net.write(tmp_path)
    x = lab()
    (conv3, conv5) = opencv(tmp_path, x, ["relu3", "relu5"])
    backbone = load_backbone(str(path), frozen=False)
    assert backbone.net.spec.options.variant == "split-brain"
    centred = (0.9 * (x - torch.tensor([50.0, 0, 0])[:, None, None])).requires_grad_()
    maps = backbone.features(centred, ["conv3", "conv5"])
    assert close(maps["conv3"], conv3) and close(maps["conv5"], conv5)
    (seen,) = torch.autograd.grad(maps["conv5"][:, :128].sum(), centred)
    assert seen[:, 0].any() and not seen[:, 1:].any()
    assert load_backbone(f"random:{path}").net.spec.options.variant == "split-brain"


@pytest.mark.parametrize("mixed", [True, False])
def test_a_segmentation_net_whose_colours_have_a_conv1_of_their_own(tmp_path, mixed):
    """Its data_ab gives one channel of a + b, or two."""
    net = Net(1, 227)
    net.convolution("data_l", [np.ones((1, 1, 1, 1)), np.array([-50.0])], kernel_size=1)
    ab = np.full((1, 2, 1, 1), 0.693) if mixed else np.full((2, 1, 1, 1), 0.693)
    net.convolution("data_ab", [ab], kernel_size=1, group=1 if mixed else 2)
    colour = arrays(96, 1 if mixed else 2, 11, 11)
    alexnet(net, 1, dense=False)
    net.layers.insert(3, ("conv1_ab", "Convolution", colour, b""))
    path = net.write(tmp_path)
    grey = next(entry[2] for entry in net.layers if entry[0] == "conv1")
    x = lab()
    grey, colour = ([torch.from_numpy(array) for array in pair] for pair in (grey, colour))
    chroma = F.conv2d(x[:, 1:], torch.from_numpy(ab).float(), groups=1 if mixed else 2)
    expected = (F.conv2d(x[:, :1] - 50, *grey, stride=4) + F.conv2d(chroma, *colour, stride=4)).relu()
    backbone = load_backbone(str(path))
    assert backbone.input.kind == "lab"
    assert close(backbone.features(x - torch.tensor([50.0, 0, 0])[:, None, None], ["conv1"])["conv1"], expected)


def test_a_context_prediction_net_gives_its_convolutions(tmp_path):
    """BatchNorm on conv3-5; fc6 looks at 96 px patches, fc7 at two of them."""
    net = Net(3, 227)
    alexnet(net, 3, groups=(1,) * 5, lrn=True, norms=("conv3", "conv4", "conv5"), dense=False)
    heads = [("fc6", arrays(32, 2304)), ("fc7", arrays(32, 64)), ("fc8", arrays(32, 32)), ("fc9", arrays(8, 32))]
    (tmp_path / "net.prototxt").write_text(net.text)
    (tmp_path / "net.caffemodel").write_bytes(model(net.layers + [(n, "InnerProduct", a) for n, a in heads]))
    found = import_weights(tmp_path / "net.caffemodel")
    assert found.left_out == ["fc8", "fc9", "fc6", "fc7"] and found.spec.options.variant == "ungrouped-caffenet"
    check_rgb(tmp_path, ["conv1", "conv3", "conv5"])


def check_rgb(
    folder, layers: list[str], names: dict[str, str] | None = None, variant_input=(104.007, 116.669, 122.679)
):
    """Our layers against OpenCV's, of a net that is given BGR less a mean (or scaled to -1 … 1)."""
    rgb = torch.rand(1, 3, 227, 227, generator=torch.Generator().manual_seed(1))
    bgr = rgb.flip(1) * 255
    x = (bgr - 127.5) / 127.5 if variant_input is None else bgr - torch.tensor(variant_input)[:, None, None]
    theirs = opencv(folder, x, [(names or {}).get(layer, layer.replace("conv", "relu")) for layer in layers])
    ours = load_backbone(str(folder / "net.caffemodel"))(rgb, layers)
    for layer, expected in zip(layers, theirs, strict=True):
        assert close(ours[layer].reshape(expected.shape), expected), layer


def test_a_bigan_encoder_keeps_its_leaky_relus_and_its_input(tmp_path):
    net = Net(3, 227)
    alexnet(net, 3, slope=0.2)
    path = net.write(tmp_path)
    assert import_weights(path).spec.options.variant == "bigan"
    check_rgb(tmp_path, ["conv1", "conv5", "fc7"], {"fc7": "relu_fc7"}, variant_input=None)
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(path), f"--out={out}"]) == 0
    rgb = torch.rand(1, 3, 227, 227)
    again, first = load_backbone(str(out)), load_backbone(str(path))
    assert torch.equal(again(rgb, ["conv5"])["conv5"], first(rgb, ["conv5"])["conv5"]) and again.input.std == (0.5,) * 3


def test_fully_connected_layers_of_zeros_are_left_out(tmp_path):
    """A BiGAN encoder has none, and its converted files fill them with a constant."""
    net = Net(3, 227)
    alexnet(net, 3, slope=0.2, dense=False)
    net.layers += [("fc6", "InnerProduct", [np.zeros((32, 9216)), np.ones(32)], b"")]
    net.layers += [("fc7", "InnerProduct", [np.zeros((32, 32)), np.ones(32)], b"")]
    found = import_weights(net.write(tmp_path))
    assert found.left_out == ["fc6", "fc7"] and found.spec.options.fc == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: net.add("prelu5", "PReLU", [np.full(256, 0.25)]),
            "prelu5 is of type PReLU; AlexNets are supported with ReLUs only",
        ),
        (lambda net: net.add("sigmoid5", "Sigmoid"), "sigmoid5 is of type Sigmoid"),
        (lambda net: net.pool("pool6", "AVE"), "pool6 is not max pooling"),
        (lambda net: net.lrn("norm5", alpha=0.01), "norm5 has the constants"),
    ],
    ids=["prelu", "sigmoid", "average", "lrn"],
)
def test_what_stands_between_the_layers_is_not_taken_for_something_else(tmp_path, change, message):
    net = Net(3, 227)
    alexnet(net, 3, lrn=True, dense=False)
    change(net)
    with pytest.raises(UserError, match=message):
        import_weights(net.write(tmp_path))


def test_relus_of_several_slopes_are_no_net_here(tmp_path):
    net = Net(3, 227)
    alexnet(net, 3, slope=0.2)
    net.relu("relu8", 0.1)
    with pytest.raises(UserError, match=r"ReLUs of slope 0\.1, 0\.2"):
        import_weights(net.write(tmp_path))


def test_a_net_of_video_triplets_has_a_narrower_fc7(tmp_path):
    net = Net(3, 227)
    alexnet(net, 3, lrn=True, fc=(64, 16))
    path = net.write(tmp_path)
    spec = import_weights(path).spec
    assert (spec.options.variant, spec.options.fc, spec.options.fc7) == ("caffenet", 64, 16)
    check_rgb(tmp_path, ["conv2", "conv5", "fc6", "fc7"], {"fc6": "relu_fc6", "fc7": "relu_fc7"})
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(path), f"--out={out}"]) == 0
    again = load_backbone(str(out))
    assert again.channels["fc7"] == 16 and spec_of(again.net) == spec


def test_an_ego_motion_net_gives_one_of_its_two_branches(tmp_path):
    net = Net(3, 227)
    alexnet(net, 3, dense=False)
    (tmp_path / "net.prototxt").write_text(net.text)
    joined = [("fc_joined", "InnerProduct", arrays(20, 64))]
    paired = []
    for entry in net.layers:
        paired += [entry, (f"{entry[0]}_p", *entry[1:])]
    (tmp_path / "net.caffemodel").write_bytes(model(paired + joined))
    found = import_weights(tmp_path / "net.caffemodel")
    assert found.left_out == [*(f"conv{i}_p" for i in range(1, 6)), "fc_joined"] and found.spec.options.fc == 0
    check_rgb(tmp_path, ["conv1", "conv5"])


@pytest.mark.parametrize("name", ["conv2b", "conv2_2"])
def test_a_layer_between_those_of_an_alexnet_is_named(tmp_path, name):
    net = Net(3, 227)
    alexnet(net, 3)
    place = next(i for i, entry in enumerate(net.layers) if entry[0] == "conv3")
    net.layers.insert(place, (name, "Convolution", arrays(256, 256, 1, 1), b""))
    with pytest.raises(UserError, match=f"layer {name} before conv3 is not part of any supported AlexNet"):
        import_weights(net.write(tmp_path))


def colornet(first: str, decode: bool) -> Net:
    """colorization_release_v2 by its own definition; an older one is called otherwise and lacks the decode."""
    net = Net(1, 64)
    blocks = [
        (64, 2, 2, 1),
        (128, 2, 2, 1),
        (256, 3, 2, 1),
        (512, 3, 1, 1),
        (512, 3, 1, 2),
        (512, 3, 1, 2),
        (512, 3, 1, 1),
    ]
    channels = 1
    for block, (width, count, stride, dilation) in enumerate(blocks, 1):
        for i in range(1, count + 1):
            name = first if (block, i) == (1, 1) else f"conv{block}_{i}"
            options = {"kernel_size": 3, "pad": dilation, "dilation": dilation, "stride": stride if i == count else 1}
            net.convolution(name, arrays(width, channels, 3, 3), **options)
            net.relu(f"relu{block}_{i}")
            channels = width
        net.batchnorm(f"conv{block}_{count}norm", statistics(width), inplace=False)
    deconv = [arrays(512, 256, 4, 4)[0] / 2, arrays(256, 1)[1]]
    net.convolution("conv8_1", deconv, "Deconvolution", kernel_size=4, pad=1, stride=2)
    net.relu("relu8_1")
    for i in (2, 3):
        net.convolution(f"conv8_{i}", arrays(256, 256, 3, 3), kernel_size=3, pad=1)
        net.relu(f"relu8_{i}")
    net.convolution("conv8_313", arrays(313, 256, 1, 1), kernel_size=1)
    if decode:
        sharpening = [np.full(313, 2.606, np.float32)]
        net.add("conv8_313_rh", "Scale", sharpening, "scale_param { bias_term: false }")
        net.add("class8_313_rh", "Softmax")
        net.convolution("class8_ab", [ab_bins().T.numpy()[:, :, None, None]], kernel_size=1)
    return net


def test_the_released_colornet_colours_as_caffe_does(tmp_path):
    net = colornet("bw_conv1_1", decode=True)
    path = net.write(tmp_path)
    lightness = lab(side=64)[:, :1]
    logits, ab = opencv(tmp_path, lightness - 50, ["conv8_313", "class8_ab"])
    colorizer = load_colorizer(str(path))
    assert close(colorizer.net(lightness - 50), logits)
    assert close(colorizer.predict_ab(lightness), ab)
    assert colorizer.decoder.temperature == pytest.approx(0.3837, abs=1e-4)
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(path), "--as=colornet", f"--out={out}"]) == 0
    assert torch.equal(load_colorizer(str(out)).predict_ab(lightness), colorizer.predict_ab(lightness))
    maps = load_backbone(str(path)).features(lightness - 50, ["conv7_3"])
    assert maps["conv7_3"].shape == (1, 512, 8, 8)
    renamed = [("conv1_1", *entry[1:]) if entry[0] == "bw_conv1_1" else entry for entry in net.layers[:-3]]
    path.write_bytes(model(renamed))  # as the older ones are, and a training's own snapshots
    assert close(load_colorizer(str(path)).predict_ab(lightness), colorizer.predict_ab(lightness))
    with pytest.raises(UserError, match=r"has lightness input \(grey\), not input 'lab'"):
        load_backbone(f"{path},input=lab")
    assert main(["import", str(path), "--as=alexnet", f"--out={tmp_path / 'no.safetensors'}"]) == 2
    for change, message in (
        (partial(_added, name="conv9_1"), "layer conv9_1 is not part of any supported colorization net"),
        (partial(_without, name="conv4_2"), "lacks net.conv4_2.conv.bias"),
        (partial(_added, name="class8_ab"), "the ab bins in class8_ab differ from the 313 published ones"),
    ):
        path.write_bytes(model(change(renamed)))
        with pytest.raises(UserError, match=message):
            import_weights(path)


def _added(layers, name):
    return [*layers, (name, "Convolution", [np.ones((2, 313, 1, 1), np.float32)], b"")]


def _without(layers, name):
    return [entry for entry in layers if entry[0] != name]
