"""Scores of colourings against loops and other people's code."""

import numpy as np
import pytest
import torch

from crosschannel.color import ABQuantizer, load_prior, rebalancing_weights, rgb_to_lab
from crosschannel.evaluation.judges import LPIPS, lpips_weights
from crosschannel.evaluation.metrics import method_prefixes, metrics
from crosschannel.evaluation.scores import auc_weights, colourfulness, error_levels


@pytest.fixture
def ab(photos):
    rgb = torch.from_numpy(np.stack([photo[:24, :20] for photo in photos[:4]])).permute(0, 3, 1, 2)
    return rgb_to_lab(rgb)[:, 1:]


def rows_of(predicted, truth):
    """Rows as an evaluation has them."""
    bins = ABQuantizer(1).encode(truth)[0][:, 0]
    levels = error_levels(predicted, truth, bins)
    return {
        "names": np.array([str(i) for i in range(len(truth))]),
        "pixels": levels.sum(2).numpy(),
        "net/auc": (levels.double() @ auc_weights()).numpy(),
        "net/mse": np.full(len(truth), 0.1),
    }, bins


def brute_force(predicted, truth, weights):
    """The share of weight within t, averaged over t = 0 … 150."""
    distances = (predicted - truth).norm(dim=1).flatten().double().numpy()
    weights = np.asarray(weights, np.float64).ravel()
    return np.mean([weights[distances <= t].sum() / weights.sum() for t in range(151)])


def test_auc_is_that_of_brute_force(ab):
    predicted = ab + 40 * torch.randn(ab.shape, generator=torch.Generator().manual_seed(0))
    predicted[0, :, :3] += 200  # beyond every threshold
    rows, bins = rows_of(predicted, ab)
    found = metrics(rows, np.ones((1, 4)))
    assert found["net/auc_raw"][0] == pytest.approx(brute_force(predicted, ab, np.ones(bins.numel())), abs=1e-9)
    counts = np.bincount(bins.flatten(), minlength=313)
    expected = brute_force(predicted, ab, 1 / counts[bins.flatten()])
    assert found["net/auc_rebalanced"][0] == pytest.approx(expected, abs=1e-9)


def test_auc_under_a_prior_weighs_pixels_by_it(ab):
    predicted = ab * 0.3
    rows, bins = rows_of(predicted, ab)
    weights = rebalancing_weights(load_prior().smoothed, 0)
    rows["pixels_weighted"] = rows["pixels"] @ weights.numpy()
    rows["net/auc_weighted"] = rows["net/auc"] @ weights.numpy()
    found = metrics(rows, np.ones((1, 4)))["net/auc_rebalanced"][0]
    assert found == pytest.approx(brute_force(predicted, ab, weights[bins.flatten()]), abs=1e-9)


def test_a_perfect_prediction_is_100_in_both(ab):
    rows, _ = rows_of(ab, ab)
    found = metrics(rows, np.ones((1, 4)))
    assert found["net/auc_raw"][0] == found["net/auc_rebalanced"][0] == 1


def test_weights_are_images_drawn_more_than_once(ab):
    predicted = ab.flip(0)
    rows, _ = rows_of(predicted, ab)
    rows["net/top1"] = np.array([1.0, 0.0, -1.0, 1.0])  # the third has no class
    drawn = torch.tensor([0, 0, 3, 2])
    again, _ = rows_of(predicted[drawn], ab[drawn])
    again["net/top1"] = rows["net/top1"][drawn]
    weighted = metrics(rows, np.array([[2.0, 0.0, 1.0, 1.0]]))
    assert weighted["net/top1"][0] == 1
    expected = metrics(again, np.ones((1, 4)))
    for name in ("auc_raw", "psnr"):
        assert weighted[f"net/{name}"][0] == pytest.approx(expected[f"net/{name}"][0], abs=1e-12), name


def test_resamples_are_rebalanced_by_the_colours_of_all_images(ab):
    """By brute force, with weights of pixels that do not follow the resample: else it would be too good."""
    predicted = ab * 0.3
    rows, bins = rows_of(predicted, ab)
    counts = np.bincount(bins.flatten(), minlength=313)
    drawn = torch.tensor([0, 0, 3, 2])
    expected = brute_force(predicted[drawn], ab[drawn], 1 / counts[bins[drawn].flatten()])
    found = metrics(rows, np.array([[2.0, 0.0, 1.0, 1.0]]))
    assert found["net/auc_rebalanced"][0] == pytest.approx(expected, abs=1e-9)


def test_columns_of_one_method_need_no_name(ab):
    rows, _ = rows_of(ab, ab)
    alone = {name.removeprefix("net/"): column for name, column in rows.items()}
    assert method_prefixes(rows) == ["net/"] and method_prefixes(alone) == [""]
    assert metrics(alone, np.ones((1, 4)))["auc_raw"][0] == 1


def test_colourfulness_is_hasler_and_suesstrunks(photos):
    picture = photos[0][:50, :60].astype(np.float64)
    red, green, blue = picture[:, :, 0], picture[:, :, 1], picture[:, :, 2]
    one, two = red - green, 0.5 * (red + green) - blue
    expected = np.hypot(one.std(), two.std()) + 0.3 * np.hypot(one.mean(), two.mean())
    rgb = torch.from_numpy(picture / 255).permute(2, 0, 1)[None]
    assert colourfulness(rgb)[0].item() == pytest.approx(expected, rel=1e-5)
    assert colourfulness(rgb.mean(1, keepdim=True).expand(-1, 3, -1, -1))[0] < 1e-4


@pytest.mark.parametrize(
    ("name", "theirs"), [("alexnet", "alex"), pytest.param("vgg16", "vgg", marks=pytest.mark.slow)]
)
def test_lpips_is_torchmetrics(tmp_path, name, theirs):
    """With the same random weights of the net and the published weights of its channels."""
    import torchvision
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    ours = LPIPS(f"torchvision:{name},weights={tmp_path / 'net.pth'}", torch.device("cpu"))
    reference = _LPIPS(pretrained=True, net=theirs, pnet_rand=True)
    slices = [module for part in reference.net.children() for module in part.modules()]
    own = [m for m in slices if isinstance(m, torch.nn.Conv2d)]
    for target, module in zip(own, (m for m in model.features if isinstance(m, torch.nn.Conv2d)), strict=True):
        target.load_state_dict(module.state_dict())
    one, two = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).unbind(0)
    with torch.no_grad():
        expected = reference(one, two, normalize=True).flatten()
    assert torch.allclose(ours(one, two), expected, rtol=1e-3)
    assert torch.equal(ours(one, one), torch.zeros(2)) and len(lpips_weights(name)) == 5
