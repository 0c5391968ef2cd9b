"""What each pretext task sees, predicts and scores, against independent restatements."""

import colorsys

import numpy as np
import pytest
import torch
from batches import base_batch
from skimage.color import rgb2hsv

from crosschannel import UserError
from crosschannel.color import rgb_to_lab
from crosschannel.color.quantizer import ab_bins
from crosschannel.colorize.decoders import build_decoder, hsv_to_rgb, median, yuv_to_rgb
from crosschannel.models import NetSpec
from crosschannel.pretext import TASKS, create, find_task
from crosschannel.pretext.config import (
    AutoencoderConfig,
    ColorizationConfig,
    DahlConfig,
    LabelsConfig,
    LarssonConfig,
    SplitBrainConfig,
)
from crosschannel.pretext.dahl import rgb_to_yuv
from crosschannel.pretext.hypercolumn import SampledLogits

SPECS = {
    "colorization": (ColorizationConfig(), NetSpec("alexnet", 1, fc=0)),
    "larsson": (LarssonConfig(locations=16, width=32, dropout=0.0), NetSpec("vgg16", 1, fc=24)),
    "dahl": (DahlConfig(), NetSpec("vgg16", 3)),
    "autoencoder": (AutoencoderConfig(), NetSpec("alexnet", 3, fc=0)),
    "split-brain": (SplitBrainConfig(), NetSpec("alexnet", 3, fc=0)),
    "labels": (LabelsConfig(dropout=0.0), NetSpec("alexnet", 3, fc=0)),
}
LABELS = torch.tensor([0, 2])


def made(name):
    config, spec = SPECS[name]
    torch.manual_seed(0)
    return create(name, config, spec, 96, ("a", "b", "c"))


@pytest.fixture
def rgb(photos):
    crops = np.stack([photo[:96, 40:136] for photo in photos[:2]])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("name", SPECS)
def test_every_task_trains_every_parameter_it_says_it_does_and_scores_itself(name, rgb):
    net, task = made(name)
    assert task.name == name and type(task.config) is find_task(name).keys
    targets = task.targets(rgb, LABELS)
    loss = task.loss(net.train()(task.inputs(rgb)), targets)
    loss.sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)  # DDP refuses others
    assert task.count(loss, targets) in (loss.numel(), len(loss)) and loss.isfinite().all()
    with torch.no_grad():
        scores = [task.score(net.eval()(task.inputs(one)), task.targets(one, label[None]))
                  for one, label in zip(rgb.split(1), LABELS, strict=True)]  # fmt: skip
        whole = task.score(net(task.inputs(rgb)), targets)
    assert whole.shape == (task.score_length,) and torch.allclose(sum(scores), whole, rtol=1e-4, atol=1e-4)
    figures = task.metrics(whole)
    assert {"loss", task.primary_metric.name} <= figures.keys()
    with torch.no_grad():
        at_rest = task.loss(net(task.inputs(rgb)), targets)
    assert figures["loss"] == pytest.approx(at_rest.mean().item(), rel=2e-3)


def test_tasks_stand_on_their_own_nets():
    for name, spec in (("larsson", "alexnet"), ("dahl", "colornet"), ("split-brain", "vgg16")):
        with pytest.raises(UserError, match=f"the task {name} requires model.name"):
            create(name, SPECS[name][0], NetSpec(spec, 3))
    with pytest.raises(UserError, match=r"model\.fc must be 0"):
        create("autoencoder", AutoencoderConfig(), NetSpec("alexnet", 3, fc=4096))
    with pytest.raises(UserError, match="at least two classes"):
        create("labels", LabelsConfig(), NetSpec("alexnet", 3, fc=0), classes=("one",))
    with pytest.raises(UserError, match="unknown pretext task 'puzzle'"):
        find_task("puzzle")


# Larsson et al.


def test_the_hypercolumn_has_the_papers_12417_numbers():
    with torch.device("meta"):
        net, _ = create("larsson", LarssonConfig(), NetSpec("vgg16", 1, fc=4096))
    assert sum(net.widths) == 12417
    megabytes = 4 * sum(p.numel() for p in net.parameters()) / 1e6
    assert megabytes == pytest.approx(588, rel=0.005)  # Table 1


