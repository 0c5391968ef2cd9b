import pytest
import torch
from torch import nn

from crosschannel.config.training import OptimConfig, ScheduleConfig
from crosschannel.training.optim import build_optimizer, rate, set_rate

NET = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


def test_the_papers_multistep_rates():
    schedule = ScheduleConfig("multistep", milestones=[200_000, 375_000], rates=[1e-5, 3e-6])
    at = {0: 3e-5, 199_999: 3e-5, 200_000: 1e-5, 374_999: 1e-5, 375_000: 3e-6, 449_999: 3e-6}
    assert {step: rate(step, 450_000, 3e-5, schedule) for step in at} == at


def test_cosine_is_torchs_after_the_warm_up():
    optimizer = torch.optim.SGD(NET.parameters(), 0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90)
    for step in range(10, 100):
        expected = optimizer.param_groups[0]["lr"]
        assert rate(step, 100, 0.1, ScheduleConfig("cosine", warmup=0.1)) == pytest.approx(expected, abs=1e-9)
        optimizer.step(), reference.step()


@pytest.mark.parametrize("kind", ["cosine", "one-cycle"])
def test_warm_up_rises_to_the_peak_and_then_falls_to_nothing(kind):
    rates = [rate(step, 1000, 0.5, ScheduleConfig(kind, warmup=0.3)) for step in range(1000)]
    assert rates[:300] == sorted(rates[:300]) and rates[300:] == sorted(rates[300:], reverse=True)
    assert rates[300] == pytest.approx(0.5) and rates[0] < 0.03 and rates[-1] < 1e-5


def test_biases_have_their_own_rate_and_decay():
    config = OptimConfig("adam", lr=1e-3, weight_decay=1e-2, bias_lr=2.0)
    optimizer = build_optimizer(NET, config)
    set_rate(optimizer, 5e-4)
    weights, rest = optimizer.param_groups
    assert {p.ndim for p in weights["params"]} == {2, 4} and {p.ndim for p in rest["params"]} == {1}
    assert (weights["lr"], weights["weight_decay"]) == (5e-4, 1e-2)
    assert (rest["lr"], rest["weight_decay"]) == (1e-3, 0)
    assert build_optimizer(NET, OptimConfig("adam", bias_decay=True)).param_groups[1]["weight_decay"] == 0.01


def test_parameters_can_have_rates_of_their_own():
    factors = {"2.weight": 10.0, "2.bias": 10.0}
    optimizer = build_optimizer(NET, OptimConfig("sgd", lr=1e-3, bias_lr=2.0), factors)
    set_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in NET.named_parameters()}
    assert found == pytest.approx(
        {"0.weight": 1e-3, "0.bias": 2e-3, "1.weight": 2e-3, "1.bias": 2e-3, "2.weight": 1e-2, "2.bias": 2e-2}
    )


def test_inverse_square_root_decay_is_deepclusters():
    schedule = ScheduleConfig("inverse-sqrt", decay=0.01 * 1e-4)
    for step in (0, 1, 450_000):
        assert rate(step, 450_450, 0.01, schedule) == pytest.approx(0.01 / (1 + 0.01 * 1e-4 * step) ** 0.5)


def test_adam_adds_the_decay_to_the_gradient_as_caffe_does():
    parameter = nn.Parameter(torch.ones(1, 1))
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = parameter
    optimizer = build_optimizer(layer, OptimConfig("adam", lr=0.1, weight_decay=0.5))
    set_rate(optimizer, 0.1)
    parameter.grad = torch.full((1, 1), -0.5)  # decay and gradient cancel
    optimizer.step()
    assert parameter.item() == 1


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (ScheduleConfig("step", every=7, factor=0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5)),
        (ScheduleConfig("poly", power=0.9), lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 40, 0.9)),
    ],
    ids=["step", "poly"],
)
def test_step_and_poly_are_torchs(schedule, reference):
    optimizer = torch.optim.SGD(NET.parameters(), 0.3)
    theirs = reference(optimizer)
    for step in range(40):
        assert rate(step, 40, 0.3, schedule) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step(), theirs.step()
