"""Whole sessions in a real browser: practice, reload, keyboard alone, a phone; and a server that is killed.

Needs Debian's chromium.
"""

import re
import signal
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from browsers import free_port, served, until

from crosschannel.study.answers import DATABASE, read_answers
from crosschannel.study.metrics import summarise_timing

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def on_a_port(folder, port: int = 0):
    """The study's server."""
    port = port or free_port()
    return served("crosschannel.cli", "study", "serve", folder, f"--port={port}", port=port)


def begin(page, address: str, code: str) -> None:
    page.goto(f"{address}?code={code}")
    page.get_by_label("Yes").check()
    page.get_by_label("I am 18 or older").check()
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("#next:not([hidden])")


def judge(page, side: str) -> None:
    page.wait_for_selector(f"#choose-{side}:not([disabled])", timeout=15000)
    page.click(f"#choose-{side}")


def test_a_session_with_a_reload_in_the_middle(chromium, study):
    folder, _ = study
    with on_a_port(folder) as (address, _):
        page = chromium.new_page()
        begin(page, address, "p1")
        assert page.inner_text("#position") == "Practice, pair 1 of 2"
        page.click("#next")
        until(page, "document.querySelectorAll('canvas.visible').length == 1")
        assert page.is_disabled("#choose-left")
        judge(page, "left")
        page.wait_for_selector("#message.right, #message.wrong")
        page.click("#next")
        judge(page, "right")
        until(page, "document.getElementById('next').textContent.includes('Practice is over')")
        page.click("#next")
        judge(page, "left")
        until(page, "document.getElementById('position').textContent == 'Pair 2 of 6'")
        page.reload()
        page.wait_for_selector("#next:not([hidden])")
        assert page.inner_text("#position") == "Pair 2 of 6" and page.inner_text("#next") == "Continue"
        page.click("#next")
        for _ in range(5):
            judge(page, "right")
            until(page, "document.getElementById('choose-right')?.disabled !== false")
        page.wait_for_url("**/end")
        code = page.inner_text("output")
        page.goto(address)
        assert page.url.endswith("/end") and page.inner_text("output") == code
    sessions, trials = read_answers(folder)
    assert sessions[0]["code"] == code and [t["answer"] for t in trials] == ["left", "right", "left", *["right"] * 5]
    assert summarise_timing(trials).median == pytest.approx(1000, abs=34)


def test_pictures_come_left_first_with_the_pauses_of_the_study(chromium, study):
    """Timed by the browser's clock from changes of the page."""
    folder, manifest = study
    with on_a_port(folder) as (address, _):
        page = chromium.new_page()
        begin(page, address, "p1")
        page.evaluate(
            "() => { window.events = []; const now = () => performance.now();"
            " document.getElementById('next').addEventListener('click', () => window.events.push(['next', now()]));"
            " for (const id of ['message', 'left', 'right']) new MutationObserver(() => window.events.push("
            "[id, now(), document.getElementById(id).className, document.getElementById(id).textContent]))"
            ".observe(document.getElementById(id), { attributeFilter: ['class'], childList: true }); }"
        )
        page.click("#next")
        judge(page, "left")
        events = page.evaluate("window.events")
        page.close()
    times = {}
    for name, now, *more in events:
        if name == "message" and more[1] == "Look …":
            times["ready"] = now
        if name in ("left", "right"):
            times.setdefault(name, []).append(now)
    (shown, hidden), (second, ended) = times["left"], times["right"]
    measured = [shown - times["ready"], hidden - shown, second - hidden, ended - second]
    assert measured == pytest.approx([manifest.before_ms, 1000, manifest.between_ms, 1000], abs=60), measured


def test_a_participant_who_meets_a_locked_database_begins_once_it_is_free(chromium, study):
    folder, _ = study
    with on_a_port(folder) as (address, _):
        page = chromium.new_page()
        page.goto(f"{address}?code=p1")
        page.get_by_label("Yes").check()
        page.get_by_label("I am 18 or older").check()
        with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            page.get_by_role("button", name="Begin").click()
            page.wait_for_selector("text=cannot save answers", timeout=60000)
            db.execute("ROLLBACK")
        page.wait_for_selector("#next:not([hidden])", timeout=60000)
        page.close()
    assert [session["participant"] for session in read_answers(folder)[0]] == ["p1"]


def test_a_phone_and_the_keyboard_alone(chromium, study):
    folder, _ = study
    with on_a_port(folder) as (address, _):
        context = chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
        page = context.new_page()
        page.goto(f"{address}?code=p2")
        page.keyboard.press("Tab")  # the code, which is filled in
        page.keyboard.press("Tab")  # colour vision
        page.keyboard.press("Space")
        page.keyboard.press("Tab")  # consent
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#next:not([hidden])")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360
        for number in range(8):
            if number < 3:
                page.wait_for_selector("#next:not([hidden])")
                assert page.evaluate("document.activeElement.id") == "next"
                page.keyboard.press("Enter")
            page.wait_for_selector("#choose-left:not([disabled])", timeout=15000)
            page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
            until(page, "document.getElementById('choose-left')?.disabled !== false")
        page.wait_for_url("**/end")
        context.close()
    sessions, trials = read_answers(folder)
    assert [t["answer"] for t in trials] == ["right", "left"] * 4 and sessions[0]["colour_vision"] == "normal"


def test_a_killed_server_loses_nothing_and_sessions_go_on(chromium, study):
    folder, _ = study
    port = free_port()
    page = chromium.new_page()
    with on_a_port(folder, port) as (address, process):
        begin(page, address, "p3")
        page.click("#next")
        judge(page, "left")
        page.wait_for_selector("#message.right, #message.wrong")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [t["answer"] for t in read_answers(folder)[1]].count("left") == 1
    page.click("#next")
    until(page, "document.getElementById('message').textContent.includes('connection was lost')")
    with on_a_port(folder, port):
        judge(page, "right")
        until(page, "document.getElementById('next').textContent.includes('Practice is over')")
    assert [t["answer"] for t in read_answers(folder)[1]][:3] == ["left", "right", None]
    page.close()


def test_pages_work_below_another_address(chromium, study):
    """A proxy that takes /faces/ off and passes the rest on, the first piece of every other picture only."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    port, cut = free_port(), set()

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith("/faces/"):
                self.send_error(404)
                return
            length = int(self.headers.get("Content-Length") or 0)
            headers = {k: v for k, v in self.headers.items() if k.lower() in ("cookie", "content-type")}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{self.path.removeprefix('/faces')}", self.rfile.read(length) or None, headers
            )
            opener = urllib.request.build_opener(NoRedirect)
            try:
                answer = opener.open(request, timeout=20)
            except urllib.error.HTTPError as error:
                answer = error
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() in ("content-type", "location", "set-cookie", "content-security-policy"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if "/picture/" in self.path and self.path not in cut:
                cut.add(self.path)
                data = data[:1000]
                self.close_connection = True
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    folder, _ = study
    with on_a_port(folder, port), ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        page = chromium.new_page()
        begin(page, f"http://127.0.0.1:{proxy.server_address[1]}/faces/", "p4")
        assert re.search(r"/faces/pairs$", page.url)
        page.click("#next")
        judge(page, "left")
        page.wait_for_selector("#message.right, #message.wrong")
        assert page.context.cookies()[0]["path"] == "/faces"
        page.close()
        proxy.shutdown()