def test_a_whole_picture_is_the_sparse_net_at_every_fourth_pixel(rgb):
    """Sampling the hypercolumn and projecting it commute: dense logits equal those of an explicit hypercolumn."""
    net, task = made("larsson")
    x = task.inputs(rgb)
    net.eval()
    with torch.no_grad():
        dense = net(x)
        rows, columns = torch.tensor([[0, 4, 40, 92]] * 2), torch.tensor([[0, 88, 20, 92]] * 2)
        taken = iter((rows, columns))
        net._random_coordinates = lambda side, images, device: next(taken)
        net.training = True  # of this module alone: the layers' statistics stay
        located = net(x)
    assert torch.equal(located.rows, rows) and located.logits.shape == (2, 64, 4)
    picked = torch.stack([dense[0, :, r // 4, c // 4] for r, c in zip(rows[0], columns[0], strict=True)], 1)
    assert torch.allclose(located.logits[0], picked, atol=1e-5)


def test_a_hypercolumn_is_every_layers_value_under_the_pixel(rgb):
    """Against torch's own resize, where a map's grid is that of block centres: conv2_1 is of pairs of pixels."""
    net, task = made("larsson")
    net.eval()
    with torch.no_grad():
        maps = net.maps(task.inputs(rgb))
        full = torch.nn.functional.interpolate(maps["conv2_1"], rgb.shape[2:], mode="bilinear")
    assert net.grid("conv2_1") == (2.0, 0.5)
    from crosschannel.pretext.hypercolumn import _sample_points

    rows, columns = torch.tensor([[3, 50]] * 2), torch.tensor([[77, 0]] * 2)
    found = _sample_points(maps["conv2_1"], rows, columns, net.grid("conv2_1"))
    assert torch.allclose(found[:, :, 0], full[:, :, 3, 77], atol=1e-5)
    assert torch.allclose(found[:, :, 1], full[:, :, 50, 0], atol=1e-5)


def test_locations_keep_off_the_edges_and_are_drawn_anew():
    net, _ = create("larsson", LarssonConfig(), NetSpec("vgg16", 1, fc=8))
    drawn = net._random_coordinates(352, 50, torch.device("cpu"))
    assert drawn.shape == (50, 128) and drawn.min() == 96 and drawn.max() == 255  # the release: [96, 256)
    assert len(drawn.unique()) > 150


def test_hue_chroma_and_their_histograms_are_those_of_a_loop(rgb):
    _, task = made("larsson")
    targets = task.targets(rgb, LABELS)
    hsv = rgb2hsv(rgb[0].permute(1, 2, 0).numpy())
    chroma = hsv[:, :, 1] * hsv[:, :, 2]
    assert torch.allclose(targets.chroma[0].double(), torch.from_numpy(chroma), atol=1e-6)
    bins = (hsv[:, :, 0] * 32).astype(int) % 32
    apart = np.abs(targets.hue_bin[0].numpy() - bins)
    assert (apart == 0).mean() > 0.95 and (np.minimum(apart, 32 - apart) <= 1).all()  # hues on a border of bins
    logits = torch.randn(2, 64, 3)
    rows, columns = torch.tensor([[0, 50, 95]] * 2), torch.tensor([[2, 60, 95]] * 2)
    loss = task.loss(SampledLogits(logits, rows, columns), targets)
    for image in range(2):
        for k in range(3):
            rs = [min(max(int(rows[0, k]) + d, 0), 95) for d in range(-3, 4)]
            cs = [min(max(int(columns[0, k]) + d, 0), 95) for d in range(-3, 4)]
            places = [(r, c) for r in rs for c in cs]
            grey, chroma = (float(maps[image, rows[0, k], columns[0, k]]) for maps in (targets.grey, targets.chroma))
            total = 0.0
            for part, which in ((slice(0, 32), targets.hue_bin), (slice(32, 64), targets.chroma_bin)):
                histogram = torch.zeros(32)
                for r, c in places:
                    histogram[which[image, r, c]] += 1 / 49
                kl = torch.nn.functional.kl_div(logits[image, part, k].log_softmax(0), histogram, reduction="sum")
                total += kl * (5 * chroma if part.start == 0 else min(3 * grey, 1, 3 * (1 - grey)))
            assert loss[image, k].item() == pytest.approx(float(total), rel=1e-4)


def test_hsv_and_the_median_are_the_textbooks():
    generator = torch.Generator().manual_seed(0)
    hsv = torch.rand(3, 50, generator=generator)
    found = hsv_to_rgb(*(part[None, None] for part in hsv))[0, :, 0]
    expected = torch.tensor([colorsys.hsv_to_rgb(*map(float, one)) for one in hsv.T]).T
    assert torch.allclose(found, expected, atol=1e-6)
    flat = torch.full((1, 32, 1, 1), 1 / 32)
    assert median(flat).item() == pytest.approx(0.5)
    one = torch.zeros(1, 32, 1, 1)
    one[0, 8] = 1
    assert median(one).item() == pytest.approx(8.5 / 32)


def test_their_decode_gives_a_sure_colour_back_and_greys_an_unsure_one():
    _, task = made("larsson")
    colour = torch.tensor([0.7, 0.4, 0.3])[None, :, None, None].expand(1, 3, 2, 2)
    grey = colour.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    maps = torch.zeros(1, 64, 2, 2)
    hue, chroma = (torch.tensor(colorsys.rgb_to_hsv(0.7, 0.4, 0.3)[0]), 0.4)
    maps[:, int(hue * 32)], maps[:, 32 + int(chroma * 32)] = 1, 1
    assert (build_decoder(task).to_ab(maps, grey) - rgb_to_lab(colour)[:, 1:]).abs().max() < 5  # half a bin
    maps[:, :32] = 1 / 32  # any hue
    assert build_decoder(task).to_ab(maps, grey).abs().max() < 0.1


@pytest.mark.parametrize("certainty", [0.0, 0.2, 0.446, 0.8, 0.98])
def test_chroma_fades_with_the_mean_phase_of_the_hue_bins(certainty):
    """Mixing one hue with all hues gives |Σ p · e^{iθ}| = certainty; the factor is min(certainty / 32, .03) / .03."""
    _, task = made("larsson")
    maps = torch.zeros(1, 64, 1, 1)
    maps[:, :32] = (1 - certainty) / 32
    maps[:, 5] += certainty
    maps[:, 32 + 12] = 1
    phases = np.exp(2j * np.pi * (np.arange(32) + 0.5) / 32)
    mean = abs((maps[0, :32, 0, 0].double().numpy() * phases).mean())
    assert mean * 32 == pytest.approx(certainty, abs=1e-6)
    chroma = 12.5 / 32 * min(mean, 0.03) / 0.03
    value = 0.4 + chroma / 2
    rgb = np.array(colorsys.hsv_to_rgb(5.5 / 32, chroma / value, value))
    expected = rgb_to_lab(torch.from_numpy(rgb + 0.4 - rgb.mean())[None, :, None, None])[0, 1:, 0, 0]
    ab = build_decoder(task).to_ab(maps, torch.full((1, 3, 1, 1), 0.4))[0, :, 0, 0]
    assert torch.allclose(ab.double(), expected, atol=1e-3)


def test_larsson_is_initialised_as_in_the_release():
    net, _ = create("larsson", LarssonConfig(width=256), NetSpec("vgg16", 1, fc=64))
    assert net.hidden.weight.std().item() == pytest.approx(1e-4, rel=0.02)
    for conv in (net.out, net.net.conv3_2.conv, net.net.fc6.conv):
        bound = (3 / conv.weight[0].numel()) ** 0.5
        assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01) and not conv.bias.any()
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


# Dahl


def test_uv_go_there_and_back(rgb):
    yuv = rgb_to_yuv(rgb.float() / 255)
    assert yuv.min() >= 0 and yuv.max() <= 1
    assert torch.allclose(yuv_to_rgb(yuv), rgb.float() / 255, atol=1e-5)
    red, green, blue = (rgb.float() / 255).unbind(1)
    assert torch.allclose(yuv[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue)
    assert torch.allclose(yuv[:, 1], 0.5 + (blue - yuv[:, 0]) / 1.772, atol=1e-6)  # BT.601


def test_dahls_loss_is_the_mean_over_three_scales(rgb):
    from scipy.ndimage import correlate

    _, task = made("dahl")
    outputs, targets = torch.randn(2, 2, 96, 96), task.targets(rgb, LABELS)
    loss = task.loss(outputs, targets)
    difference = (outputs.sigmoid() - targets).double().numpy()
    errors = [difference]
    for size in (3, 5):
        line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 5) ** 2))
        kernel = np.outer(line, line) / np.outer(line, line).sum()
        errors.append(np.stack([[correlate(one, kernel, mode="nearest") for one in image] for image in difference]))
    expected = np.mean([(error**2).mean(1) for error in errors], 0)
    assert np.allclose(loss.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (9, 30), (33, 17)])
