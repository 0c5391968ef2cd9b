"""The web server of the study and the demo: hosts, request bodies and shutdown."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from contextlib import closing

import pytest
from browsers import free_port, served

pytest.importorskip("uvicorn")

import uvicorn

from crosschannel.cli import PROGRAM
from crosschannel.errors import UserError
from crosschannel.study.answers import DATABASE, read_answers
from crosschannel.web import GuardedApp, interrupt_on_signals, serve

ADDRESSES = ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "255.255.255.255"]
NAMES = ["localhost", "cafe", "node-3.cluster.example", "3com", "4node", "my_host"]
OTHERS = ["", " ", "\t", "*", "0", "00", "0.0", "0x0", "127.1", "00.00.00.00", "256.0.0.1", "1.2.3.4.5"]
OTHERS += [
    "0x7f000001",
    "<broadcast>",
    "a b",
    "localhost ",
    "http://localhost",
    "127.0.0.1:80",
    "[::1]",
    "..",
    "a" * 64,
]


@pytest.mark.parametrize("host", ADDRESSES + NAMES)
@pytest.mark.parametrize("command", [["study serve", "folder"], ["demo"]])
def test_host_names_and_full_addresses_are_accepted(command, host):
    name, *words = command
    assert PROGRAM.parse(name, [*words, f"--host={host}"]).host == host


@pytest.mark.parametrize("host", OTHERS)
@pytest.mark.parametrize("command", [["study serve", "folder"], ["demo"]])
def test_other_hosts_are_refused(command, host):
    name, *words = command
    with pytest.raises(UserError, match="host must be a host name or a full IP address"):
        PROGRAM.parse(name, [*words, f"--host={host}"])
    with pytest.raises(UserError, match="host must be a host name or a full IP address"):
        serve(GuardedApp(app, 1), host, free_port(), "page")


async def app(_scope, receive, send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def port():
    """Port of a server that accepts bodies of 1000 bytes."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(GuardedApp(app, 1000), port=port, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield port
    server.should_exit = True
    thread.join()


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n", b"400\r\n" + b"a" * 1024 + b"\r\n"
DECLARED = b"Content-Length: 1000000000000\r\n\r\n", b"a" * 1024


@pytest.mark.parametrize(("head", "piece"), [CHUNKED, DECLARED], ids=["chunked", "declared"])
def test_an_endless_body_is_not_read_to_its_end(head, piece, port):
    sent, until = 0, time.monotonic() + 20
    with closing(socket.create_connection(("127.0.0.1", port), 20)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + head)
        with pytest.raises(ConnectionError):
            while time.monotonic() < until:
                sent += client.send(piece)
    assert sent < 50_000_000  # system buffers; a server that reads takes 200 MB per second


def test_only_a_body_above_the_limit_is_refused(port):
    for length, status in ((1000, 200), (1001, 413)):
        with closing(socket.create_connection(("127.0.0.1", port), 20)) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + b"a" * length)
            answer = client.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert (b"connection: close" in answer.lower()) == (status == 413)


def begin(address: str, code: str) -> None:
    form = {"code": code, "agreed": "yes", "colour_vision": "normal"}
    urllib.request.urlopen(f"{address}begin", urllib.parse.urlencode(form).encode(), timeout=30).close()


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGINT))],
)
def test_a_stopped_server_leaves_all_answers_in_its_database(number, study, tmp_path):
    folder, _ = study
    port = free_port()
    with served("crosschannel.cli", "study", "serve", folder, f"--port={port}", port=port) as (address, process):
        begin(address, "p1")
        if number == signal.SIGTERM:
            words = ["study", "serve", str(folder), f"--port={free_port()}", "--host=localhost"]
            second = subprocess.run(
                [sys.executable, "-m", "crosschannel.cli", *words], capture_output=True, text=True, timeout=120
            )
            assert second.returncode == 2 and f"is in use by process {process.pid} on" in second.stderr
        for _ in range(3):  # as by an impatient user
            process.send_signal(number)
        assert process.wait(60) == 0
    assert {path.name for path in folder.iterdir()} == {DATABASE, "study.json", "pictures"}
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(f"{DATABASE}-*"))
    assert [session["participant"] for session in read_answers(copy)[0]] == ["p1"]


def test_signals_end_a_block_once_and_their_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        closed = []
        with pytest.raises(KeyboardInterrupt), interrupt_on_signals():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # during cleanup
                closed.append(True)
        assert closed
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
