import numpy as np
import pytest
import torch

from crosschannel import UserError
from crosschannel.color import ABQuantizer, PriorEstimator, load_prior, rebalancing_weights, rgb_to_lab


def test_the_estimate_is_the_mean_soft_encoding_of_all_pixels(photos):
    estimator, dense, count = PriorEstimator(), np.zeros(313), 0
    bins = ABQuantizer().bins.double().numpy()
    for photo in (photos[0][:60, :60], photos[3][100:140, 50:120]):
        rgb = torch.from_numpy(photo).permute(2, 0, 1)[None]
        estimator.add(rgb)
        ab = rgb_to_lab(rgb)[0, 1:].reshape(2, -1).T.double().numpy()
        squared = ((ab[:, None] - bins) ** 2).sum(2)
        nearest = np.argsort(squared, axis=1, kind="stable")[:, :5]
        weights = np.exp(-np.take_along_axis(squared, nearest, 1) / 50)
        np.add.at(dense, nearest, weights / weights.sum(1, keepdims=True))
        count += len(ab)
    prior = estimator.prior(data="two photographs")
    assert np.allclose(prior.smoothed.numpy(), dense / count, atol=1e-7)
    assert prior.provenance["pixels"] == count and prior.provenance["data"] == "two photographs"


def test_weights_are_equation_4():
    p = torch.rand(313, dtype=torch.float64)
    p /= p.sum()
    weights = rebalancing_weights(p, 0.5)
    expected = 1 / (0.5 * p + 0.5 / 313)
    assert torch.allclose(weights, expected / (p * expected).sum())
    assert (p * weights).sum().item() == pytest.approx(1)


def test_the_release_spreads_lambda_over_seen_bins_only():
    p = torch.rand(313, dtype=torch.float64)
    p[::20] = 0  # 16 bins
    p /= p.sum()
    seen = p > 0
    expected = 1 / (0.5 * p[seen] + 0.5 / 297)
    weights = rebalancing_weights(p, 0.5, "seen")
    assert torch.allclose(weights[seen], expected / (p[seen] * expected).sum())
    assert (weights[~seen] == weights[seen].max()).all()


def test_lambda_one_weighs_every_bin_the_same():
    assert torch.allclose(rebalancing_weights(load_prior().smoothed, 1.0), torch.ones(313, dtype=torch.float64))


def test_at_lambda_zero_an_unseen_bin_weighs_as_much_as_the_rarest_seen_one():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])
    weights = rebalancing_weights(p, 0.0)
    assert weights.isfinite().all()
    assert weights[3] == weights[4] == weights[2] and (p * weights).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("lam", [-0.1, 1.1])
def test_lambda_outside_its_range_is_refused(lam):
    with pytest.raises(ValueError, match="lam"):
        rebalancing_weights(torch.ones(313), lam)


def test_the_packaged_prior_says_what_it_was_estimated_from():
    prior = load_prior()
    assert prior.provenance["images"] == 600 and prior.provenance["data"] == "imagenet-256"
    assert prior.smoothed.sum().item() == pytest.approx(1) and prior.empirical.sum().item() == pytest.approx(1)
    bins = ABQuantizer().bins
    assert bins[prior.smoothed.argmax()].abs().max() <= 10  # natural images are mostly grey


@pytest.mark.parametrize("name", ["imagenet-256", "imagenet-256-k10"])
def test_the_packaged_priors_are_refused_where_they_would_be_divided_by(name):
    prior = load_prior(name)
    assert prior.check_lam(0.5) is prior and prior.check_lam(1) is prior
    assert rebalancing_weights(prior.smoothed, 0.5).max() < 50  # bounded
    assert rebalancing_weights(prior.smoothed, 0.0).max() > 1e6
    with pytest.raises(UserError, match=f"packaged prior {name} is from 600 photographs, too few for a lam of 0"):
        prior.check_lam(0)


def test_a_prior_of_ones_own_is_taken_at_every_lambda(tmp_path):
    estimator = PriorEstimator()
    estimator.add(torch.rand(2, 3, 32, 32))
    estimator.prior().save(tmp_path / "mine.npz")
    assert load_prior(str(tmp_path / "mine.npz")).check_lam(0).provenance["images"] == 2


def test_a_prior_survives_saving(tmp_path):
    prior = load_prior()
    prior.save(tmp_path / "prior.npz")
    again = load_prior(str(tmp_path / "prior.npz"))
    assert torch.equal(again.smoothed, prior.smoothed) and again.provenance == prior.provenance


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_prior_is_named(tmp_path, content):
    path = tmp_path / "prior.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"prior\.npz is not a prior"):
        load_prior(str(path))
    with pytest.raises(UserError, match="no prior at"):
        load_prior("nowhere.npz")
