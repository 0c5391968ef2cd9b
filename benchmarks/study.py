"""Load test of a study: many participants at once over HTTP, and a server that is killed and restarted.

    python benchmarks/study.py [--people 60] [--pairs 40] [--pause 0] [--browser]

Builds a study of the embedded photographs and starts `crosschannel study serve`. Simulated participants answer as fast
as the server allows, each with its own connection. Half-way, the server is killed with SIGKILL and restarted. Prints
the latency of requests, and checks that no answer was lost or duplicated.

With --pause, the participants arrive within that many seconds and take 0.5 to 1.5 times as long per pair; people take
more than 2 s, since they look at two pictures. With --browser, one more participant judges all pairs in Chromium, and
the display times of the pictures are printed.
"""

import argparse
import http.client
import io
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from crosschannel.data.sample import photographs
from crosschannel.study.answers import read_answers
from crosschannel.study.metrics import DISPLAY_MS, TOLERANCE_MS, summarise_timing

CONNECTION_LOST = (ConnectionError, http.client.HTTPException, OSError)


class SimulatedParticipant(threading.Thread):
    """A participant who answers every pair and repeats requests while the server is down."""

    def __init__(self, port: int, code: str, latencies: dict[str, list[float]], pause: float):
        super().__init__()
        self.port, self.code, self.latencies, self.pause, self.cookie = port, code, latencies, pause, ""
        self.answers: dict[str, str] = {}  # acknowledged answers by pair
        self.connection: http.client.HTTPConnection | None = None

    def request(self, name: str, method: str, path: str, body: str = "", kind: str = "application/json"):
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                start = time.perf_counter()
                headers = {"Content-Type": kind, "Cookie": self.cookie}
                self.connection.request(method, path, body or None, headers)
                response = self.connection.getresponse()
                data = response.read()
                self.latencies.setdefault(name, []).append(time.perf_counter() - start)
                return response, data
            except CONNECTION_LOST:
                self.connection = None
                time.sleep(0.2)

    def run(self) -> None:
        time.sleep(random.uniform(0, self.pause))
        form = f"code={self.code}&agreed=yes&colour_vision=normal"
        response, _ = self.request("start", "POST", "/begin", form, "application/x-www-form-urlencoded")
        assert response.status == 303, response.status
        self.cookie = response.headers["set-cookie"].partition(";")[0]
        state = json.loads(self.request("session state", "GET", "/state")[1])
        while "trial" in state:
            for side in ("left", "right"):
                self.request("picture", "GET", f"/picture/{state['trial']}/{side}")
            time.sleep(random.uniform(0.5, 1.5) * self.pause)
            side = random.choice(("left", "right"))
            body = {"trial": state["trial"], "side": side, "first_ms": 1000, "second_ms": 1000, "response_ms": 1}
            response, data = self.request("answer", "POST", "/answer", json.dumps({**body, "hidden": False}))
            assert response.status == 200, data
            self.answers[state["trial"]] = side
            state = json.loads(data)


def serve(folder: Path, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "crosschannel.cli", "study", "serve", str(folder), f"--port={port}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.05)


def complete_session_in_browser(port: int) -> None:
    """Answer all pairs in Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
        page.goto(f"http://127.0.0.1:{port}/?code=browser")
        page.get_by_label("Yes").check()
        page.get_by_label("I am 18 or older").check()
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector("#next:not([hidden])")
        while not page.url.endswith("/end"):
            if page.is_visible("#next"):
                page.click("#next")
            page.click("#choose-left")  # waits until it is enabled
            page.wait_for_timeout(300)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data, study = Path(scratch) / "data", Path(scratch) / "study"
        data.mkdir()
        images, generator = photographs(), np.random.default_rng(0)
        for number in range(options.pairs + 20):
            with Image.open(io.BytesIO(images.read(number % len(images)))) as photo:
                left, top = (int(generator.integers(0, side - 200)) for side in photo.size)
                photo.convert("RGB").crop((left, top, left + 200, top + 200)).save(data / f"{number}.png")
        arguments = ["study", "build", f"--data={data}", "--methods", "grey", "random", f"--out={study}"]
        arguments += [f"--images={options.pairs}", f"--pairs={options.pairs}"]
        subprocess.run([sys.executable, "-m", "crosschannel.cli", *arguments], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server, latencies = serve(study, port), {}
        people = [SimulatedParticipant(port, f"p{i}", latencies, options.pause) for i in range(options.people)]
        start = time.monotonic()
        for person in people:
            person.start()
        total = options.people * (options.pairs + 10)
        while sum(len(person.answers) for person in people) < total / 2:
            time.sleep(0.05)
        server.send_signal(signal.SIGKILL)
        server.wait()
        server = serve(study, port)
        for person in people:
            person.join()
        seconds = time.monotonic() - start
        sessions, trials = read_answers(study)
        timing = None
        if options.browser:
            complete_session_in_browser(port)
            all_sessions, rows = read_answers(study)
            session_id = next(session["id"] for session in all_sessions if session["participant"] == "browser")
            timing = summarise_timing([row for row in rows if row["session"] == session_id])
        server.kill()
    stored = {trial["token"]: trial["answer"] for trial in trials if trial["answer"]}
    answers = {trial: side for person in people for trial, side in person.answers.items()}
    assert all(stored[trial] == side for trial, side in answers.items()), "an acknowledged answer was lost or changed"
    assert len(answers) == total and all(session["finished"] for session in sessions)
    methods = Counter(session["method"] for session in sessions)
    pace = f"{options.pause:g} s per pair" if options.pause else "as fast as possible"
    table = Table(title=f"{options.people} participants at once, {pace}: {seconds:.0f} s, one kill -9")
    for head in ("request", "count", "median, ms", "95th percentile", "maximum"):
        table.add_column(head, justify="left" if head == "request" else "right")
    for request, times in {**latencies, "all": list(chain(*latencies.values()))}.items():
        ms = 1000 * np.array(times)
        cells = (f"{np.median(ms):.1f}", f"{np.quantile(ms, 0.95):.1f}", f"{ms.max():.0f}")
        table.add_row(request, str(len(ms)), *cells)
    console = Console()
    console.print(table)
    console.print(f"{len(answers)} answers, none lost or duplicated; sessions per method: {dict(methods)}")
    if timing is not None:
        console.print(
            f"{timing.pictures} pictures in Chromium: {100 * timing.within:.1f} % within {DISPLAY_MS} ± {TOLERANCE_MS} "
            f"ms (median {timing.median:.1f}, {timing.shortest:.1f} to {timing.longest:.1f})"
        )


if __name__ == "__main__":
    main()