@pytest.mark.parametrize("name", ["dahl", "larsson"])
def test_pictures_of_any_size(name, size):
    net, task = made(name)
    rgb = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    if name == "larsson" and min(size) < 32:
        size = (32, 40)  # five pools
        rgb = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        maps = build_decoder(task).to_maps(net.eval()(task.inputs(rgb)))
    assert maps.shape[2:] == tuple(-(-side // task.stride) for side in size)


# Split-brain


def test_the_halves_never_meet(rgb):
    net, task = made("split-brain")
    x = task.inputs(rgb).requires_grad_()
    outputs = net.eval()(x)
    (of_ab,) = torch.autograd.grad(outputs.ab.square().sum(), x, retain_graph=True)
    (of_lightness,) = torch.autograd.grad(outputs.lightness.square().sum(), x)
    assert of_ab[:, 0].any() and not of_ab[:, 1:].any()
    assert of_lightness[:, 1:].any() and not of_lightness[:, 0].any()
    assert outputs.ab.shape == (2, 313, 6, 6) and outputs.lightness.shape == (2, 50, 6, 6)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 180, 180)).ab.shape[2:] == (12, 12)


def test_split_brains_loss_is_two_cross_entropies(rgb):
    _, task = made("split-brain")
    from crosschannel.pretext.split_brain import Halves

    outputs = Halves(torch.randn(2, 313, 6, 6), torch.randn(2, 50, 6, 6))
    lab = task.targets(rgb, LABELS)
    assert torch.allclose(lab, rgb_to_lab(rgb)[:, :, ::16, ::16], atol=1e-4)
    nearest = (lab[:, None, 1:] - ab_bins()[:, :, None, None]).square().sum(2).argmin(1)  # one-hot, as published
    expected = torch.nn.functional.cross_entropy(outputs.ab, nearest, reduction="none")
    bins = (lab[:, 0] / 2).floor().clamp(max=49).long()
    expected += torch.nn.functional.cross_entropy(outputs.lightness, bins, reduction="none")
    assert torch.allclose(task.loss(outputs, lab), expected, atol=1e-4)


