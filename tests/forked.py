"""Commands in forks of the test process, which saves the seconds that Python and torch take to start.

Tests of interpreter start-up and shutdown use ``subprocess`` instead.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping

sessions: list[int] = []  # session ids of all forked children


class Forked:
    """A function in a forked child, with the parts of ``subprocess.Popen``'s interface that tests use.

    The child leads a new session. The function's return value is its exit status.

    Args:
        work: function to run, such as ``lambda: main(arguments)``.
        environment: additional environment variables of the child.

    Attributes:
        stderr: the child's stdout and stderr, as one stream.
    """

    def __init__(self, work: Callable[[], int], environment: Mapping[str, str] | None = None):
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            self._run(work, write, environment or {})
        sessions.append(self.pid)
        os.close(write)
        self.stderr = os.fdopen(read, errors="replace")

    @staticmethod
    def _run(work: Callable[[], int], output: int, environment: Mapping[str, str]) -> None:
        status = 99
        try:
            os.setsid()
            os.environ.update(environment)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            status = work()
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked child", timeout)
            time.sleep(0.002)
        return self.returncode

    def wait_and_read(self) -> tuple[int, str]:
        """Return the exit status and all output that has not been read yet."""
        output = self.stderr.read()
        return self.wait(), output

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait_for(self, text: str) -> None:
        """Wait until the child prints a line that contains ``text``."""
        lines = []
        for line in self.stderr:
            lines.append(line)
            if text in line:
                return
        raise AssertionError(
            f"the child exited with status {self.wait()} before it printed {text!r}:\n{''.join(lines)}"
        )

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_exc) -> None:
        self.kill()
        self.wait()
        self.stderr.close()


def rank_environments(ranks: int) -> Iterator[dict[str, str]]:
    """Yield the environment variables that torchrun sets for each rank on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(ranks):
        yield {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip


def run_on_ranks(work: Callable[[], int], ranks: int = 2) -> list[tuple[int, str]]:
    """Run a function on several ranks; return the exit status and output of each."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Forked(work, environment)) for environment in rank_environments(ranks)]
        return [child.wait_and_read() for child in children]


def check_on_ranks(work: Callable[[], int], ranks: int = 2) -> None:
    """Run a function on several ranks and check that it returns 0 on all of them."""
    outcomes = run_on_ranks(work, ranks)
    assert [status for status, _ in outcomes] == [0] * ranks, "\n".join(output for _, output in outcomes)
