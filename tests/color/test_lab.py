import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from crosschannel.color import fit_gamut, lab_to_rgb, rgb_to_lab, rgb_to_lightness


def channels_last(image):
    return image[0].permute(1, 2, 0).numpy()


def test_lab_equals_scikit_image_on_random_colours():
    rgb = torch.rand(1, 3, 500, 400, generator=torch.Generator().manual_seed(0))
    ours, theirs = channels_last(rgb_to_lab(rgb)), rgb2lab(channels_last(rgb).astype(np.float64))
    assert np.abs(ours - theirs).max() < 1e-3


def test_lab_equals_scikit_image_around_the_ends_of_its_lines():
    dark = torch.linspace(0, 0.2, 30_000)
    rgb = torch.stack((dark, dark.roll(1000), dark.flip(0)))[None, :, :, None]
    assert np.abs(channels_last(rgb_to_lab(rgb)) - rgb2lab(channels_last(rgb).astype(np.float64))).max() < 1e-3


@pytest.mark.parametrize("kind", ["float", "uint8", "channels_last", "a slice"])
def test_lightness_alone_is_that_of_lab(kind):
    rgb = torch.randint(0, 256, (5, 3, 67, 45), dtype=torch.uint8)
    rgb = rgb.float() / 255 if kind == "float" else rgb
    rgb = rgb.to(memory_format=torch.channels_last) if kind == "channels_last" else rgb
    rgb = rgb[:, :, ::3, ::2] if kind == "a slice" else rgb
    assert (rgb_to_lightness(rgb) - rgb_to_lab(rgb)[:, :1]).abs().max() < 1e-4


def test_every_part_of_a_batch_is_converted_as_it_is_alone():
    rgb = torch.rand(9, 3, 200, 150)
    alone = torch.cat([rgb_to_lab(image[None]) for image in rgb])
    assert (rgb_to_lab(rgb) - alone).abs().max() < 1e-4
    assert rgb_to_lab(rgb[:0]).shape == (0, 3, 200, 150)


def test_gradients_are_finite_and_right_from_black_to_white():
    rgb = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    rgb[0, :, 0, 0], rgb[0, :, 0, 1] = 0, 1
    rgb.requires_grad_()
    rgb_to_lab(rgb).sum().backward()
    assert rgb.grad.isfinite().all()
    inner = (torch.rand(1, 3, 3, 3, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_lab, inner)


def test_rgb_equals_scikit_image_on_colours_in_gamut():
    rgb = np.random.default_rng(0).random((300, 300, 3))
    lab = torch.from_numpy(rgb2lab(rgb)).permute(2, 0, 1)[None]
    assert np.abs(channels_last(lab_to_rgb(lab.float())) - lab2rgb(rgb2lab(rgb))).max() < 1e-4


def test_every_8_bit_colour_survives_the_round_trip():
    axis = torch.arange(256, dtype=torch.uint8)
    green, blue = torch.meshgrid(axis, axis, indexing="ij")
    for red in range(256):
        rgb = torch.stack((torch.full_like(green, red), green, blue))[None]
        back = (lab_to_rgb(rgb_to_lab(rgb)) * 255).round().to(torch.uint8)
        assert torch.equal(back, rgb), f"red {red}"


def test_uint8_and_float_input_agree():
    rgb = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(rgb_to_lab(rgb), rgb_to_lab(rgb.float() / 255))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_input_is_kept(dtype):
    rgb = torch.rand(1, 3, 8, 8).to(dtype)
    lab = rgb_to_lab(rgb)
    assert lab.dtype == dtype and lab_to_rgb(lab).dtype == dtype
    assert (lab.float() - rgb_to_lab(rgb.float())).abs().max() < (1e-3 if dtype == torch.float64 else 0.5)


def test_autocast_does_not_lower_the_precision():
    rgb = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        lab = rgb_to_lab(rgb)
    assert torch.equal(lab, rgb_to_lab(rgb))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        rgb_to_lab(torch.zeros(shape))


def test_fit_gamut_keeps_lightness_and_hue_where_clipping_does_not():
    generator = torch.Generator().manual_seed(1)
    lab = torch.rand(1, 3, 80, 80, generator=generator) * torch.tensor([100.0, 200, 200])[:, None, None]
    lab[:, 1:] -= 100
    shown = rgb_to_lab(lab_to_rgb(fit_gamut(lab)))
    assert (shown[:, 0] - lab[:, 0]).abs().max() < 0.1
    cross = shown[:, 1] * lab[:, 2] - shown[:, 2] * lab[:, 1]
    sine = cross.abs() / (shown[:, 1:].norm(dim=1) * lab[:, 1:].norm(dim=1)).clamp(min=1)
    assert sine[shown[:, 1:].norm(dim=1) > 5].max() < 0.01
    assert (rgb_to_lab(lab_to_rgb(lab))[:, 0] - lab[:, 0]).abs().max() > 5  # what it is for


def test_fit_gamut_leaves_real_colours_alone():
    lab = rgb_to_lab(torch.rand(1, 3, 50, 50))
    assert torch.equal(fit_gamut(lab), lab)
