"""Small HTTP server with Range requests, for tests and benchmarks: ``python range_server.py FOLDER PORT``."""

import contextlib
import http.server
import socket
import subprocess
import sys
import time
from pathlib import Path


class RangeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm, wbufsize = True, 1 << 16  # send each response at once
    root: Path

    def do_GET(self) -> None:
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            return self._respond(404, b"")
        byte_range = self.headers.get("Range")
        if byte_range is None:
            return self._respond(200, path.read_bytes())
        first, last = map(int, byte_range.removeprefix("bytes=").split("-"))
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(last - first + 1)
        return self._respond(206, data)

    def _respond(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


def make_server(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    http.server.ThreadingHTTPServer.daemon_threads = True
    handler = type("Handler", (RangeHandler,), {"root": folder})
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def start_server(folder: Path, port: int) -> subprocess.Popen:
    """Start a server in a new process and wait until it accepts connections."""
    process = subprocess.Popen([sys.executable, __file__, str(folder), str(port)])
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process
        time.sleep(0.05)
    raise RuntimeError("the server did not start within 30 s")


if __name__ == "__main__":
    make_server(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