# Labels and the autoencoder


def test_images_without_a_class_teach_and_count_nothing(rgb):
    net, task = made("labels")
    labels = torch.tensor([-1, 1])
    outputs = net.eval()(task.inputs(rgb)).detach()
    loss = task.loss(outputs, task.targets(rgb, labels))
    assert loss[0] == 0 and loss[1] == pytest.approx(-outputs.log_softmax(1)[1, 1].item(), rel=1e-5)
    assert task.score(outputs, labels)[0] == 1 == task.count(loss, labels)
    with pytest.raises(UserError, match="none of the held-out images has a class"):
        task.metrics(task.score(outputs, torch.tensor([-1, -1])))


def test_a_classifier_with_fc6_and_fc7_is_the_transfer_net():
    config = LabelsConfig(input="grey")
    net, _ = create("labels", config, NetSpec("alexnet", 1, fc=32), 227, ("a", "b"))
    assert net.net.geometry == "probe"
    x = torch.randn(2, 1, 227, 227)
    net.eval()
    expected = net.out(net.net(x).flatten(1))
    assert torch.allclose(net(x), expected, atol=1e-6)
    net.train()
    for module in net.modules():
        module.training = isinstance(module, type(net))  # dropout alone
    assert not torch.allclose(net(x), net(x))


def test_the_bottleneck_is_a_tenth_of_the_picture():
    net, _ = made("autoencoder")
    seen = []
    net.ups[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 180, 180)).shape == (1, 3, 180, 180)
    assert seen[0].shape == (1, 256, 6, 6) and seen[0].numel() < 3 * 180 * 180 / 10


# What all tasks promise


