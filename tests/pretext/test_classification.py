import pytest
import torch

from crosschannel import UserError
from crosschannel.color import ABQuantizer, load_prior, rebalancing_weights
from crosschannel.config.load import check_config
from crosschannel.pretext.classification import Classification, sparse_cross_entropy
from crosschannel.pretext.colorization import Colorization
from crosschannel.pretext.config import ColorizationConfig

PRIOR = load_prior().smoothed


def dense_target(ab):
    indices, weights = ABQuantizer().encode(ab)
    n, _, h, w = ab.shape
    return torch.zeros(n, 313, h, w).scatter_(1, indices, weights), indices, weights


@pytest.fixture
def logits():
    return torch.randn(2, 313, 6, 5, generator=torch.Generator().manual_seed(0)).mul(4).requires_grad_()


AB = torch.rand(2, 2, 6, 5, generator=torch.Generator().manual_seed(1)) * 160 - 80


def test_sparse_cross_entropy_and_its_gradient_equal_the_dense_ones(logits):
    target, indices, weights = dense_target(AB)
    upstream = torch.rand(2, 6, 5)
    ours = sparse_cross_entropy(logits, indices, weights)
    (gradient,) = torch.autograd.grad(ours, logits, upstream)
    theirs = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    (expected,) = torch.autograd.grad(theirs, logits, upstream)
    assert torch.allclose(ours, theirs, atol=1e-5) and torch.allclose(gradient, expected, atol=1e-6)


def test_the_gradient_passes_gradcheck():
    logits = torch.randn(1, 313, 1, 2, dtype=torch.float64, requires_grad=True)
    _, indices, weights = dense_target(AB[:1, :, :1, :2])
    assert torch.autograd.gradcheck(
        lambda z: sparse_cross_entropy(z, indices, weights), logits, eps=1e-2, atol=1e-3, nondet_tol=0
    )


def test_every_pixel_is_weighted_by_its_likeliest_bin(logits):
    target, _, _ = dense_target(AB)
    v = rebalancing_weights(PRIOR, 0.5).float()[target.argmax(1)]
    expected = v * torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(Classification(PRIOR, lam=0.5)(logits, AB), expected, atol=1e-4)


def test_lambda_one_is_plain_classification(logits):
    target, _, _ = dense_target(AB)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(Classification(PRIOR, lam=1.0)(logits, AB), expected, atol=1e-4)


def test_grey_crops_count_forward_but_give_no_gradient(logits):
    ab = AB.clone()
    ab[0] = ab[0].clamp(-5, 5)  # nothing exceeds 5
    loss = Classification(PRIOR, grey_threshold=5)(logits, ab)
    assert torch.equal(loss, Classification(PRIOR)(logits, ab))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient[0] == 0).all() and (gradient[1] != 0).any()
    ab[0, 1, 3, 3] = -5.01  # one pixel is enough
    (gradient,) = torch.autograd.grad(Classification(PRIOR, grey_threshold=5)(logits, ab).sum(), logits)
    assert (gradient[0] != 0).any()


def test_half_precision_logits_give_half_precision_gradients():
    half = torch.randn(1, 313, 2, 2).bfloat16().requires_grad_()
    loss = Classification(PRIOR)(half, AB[:1, :, :2, :2])
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_the_best_constant_has_a_share_of_one_and_the_truth_of_zero():
    objective = Classification(PRIOR)
    target, _, _ = dense_target(AB)
    v = rebalancing_weights(PRIOR).float()[target.argmax(1)]
    constant = (v[:, None] * target).sum((0, 2, 3))
    constant = (constant / constant.sum()).clamp(min=1e-30).log()[None, :, None, None].expand(2, 313, 6, 5)
    figures = objective.metrics(objective.score(constant, AB))
    assert figures["kl_share"] == pytest.approx(1, abs=1e-5)
    truth = objective.metrics(objective.score(target.clamp(min=1e-30).log(), AB))
    assert truth["kl"] == pytest.approx(0, abs=1e-5)
    for _ in range(20):  # no other constant is better
        other = torch.randn(313).mul(0.2)[None, :, None, None] + constant
        assert objective.metrics(objective.score(other, AB))["kl"] >= figures["kl"] - 1e-6


def test_scores_add_up_over_batches(logits):
    objective = Classification(PRIOR)
    whole = objective.score(logits, AB)
    parts = objective.score(logits[:1], AB[:1]) + objective.score(logits[1:], AB[1:])
    assert torch.allclose(whole, parts)


def test_a_dense_target_never_exists():
    """Extra peak memory of loss and gradient stays below three copies of the logits (one is the gradient)."""
    objective = Classification(PRIOR)
    ab = torch.rand(8, 2, 44, 44) * 100 - 50
    logits = torch.randn(8, 313, 44, 44, requires_grad=True)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        objective(logits, ab).sum().backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert logits.nbytes <= peak < 3.2 * logits.nbytes


def test_l2_is_half_the_squared_distance_and_decodes_to_ab():
    objective = Colorization(ColorizationConfig(kind="l2"), 4).objective
    outputs = torch.randn(2, 2, 6, 5) * 0.3
    predicted = objective.ab(outputs)
    assert torch.allclose(objective(outputs, AB), ((AB - predicted) ** 2).sum(1) / 2, rtol=1e-5)
    figures = objective.metrics(objective.score(outputs, AB))
    mean = AB.double().mean((0, 2, 3), keepdim=True)
    assert figures["loss"] == pytest.approx(objective(outputs, AB).mean().item(), rel=1e-5)
    assert figures["loss_constant"] == pytest.approx(((AB - mean) ** 2).sum(1).mean().item() / 2, rel=1e-6)


@pytest.mark.parametrize(
    "bad", [{"lam": 1.5}, {"lam": -1}, {"neighbours": 0}, {"neighbours": 999}, {"sigma": 0}, {"grey_threshold": -1}]
)
def test_keys_out_of_range_are_named(bad):
    with pytest.raises(UserError, match=f"{next(iter(bad))} must be"):
        check_config(ColorizationConfig(**bad))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "a slice", "a slice of channels_last", "expanded"])
def test_any_layout_gives_the_loss_and_gradient_of_the_dense_formula(layout):
    generator = torch.Generator().manual_seed(5)
    whole = torch.randn(6, 313, 9, 11, generator=generator)
    whole = whole.to(memory_format=torch.channels_last) if "channels_last" in layout else whole
    logits = whole[:, :, :7, 1:9] if "slice" in layout else whole
    logits = logits[:1].expand(6, -1, -1, -1) if layout == "expanded" else logits
    logits = logits.detach().requires_grad_()
    ab = torch.rand(6, 2, *logits.shape[2:], generator=generator) * 160 - 80
    indices, weights = ABQuantizer().encode(ab)
    scale = torch.rand(6, *logits.shape[2:], generator=generator)
    loss = sparse_cross_entropy(logits, indices, weights)
    (loss * scale).sum().backward()
    other = logits.detach().double().requires_grad_()
    dense = torch.zeros_like(other).scatter_(1, indices, weights.double())
    expected = -(dense * other.log_softmax(1)).sum(1)
    (expected * scale).sum().backward()
    assert (loss - expected).abs().max() < 1e-4
    assert (logits.grad - other.grad).abs().max() < 1e-6
