"""The figures of a call do not depend on global state, and the call leaves this state unchanged."""

import contextlib
import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch import nn

import transfer
from crosschannel import UserError, wrap

SIDE = 24


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def many_labels(count: int) -> np.ndarray:
    """(n, 4) labels of 1 and 0; each class has both."""
    return (np.arange(count)[:, None] % 4 != np.arange(4)).astype(int)


ONE_LABEL = tuple((images(n, n), np.arange(n) % 3) for n in (18, 9))
MANY_LABELS = tuple((images(n, n), many_labels(n)) for n in (16, 8))
LOOP = {"batch": 8, "steps": 3, "workers": 0, "tensorboard": False}


class Net(nn.Module):
    """A typical user's net: dropout, BatchNorm, and a forward hook."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Dropout(0.5))
        self.calls = 0
        self.register_forward_hook(type(self)._count)

    def _count(self, *_):
        self.calls += 1

    def forward(self, x):
        return self.two(self.one(x))


def net() -> Net:
    with torch.random.fork_rng([]), torch.inference_mode(False):
        torch.manual_seed(0)
        return Net().float().cpu()


def knn(module: nn.Module) -> transfer.Result:
    return transfer.knn(wrap(module, size=SIDE), ONE_LABEL, "one,two", k=[1, 3], workers=0)


def linear_probe(module: nn.Module) -> transfer.Result:
    return transfer.linear_probe(wrap(module, size=SIDE), ONE_LABEL, "two", "quickstart", **LOOP)


def classify(module: nn.Module) -> transfer.Result:
    keys = {"size": SIDE, "test_crops": 1, "calibrate": False}
    return transfer.classify(wrap(module, size=SIDE), MANY_LABELS, "all", **LOOP, **keys)


@contextlib.contextmanager
def changed(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def seeded():
    random.seed(7), np.random.seed(7), torch.manual_seed(7)  # noqa: NPY002
    return contextlib.nullcontext()


def deterministic():
    return changed(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


def start_method():
    get, put = multiprocessing.get_start_method, multiprocessing.set_start_method
    return changed(lambda: get(allow_none=True), lambda name: put(name, force=True), "spawn")


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad off": lambda: changed(torch.is_grad_enabled, torch.set_grad_enabled, False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "float64": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "another device in a block": lambda: torch.device("meta"),
    "another default device": lambda: changed(lambda: None, torch.set_default_device, "meta"),
    "deterministic": deterministic,
    "anomaly detection": torch.autograd.detect_anomaly,
    "cuDNN's flags": lambda: torch.backends.cudnn.flags(False, benchmark=True, deterministic=True, allow_tf32=False),
    "coarse products": lambda: changed(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "other seeds": seeded,
    "NumPy's warnings as errors": lambda: np.errstate(all="raise"),
    "spawned processes": start_method,
}


def global_state() -> list:
    generator = np.random.get_state()  # noqa: NPY002
    return [
        random.getstate(),
        [generator[0], generator[1].tolist(), *generator[2:]],
        torch.get_rng_state().tolist(),
        (torch.get_default_dtype(), torch.get_default_device().type, torch.get_num_threads()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
        (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        (np.geterr(), multiprocessing.get_start_method(allow_none=True)),
    ]


def figures(result: transfer.Result) -> list:
    return [result.metrics, {name: np.asarray(row).tolist() for name, row in result.rows.items()}]


@pytest.fixture(scope="module")
def undisturbed():
    return {call: figures(call(net())) for call in (knn, linear_probe, classify)}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("call", [knn, linear_probe, classify], ids=lambda call: call.__name__)
@pytest.mark.parametrize("state", STATES)
def test_figures_and_global_state_are_unchanged(undisturbed, state, call):
    module = net().train()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with STATES[state]():
        before = global_state()
        result = call(module)
        assert global_state() == before
    assert figures(result) == undisturbed[call]
    assert all(part.training for part in module.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("call", [knn, linear_probe, classify], ids=lambda call: call.__name__)
def test_weights_created_in_inference_mode_are_accepted(undisturbed, call):
    with torch.inference_mode():
        module = Net()
    assert module.one[0].weight.is_inference()
    with torch.inference_mode():
        module.load_state_dict(net().state_dict())
    assert figures(call(module)) == undisturbed[call]
    assert module.one[0].weight.is_inference()


@pytest.mark.parametrize("call", [knn, classify], ids=lambda call: call.__name__)
@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
def test_wrappers_are_removed(undisturbed, wrapper, call):
    result = call(wrapper(net()))
    assert figures(result) == undisturbed[call] and result.backbone == "Net"


def test_a_call_in_the_middle_of_a_training_step_changes_nothing(undisturbed):
    """Covers mixed precision, a scaler, existing gradients, and a graph before its backward pass."""

    def train(measured: bool) -> dict:
        torch.manual_seed(1)
        module, scaler = net().train(), torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        for step in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = module(torch.randn(4, 3, SIDE, SIDE)).square().mean()
                if measured and step == 1:
                    assert knn(module).metrics.keys() == undisturbed[knn][0].keys()
                loss = loss + module(torch.randn(4, 3, SIDE, SIDE)).abs().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return module.state_dict()

    plain, measured = train(False), train(True)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


def test_deterministic_training_ends_with_the_call():
    with deterministic():
        torch.use_deterministic_algorithms(False)
        keys = {**LOOP, "deterministic": True}
        transfer.linear_probe(wrap(net(), size=SIDE), ONE_LABEL, "two", "quickstart", **keys)
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_net_that_cannot_be_copied_is_refused():
    with torch.inference_mode():
        module = Net()
    module.journal = (line for line in "no generator can be copied")
    with pytest.raises(
        UserError, match=r"could not copy the backbone, whose weights were created in torch\.inference_mode\(\)"
    ):
        knn(module)
