"""The demo's server: files of the page, what the net says of lightness, and what it refuses."""

import json
import re
import struct

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from crosschannel.cli import main
from crosschannel.color import ABQuantizer
from crosschannel.demo.config import DemoConfig
from crosschannel.demo.files import PAGE
from crosschannel.demo.server import body_limit, create
from crosschannel.hub import load_colorizer
from crosschannel.web import POLICY, GuardedApp


@pytest.fixture(scope="module")
def demo(trained):
    colorizer = load_colorizer(str(trained))
    app = GuardedApp(create(colorizer, DemoConfig(title="Try <it>"), POLICY), body_limit(colorizer.size))
    return TestClient(app, base_url="http://demo"), colorizer


def body(lightness: np.ndarray) -> bytes:
    height, width = lightness.shape
    return struct.pack("<2I", width, height) + lightness.astype("<f4").tobytes()


def parts_of(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    bins, rows, columns = struct.unpack("<3I", data[:12])
    points = rows * columns
    ab = np.frombuffer(data, "<f4", 2 * points, 12).reshape(2, rows, columns)
    return np.frombuffer(data, "<f2", offset=12 + 8 * points).reshape(bins, rows, columns), ab


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(demo):
    browser, _ = demo
    page = browser.get("/")
    assert "Try &lt;it&gt;" in page.text and "{{" not in page.text
    for name in (*PAGE, "net.js", "net.json"):
        answer = browser.get(f"/{name}")
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://", answer.text), name
    assert browser.get("/server.py").status_code == browser.get("/..%2fserver.py").status_code == 404


def test_what_the_net_says_is_what_the_colorizer_says(demo):
    browser, colorizer = demo
    net = json.loads(browser.get("/net.json").text)
    assert (net["size"], net["stride"], net["temperature"]) == (colorizer.size, colorizer.task.stride, 0.38)
    assert np.allclose(net["bins"], ABQuantizer().bins.numpy())
    lightness = np.random.default_rng(0).uniform(0, 100, (colorizer.size, colorizer.size + 8)).astype(np.float32)
    logarithms, ab = parts_of(browser.post("/predict", content=body(lightness)).content)
    planes = torch.from_numpy(lightness)[None, None]
    assert np.abs(ab - colorizer.predict_ab(planes)[0].numpy()).max() < 1e-3
    mean = np.einsum("qhw,qc->chw", np.exp(logarithms.astype(np.float64)), net["bins"])
    assert np.abs(mean - colorizer.predict_ab(planes, 1.0)[0].numpy()).max() < 0.2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        struct.pack("<2I", 64, 64),
        struct.pack("<2I", 64, 64) + b"a" * 100,
        struct.pack("<2I", 1, 1) + b"abcd",
        struct.pack("<2I", 1 << 31, 1 << 31),
        body(np.full((48, 48), np.nan)),
    ],
)
def test_other_things_are_refused_in_a_sentence(data, demo):
    answer = demo[0].post("/predict", content=data)
    assert answer.status_code == 400 and len(answer.text) < 100


def test_a_queue_has_an_end(demo, monkeypatch):
    lightness = body(np.full((demo[1].size, demo[1].size), 50))
    assert demo[0].post("/predict", content=lightness).status_code == 200
    monkeypatch.setattr("crosschannel.demo.server._MAX_WAITING", 0)
    answer = demo[0].post("/predict", content=lightness)
    assert answer.status_code == 503 and "try again" in answer.text


def test_a_net_that_fails_says_so(trained):
    colorizer = load_colorizer(str(trained))
    browser = TestClient(create(colorizer, DemoConfig(), POLICY), base_url="http://demo")
    lightness = body(np.full((colorizer.size, colorizer.size), 50))
    with torch.no_grad():
        colorizer.net.head.out.bias[0] = torch.nan
    answer = browser.post("/predict", content=lightness)
    assert answer.status_code == 400 and "its weights are damaged" in answer.text
    colorizer.net.forward = lambda _: 1 / 0
    answer = browser.post("/predict", content=lightness)
    assert answer.status_code == 400 and answer.text.startswith("the model cannot process")


def test_too_much_is_not_taken(demo):
    assert demo[0].post("/predict", content=b"a" * (1 + body_limit(demo[1].size))).status_code == 413


def test_bad_input_is_one_sentence(capsys, tmp_path):
    assert main(["demo", "--model=nowhere"]) == 2
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--model=random:alexnet", f"--static={tmp_path}"]) == 2
    assert (tmp_path / "mine.txt").read_text() == "mine" and "Traceback" not in capsys.readouterr().err