def test_a_colorization_step_is_what_it_was(rgb):
    """Lightness in, every 8th ab, the objective, sums over a count: to the bit, as before tasks had a floor."""
    from crosschannel.color import load_prior, rgb_to_lightness
    from crosschannel.data import CropConfig, ImageBatch, MemoryImages
    from crosschannel.pretext.classification import Classification
    from crosschannel.pretext.pretraining import Pretraining
    from crosschannel.training.ranks import World

    net, task = made("colorization")
    images = MemoryImages(["a", "b"], [0, 1], [b"", b""])
    world = World(0, 1, torch.device("cpu"))
    loop_task = Pretraining(net, task, images, CropConfig(96, 96), world, "default")
    loss, count = loop_task.step(net, ImageBatch(**vars(base_batch(2)), images=rgb))
    gradients = torch.autograd.grad(loss / count, list(net.parameters()))
    objective = Classification(load_prior().smoothed, 0.5)
    per_pixel = objective(net(rgb_to_lightness(rgb) - 50), rgb_to_lab(rgb[:, :, ::8, ::8])[:, 1:])
    expected = torch.autograd.grad(per_pixel.sum() / per_pixel.numel(), list(net.parameters()))
    assert torch.equal(loss, per_pixel.sum()) and count == per_pixel.numel()
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("name", ["larsson", "dahl", "autoencoder", "split-brain"])
def test_the_best_constant_has_a_share_of_one_and_the_truth_of_zero(name, rgb):
    """By logits that are the targets' own distribution, or their values; then the same for all pixels."""
    _, task = made(name)
    targets = task.targets(rgb, LABELS)
    tiny = 1e-12
    if name == "larsson":
        blank = torch.zeros(2, 64, 24, 24)
        _, hue, chroma, of_hue, of_chroma = task._histograms(blank, targets)
        exact = torch.cat((hue, chroma), 1).clamp(min=tiny).log().unflatten(2, (24, 24))
        means = [torch.einsum("nqk,nk->q", z, v) for z, v in ((hue, of_hue), (chroma, of_chroma))]
        mean = torch.cat([m / m.sum() for m in means]).clamp(min=tiny).log()[None, :, None, None]
        constant = mean.expand(2, -1, 24, 24)
    elif name == "split-brain":
        from crosschannel.pretext.split_brain import Halves

        indices, weights = task.quantizer.encode(targets[:, 1:])
        ab = torch.zeros(2, 313, 6, 6).scatter_(1, indices, weights)
        lightness = (
            torch.nn.functional.one_hot((targets[:, 0] / 2).long().clamp(max=49), 50).permute(0, 3, 1, 2).float()
        )
        exact = Halves(ab.clamp(min=tiny).log(), lightness.clamp(min=tiny).log())
        constant = Halves(*(one.mean((0, 2, 3), keepdim=True).clamp(min=tiny).log().expand_as(one)
                            for one in (ab, lightness)))  # fmt: skip
    else:
        value = targets.logit(1e-6) if name == "dahl" else targets
        mean = targets.mean((0, 2, 3), keepdim=True).expand_as(targets)
        exact, constant = value, mean.logit() if name == "dahl" else mean
    share = task.primary_metric.name
    assert task.metrics(task.score(exact, targets))[share] == pytest.approx(0, abs=1e-3)
    assert task.metrics(task.score(constant, targets))[share] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_thirty_steps_on_one_batch_lower_the_loss(name, rgb, narrow_net):
    net, task = made(name)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-3)
    small, losses = rgb[:, :, :64, :64], []
    targets = task.targets(small, LABELS)
    net.train()
    for step in range(30):
        torch.manual_seed(step)
        loss = task.loss(net(task.inputs(small)), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].load().decoder])
def test_the_colour_of_a_picture_does_not_reach_its_colours(name, photos):
    """A colour picture, and one without colour of the same lightness (mean of RGB, luma) as the task measures it."""
    from crosschannel.color import lab_to_rgb

    net, task = made(name)
    colour = torch.from_numpy(photos[0][:64, :64].copy()).permute(2, 0, 1)[None].float() / 255
    lab = rgb_to_lab(colour)
    lab[:, 1:] = 0
    grey = {
        "larsson": colour.mean(1, keepdim=True).expand(-1, 3, -1, -1),
        "dahl": rgb_to_yuv(colour)[:, :1].expand(-1, 3, -1, -1),
    }.get(name, lab_to_rgb(lab))
    with torch.no_grad():
        one, two = (build_decoder(task).to_maps(net.eval()(task.inputs(x))) for x in (colour, grey))
    assert torch.allclose(one, two, atol=2e-3) and one.std() > 0


def test_inputs_of_grey_are_what_their_names_say(rgb):
    x = rgb.float() / 255
    intensity = made("larsson")[1].inputs(rgb)
    assert torch.allclose(intensity[:, 0], (x[:, 0] + x[:, 1] + x[:, 2]) / 3 - 0.4488, atol=1e-6)
    luma = made("dahl")[1].inputs(rgb)
    y = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        assert torch.allclose(luma[:, channel], (y - mean) / std, atol=1e-5)


def test_points_of_every_layer_stand_where_gradients_say():
    """Without padding's influence in the middle: the centre of what a point of conv5_3 or pool5 sees."""
    net, _ = made("larsson")
    net = net.eval()
    for layer, grid in (("conv5_3", (16.0, 7.5)), ("fc7", (32.0, 15.5))):
        assert net.grid(layer) == grid
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    x = torch.rand(1, 1, 320, 320).requires_grad_()
    maps = net.maps(x)
    for layer in ("conv4_3", "conv5_3"):
        stride, origin = net.grid(layer)
        middle = maps[layer].shape[2] // 2
        (seen,) = torch.autograd.grad(maps[layer][0, :, middle, middle].sum(), x, retain_graph=True)
        mass = seen[0, 0].abs()
        centre = (mass.sum(1) @ torch.arange(320.0)) / mass.sum()
        assert centre.item() == pytest.approx(origin + stride * middle, abs=stride / 2)
