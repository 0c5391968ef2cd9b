"""Many participants of a study at once, over real HTTP, and a server that is killed in their midst.

    python benchmarks/study.py [--people 60] [--pairs 40] [--pause 0] [--browser]

Builds a study of the embedded photographs, starts `crosschannel study serve`, and lets people answer as fast as the
server lets them, each through a connection of their own; half-way it is killed with SIGKILL and started again. Prints
what requests took, and whether any answer was lost or doubled. With --pause they come within so many seconds and take
half to one and a half times as long for every pair: people who look take more than 2. With --browser one of them looks
at all pairs in Chromium, and how long pictures were there is printed.
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
from crosschannel.study.figures import SHOWN_MS, TOLERANCE_MS, timing_of

LOST = (ConnectionError, http.client.HTTPException, OSError)


class Person(threading.Thread):
    """Answers every pair, trying again where the server does not answer."""

    def __init__(self, port: int, code: str, took: dict[str, list[float]], pause: float):
        super().__init__()
        self.port, self.code, self.took, self.pause, self.cookie = port, code, took, pause, ""
        self.said: dict[str, str] = {}  # acknowledged answers by pair
        self.connection: http.client.HTTPConnection | None = None

    def ask(self, what: str, method: str, path: str, body: str = "", kind: str = "application/json"):
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                begun = time.perf_counter()
                headers = {"Content-Type": kind, "Cookie": self.cookie}
                self.connection.request(method, path, body or None, headers)
                answer = self.connection.getresponse()
                data = answer.read()
                self.took.setdefault(what, []).append(time.perf_counter() - begun)
                return answer, data
            except LOST:
                self.connection = None
                time.sleep(0.2)

    def run(self) -> None:
        time.sleep(random.uniform(0, self.pause))
        form = f"code={self.code}&agreed=yes&colour_vision=normal"
        answer, _ = self.ask("begin", "POST", "/begin", form, "application/x-www-form-urlencoded")
        assert answer.status == 303, answer.status
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        state = json.loads(self.ask("state", "GET", "/state")[1])
        while "trial" in state:
            for side in ("left", "right"):
                self.ask("picture", "GET", f"/picture/{state['trial']}/{side}")
            time.sleep(random.uniform(0.5, 1.5) * self.pause)
            side = random.choice(("left", "right"))
            body = {"trial": state["trial"], "side": side, "first_ms": 1000, "second_ms": 1000, "response_ms": 1}
            answer, data = self.ask("answer", "POST", "/answer", json.dumps({**body, "hidden": False}))
            assert answer.status == 200, data
            self.said[state["trial"]] = side
            state = json.loads(data)


def serve(folder: Path, port: int) -> subprocess.Popen:
    words = [sys.executable, "-m", "crosschannel.cli", "study", "serve", str(folder), f"--port={port}"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.05)


def look(port: int) -> None:
    """A whole session in Debian's Chromium, by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
        page.goto(f"http://127.0.0.1:{port}/?code=browser")
        page.get_by_label("Yes").check()
        page.get_by_label("I am 18 or older").check()
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector("#go:not([hidden])")
        while not page.url.endswith("/end"):
            if page.is_visible("#go"):
                page.click("#go")
            page.click("#choose-left")  # once it can be clicked
            page.wait_for_timeout(300)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--pause", type=float, default=0.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data, study = Path(scratch) / "data", Path(scratch) / "study"
        data.mkdir()
        images, generator = photographs(), np.random.default_rng(0)
        for number in range(asked.pairs + 20):
            with Image.open(io.BytesIO(images.read(number % len(images)))) as photo:
                left, top = (int(generator.integers(0, side - 200)) for side in photo.size)
                photo.convert("RGB").crop((left, top, left + 200, top + 200)).save(data / f"{number}.png")
        words = ["study", "build", f"--data={data}", "--methods", "grey", "random", f"--out={study}"]
        words += [f"--images={asked.pairs}", f"--pairs={asked.pairs}"]
        subprocess.run([sys.executable, "-m", "crosschannel.cli", *words], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server, took = serve(study, port), {}
        people = [Person(port, f"p{number}", took, asked.pause) for number in range(asked.people)]
        begun = time.monotonic()
        for person in people:
            person.start()
        whole = asked.people * (asked.pairs + 10)
        while sum(len(person.said) for person in people) < whole / 2:
            time.sleep(0.05)
        server.send_signal(signal.SIGKILL)
        server.wait()
        server = serve(study, port)
        for person in people:
            person.join()
        seconds = time.monotonic() - begun
        sessions, trials = read_answers(study)
        timing = None
        if asked.browser:
            look(port)
            seen, rows = read_answers(study)
            own = next(session["id"] for session in seen if session["participant"] == "browser")
            timing = timing_of([row for row in rows if row["session"] == own])
        server.kill()
    kept = {trial["token"]: trial["answer"] for trial in trials if trial["answer"]}
    said = {trial: side for person in people for trial, side in person.said.items()}
    assert all(kept[trial] == side for trial, side in said.items()), "an acknowledged answer was lost or changed"
    assert len(said) == whole and all(session["finished"] for session in sessions)
    methods = Counter(session["method"] for session in sessions)
    pace = f"{asked.pause:g} s a pair" if asked.pause else "as fast as they are let"
    table = Table(title=f"{asked.people} people at once, {pace}: {seconds:.0f} s, one kill -9")
    for head in ("request", "number", "median ms", "p95 ms", "most ms"):
        table.add_column(head, justify="left" if head == "request" else "right")
    for what, times in {**took, "any": list(chain(*took.values()))}.items():
        ms = 1000 * np.array(times)
        cells = (f"{np.median(ms):.1f}", f"{np.quantile(ms, 0.95):.1f}", f"{ms.max():.0f}")
        table.add_row(what, str(len(ms)), *cells)
    console = Console()
    console.print(table)
    console.print(f"{len(said)} answers, none lost or doubled; sessions by method {dict(methods)}")
    if timing is not None:
        console.print(
            f"{timing.pictures} pictures in Chromium: {100 * timing.within:.1f} % within {SHOWN_MS} ± {TOLERANCE_MS} "
            f"ms (median {timing.median:.1f}, {timing.least:.1f} to {timing.most:.1f})"
        )


if __name__ == "__main__":
    main()
