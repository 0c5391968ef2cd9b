import numpy as np
import pytest
import torch

from crosschannel.color import ABQuantizer, annealed_mean

BINS = ABQuantizer().bins.double().numpy()


def brute_force(points: np.ndarray, k: int, sigma: float = 5.0):
    """k nearest of all 313 bins in float64; the lower bin where two are equally far."""
    squared = ((points[:, None] - BINS) ** 2).sum(2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    weights = np.exp(-np.take_along_axis(squared, order, 1) / (2 * sigma**2) + squared.min(1, keepdims=True) / 50)
    return order, weights / weights.sum(1, keepdims=True)


def encode(points: np.ndarray, **options):
    ab = torch.from_numpy(points.astype(np.float32)).T.reshape(1, 2, -1, 1)
    indices, weights = ABQuantizer(**options).encode(ab)
    return indices[0, :, :, 0].T.numpy(), weights[0, :, :, 0].T.numpy()


def test_the_bins_are_the_published_313_in_their_order():
    assert BINS.shape == (313, 2)
    assert np.array_equal(BINS, BINS[np.lexsort((BINS[:, 1], BINS[:, 0]))])
    assert len(np.unique(BINS, axis=0)) == 313 and (BINS % 10 == 0).all()
    by_row = {a: (BINS[BINS[:, 0] == a, 1].min(), BINS[BINS[:, 0] == a, 1].max()) for a in np.unique(BINS[:, 0])}
    assert by_row[-90] == (50, 90) and by_row[0] == (-70, 100) and by_row[100] == (-90, 0)
    assert BINS[:, 0].min() == -90 and BINS[:, 0].max() == 100 and BINS[:, 1].min() == -110


def grid(low, high, step):
    axis = np.arange(low, high, step)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


POINTS = {
    "random": np.random.default_rng(0).uniform(-110, 110, (40_000, 2)),
    "bin centres and midpoints, where bins tie": grid(-127.5, 128, 2.5),
    "lattice borders": grid(-128, 128, 2.0),
    "just inside lattice borders": grid(-128, 128, 4.0) - 1e-4,
    "near grey": np.random.default_rng(1).normal(0, 1e-3, (2000, 2)),
    "out of gamut": np.random.default_rng(2).uniform(-1000, 1000, (3000, 2)),
    "far out": np.array([[1e4, -1e4], [128, 0], [-128, 128], [127.999, -300], [5000, 5000]]),
}


@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS.keys())
@pytest.mark.parametrize("k", [1, 5, 10])
def test_soft_encoding_equals_brute_force(points, k):
    points = points.astype(np.float32).astype(np.float64)
    indices, weights = encode(points, neighbours=k)
    expected_indices, expected_weights = brute_force(points, k)
    assert np.array_equal(indices, expected_indices)
    assert np.abs(weights - expected_weights).max() < 1e-5


def test_weights_sum_to_one_and_shapes_are_k_first():
    ab = torch.randn(3, 2, 5, 7) * 40
    indices, weights = ABQuantizer().encode(ab)
    assert indices.shape == weights.shape == (3, 5, 5, 7)
    assert indices.dtype == torch.int64 and weights.dtype == torch.float32
    assert torch.allclose(weights.sum(1), torch.ones(3, 5, 7))


def test_temperature_one_is_the_mean_and_low_temperature_the_mode():
    logits = torch.randn(2, 313, 3, 3, generator=torch.Generator().manual_seed(0)) * 3
    bins = torch.from_numpy(BINS).float()
    mean = torch.einsum("nqhw,qc->nchw", logits.softmax(1), bins)
    assert torch.allclose(annealed_mean(logits, bins, 1.0), mean, atol=1e-4)
    mode = bins[logits.argmax(1)].permute(0, 3, 1, 2)
    for temperature in (1e-4, 1e-30):
        assert torch.allclose(annealed_mean(logits, bins, temperature), mode, atol=1e-3)


def test_annealing_is_equation_5():
    z = np.random.default_rng(3).dirichlet(np.ones(313))
    power = np.exp(np.log(z) / 0.38)
    expected = (power / power.sum()) @ BINS
    logits = torch.from_numpy(np.log(z)).reshape(1, 313, 1, 1) + 7  # logits are free up to a constant
    assert np.allclose(ABQuantizer().decode(logits, 0.38).flatten().numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="above 0"):
        ABQuantizer().decode(torch.zeros(1, 313, 1, 1), temperature)


def test_a_target_decodes_to_its_colour():
    """The mean of a soft-encoded colour stays close to it: the bins are 10 apart, the spread is symmetric."""
    ab = torch.rand(1, 2, 20, 20) * 60 - 30
    quantizer = ABQuantizer()
    indices, weights = quantizer.encode(ab)
    mean = (quantizer.bins[indices] * weights[..., None]).sum(1).permute(0, 3, 1, 2)
    assert (mean - ab).abs().max() < 4
