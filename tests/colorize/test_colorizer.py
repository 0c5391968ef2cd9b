"""Colorizers on batches and pictures, against the published code's way and closed forms."""

import numpy as np
import pytest
import torch
from PIL import Image
from published_nets import ECCV16, randomise
from skimage.color import rgb2lab

from crosschannel import UserError, load_colorizer
from crosschannel.color import lab_to_rgb, rgb_to_lab
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.colorize.upsampling import lightness_at_points, upsample_rows
from crosschannel.models import NetSpec
from crosschannel.pretext import create
from crosschannel.pretext.config import ColorizationConfig, SplitBrainConfig


@pytest.fixture(scope="module")
def colorizer() -> Colorizer:
    torch.manual_seed(0)
    net, task = create("colorization", ColorizationConfig(), NetSpec("alexnet", fc=0))
    return Colorizer(net, task, 64).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(256, 256), (300, 417)])
def test_imported_nets_give_the_published_codes_full_picture(tmp_path, photos, size):
    """The release squashes a picture to 256², bicubically and in 8 bits, and upsamples its ab twice, bilinearly."""
    net = randomise(ECCV16())
    net.model_out.weight.data = torch.randn(2, 313, 1, 1) * 3
    torch.save(net.state_dict(), tmp_path / "eccv16.pth")
    colorizer = load_colorizer(str(tmp_path / "eccv16.pth"))
    colorizer.upsample = "bilinear"
    picture = photos[0][: size[0], : size[1]]
    small = Image.fromarray(picture).resize((256, 256), Image.Resampling.BICUBIC)
    lightness = torch.from_numpy(rgb2lab(np.asarray(small))[:, :, 0]).float()[None, None]
    with torch.no_grad():
        ab = torch.nn.functional.interpolate(net(lightness)[1], scale_factor=4, mode="bilinear")
        expected = torch.nn.functional.interpolate(ab, size, mode="bilinear")
    ours = colorizer.ab(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
    assert (ours - expected).abs().max() < 1e-3 and expected.std() > 0.5


def test_a_float_batch_is_neither_rounded_nor_moved_nor_taken_apart(colorizer, photos):
    rgb = torch.from_numpy(np.stack([photo[:64, :96] for photo in photos[:3]])).permute(0, 3, 1, 2).double() / 255
    together = colorizer(rgb)
    assert together.dtype == torch.float64
    apart = torch.cat([colorizer(one[None]) for one in rgb])
    assert torch.allclose(together, apart, atol=1e-5)
    assert (rgb_to_lab(together) - rgb_to_lab(rgb))[:, 0].abs().max() < 0.05  # lightness, but for the gamut's slack
    assert not torch.allclose(together * 255, (together * 255).round(), atol=1e-3)


def test_saturation_multiplies_ab_and_clipping_is_a_choice(photos):
    torch.manual_seed(0)
    net, task = create("colorization", ColorizationConfig(kind="l2"), NetSpec("alexnet", fc=0))
    colorizer = Colorizer(net, task, 64).eval().requires_grad_(False)
    net.head.out.bias.data = torch.tensor([0.08, -0.05])
    rgb = torch.full((1, 3, 64, 64), 0.5)
    ab = colorizer.ab(rgb)
    for factor in (0.0, 1.0, 2.0):
        colorizer.saturation = factor
        assert torch.allclose(rgb_to_lab(colorizer(rgb))[:, 1:], factor * ab, atol=0.02)
    colorizer.saturation = 40.0  # no screen can show it
    lab = torch.cat((rgb_to_lab(rgb)[:, :1], 40 * ab), 1)
    colorizer.gamut = "clip"
    assert torch.allclose(colorizer(rgb), lab_to_rgb(lab), atol=1e-5)
    clipped = (rgb_to_lab(colorizer(rgb)) - lab)[:, 0].abs().max()
    colorizer.gamut = "map"
    assert clipped > 1 and (rgb_to_lab(colorizer(rgb)) - lab)[:, 0].abs().max() < 0.1


def test_edges_stop_colours_where_bilinear_ones_leak():
    """Two halves, dark and light, of two colours; the grid's points are 8 pixels apart."""
    lightness = torch.full((1, 1, 64, 64), 20.0)
    lightness[:, :, :, 30:] = 80
    ab = torch.where(lightness < 50, -40.0, 60.0)
    maps, guide = ab[:, :, ::8, ::8], lightness_at_points(lightness, 8, False)
    where = (slice(0, 64), 64, (1 / 8, 1 / 8), 1 / 16)
    plain, careful = upsample_rows(maps, *where), upsample_rows(maps, *where, (guide, lightness))
    assert (plain - ab).abs().max() > 20 and (careful - ab).abs().max() < 1e-2
    strips = [upsample_rows(maps, slice(a, a + 16), *where[1:], (guide, lightness[:, :, a : a + 16])) for a in (0, 16)]
    assert torch.allclose(torch.cat(strips, 2), careful[:, :, :32])


def test_without_edges_both_ways_agree(photos):
    maps = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    flat = (torch.full((2, 1, 7, 9), 50.0), torch.full((2, 1, 40, 55), 50.0))
    where = (slice(0, 40), 55, (7 / 40, 9 / 55))
    assert torch.allclose(upsample_rows(maps, *where), upsample_rows(maps, *where, lightness=flat), atol=1e-5)
    expected = torch.nn.functional.interpolate(maps, (40, 55), mode="bilinear")
    assert torch.allclose(upsample_rows(maps, *where), expected, atol=1e-5)


def test_lightness_of_the_points_is_of_pixels_or_of_blocks():
    lightness = torch.rand(1, 1, 10, 10)
    assert torch.equal(lightness_at_points(lightness, 4, False), lightness[:, :, ::4, ::4])
    blocks = lightness_at_points(lightness, 4, True)
    assert blocks[0, 0, 0, 1] == pytest.approx(lightness[0, 0, :4, 4:8].mean().item(), abs=1e-6)
    assert blocks[0, 0, 2, 2] == pytest.approx(lightness[0, 0, 8:, 8:].mean().item(), abs=1e-6)


def test_a_net_that_sees_more_than_lightness_says_so():
    net, task = create("split-brain", SplitBrainConfig(), NetSpec("alexnet", 3, fc=0))
    with pytest.raises(UserError, match="the input of this net is lab, not lightness"):
        Colorizer(net, task).predict_ab(torch.zeros(1, 1, 32, 32))


def test_files_pictures_arrays_and_uint8_batches_get_the_same_colours(colorizer, photos, tmp_path):
    pictures = np.stack([photo[:64, :96] for photo in photos[:3]])
    expected = np.stack([colorizer(picture) for picture in pictures])
    batch = torch.from_numpy(pictures)
    Image.fromarray(pictures[0]).save(tmp_path / "photo.png")
    outputs = [colorizer(name) for name in (str(tmp_path / "photo.png"), tmp_path / "photo.png")]
    assert all(isinstance(image, Image.Image) and np.array_equal(np.asarray(image), expected[0]) for image in outputs)
    assert np.array_equal(np.asarray(colorizer(Image.fromarray(pictures[0]))), expected[0])
    batches = [colorizer(pictures), colorizer(batch), colorizer(batch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)]
    for coloured in batches:
        assert np.asarray(coloured).dtype == np.uint8 and np.array_equal(np.asarray(coloured), expected)
    last = colorizer(batch.float() / 255)  # channels last, as they came
    assert last.shape == batch.shape
    assert torch.allclose(last.permute(0, 3, 1, 2), colorizer((batch.float() / 255).permute(0, 3, 1, 2)), atol=1e-5)
    assert colorizer(pictures[0, :, :, 0]).shape == (64, 96, 3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "a Pillow image, a file name, an array or a tensor, got None"),
        ([1, 2], "got list"),
        (Image.Image, "the class Image"),
        (Image.new("RGB", (0, 5)), "at least one pixel, got 0 × 5"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
        (np.zeros((5, 0), np.uint8), "at least one pixel"),
        (torch.zeros(1, 3, 0, 5), "at least one pixel"),
        (torch.zeros(1, 5, 0, 3, dtype=torch.uint8), "at least one pixel"),
        (np.zeros((8, 8, 3)), r"must be uint8 .* got \(8, 8, 3\) float64"),
        (np.zeros((8, 8, 4), np.uint8), r"got \(8, 8, 4\)"),
        (torch.zeros(3, 8, 8), "add a dimension"),
        (torch.zeros(1, 4, 8, 8), r"\(N, 3, H, W\), got \(1, 4, 8, 8\)"),
        (torch.full((1, 3, 8, 8), 200.0), "divide by 255"),
        (torch.full((1, 3, 8, 8), -2.0), "are not normalised"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8 or float"),
        ("nowhere.png", "could not read the picture 'nowhere.png': No such file"),
        ("nul\0.png", "could not read the picture"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_invalid_images_are_reported_in_one_sentence(colorizer, image, words):
    with pytest.raises(UserError, match=words):
        colorizer(image)


def test_unreadable_picture_files_are_named(colorizer, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    for path in (tmp_path / "text.jpg", tmp_path):
        with pytest.raises(UserError, match=f"could not read the picture '{path}'"):
            colorizer(path)
    with pytest.raises(UserError, match=r"lightness must be a tensor \(N, 1, H, W\)"):
        colorizer.predict_ab(torch.zeros(1, 3, 8, 8))
