"""Process that runs on each rank: it starts the command as a child, forwards signals to it, and records its end.

submitit starts one :class:`Task` per rank. Its signal handlers are replaced, because they would checkpoint and requeue
inside the handler. Instead, the command saves a checkpoint on all ranks at the next step boundary, and exits with
code 75.
"""

import ctypes
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from submitit.core.job_environment import JobEnvironment
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from slurm.after import judge_attempt
from slurm.job_folder import End, JobFolder
from slurm.verdict import INTERRUPTED, failed_or_killed

_FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_GRACE_S = 2.0  # seconds until a rank is killed after another rank failed or was killed; below SLURM's KillWait


@dataclass
class Task:
    """Command on one rank.

    It is pickled at submission and may be unpickled by another version of this class, from the job's code copy.

    Attributes:
        run: run folder.
        cwd: working directory of the command.
        command: module of the program, and its arguments.
        scratch: node-local folder to copy the data to; "" to read the data in place.
        data: data to copy; "" if there are none.
        interface: network interface for NCCL and gloo; "" to let them choose one.
        backend: torch.distributed backend, "auto", "nccl" or "gloo".
        limit: maximum number of restarts in a row after a kill.
        turns: folder of a local sweep, whose runs wait for each other; "" for other runs.
        parallel: maximum number of runs of the local sweep at a time.
    """

    run: str
    cwd: str
    command: list[str]
    scratch: str = ""
    data: str = ""
    interface: str = ""
    backend: str = "auto"
    limit: int = 3
    turns: str = ""
    parallel: int = 1
    _child: subprocess.Popen | None = field(default=None, repr=False)
    _stop_requested: bool = False
    _slot: IO[str] | None = field(default=None, repr=False)

    def __call__(self) -> None:
        for signum in _FORWARDED:
            signal.signal(signum, self._forward)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        job, folder = JobEnvironment(), JobFolder(self.run)
        local, rank = job.cluster == "local", job.global_rank
        attempt = folder.attempts(job.job_id, rank) if local else int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        try:
            if self.turns:
                self._wait_for_turn(folder, job.job_id, attempt, rank)
            if rank == 0:
                folder.add_event(job.job_id, attempt, "started", f"nodes: {job.num_nodes}, ranks: {job.num_tasks}")
            os.chdir(self.cwd)
            code = self._run_command(job, folder, attempt, local)
        except (OSError, ValueError):
            traceback.print_exc()
            code = 1
        signal_name = signal.Signals(-code).name if code < 0 else None
        end = End(
            rank, None if code < 0 else code, signal_name, self._stop_requested, time.time(), socket.gethostname()
        )
        if failed_or_killed(end):
            end = End(**{**vars(end), "words": _last_line(job.paths.stderr)})
        folder.write_end(job.job_id, attempt, end)
        if failed_or_killed(end):
            folder.failure_marker(job.job_id, attempt).touch()
        if local:
            self._judge_locally(folder, job, attempt)
        if failed_or_killed(end):
            sys.exit(code if code > 0 else 128 - code)

    def _run_command(self, job: JobEnvironment, folder: JobFolder, attempt: int, local: bool) -> int:
        """Run the command, and return its exit code, or the negative number of the signal that ended it."""
        command, environment = [sys.executable, "-m", *self.command], self._environment(job, attempt, local)
        if self.scratch and self.data:
            environment["CROSSCHANNEL_STAGED_DATA"] = f"{self.data}\n{self._stage(job, folder, attempt)}"
        if self._stop_requested:  # stopped while staging: there is nothing to save yet
            return INTERRUPTED
        self._child = subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent)
        if self._stop_requested:  # stopped while the child was starting
            self._child.send_signal(signal.SIGTERM)
        failure_marker, failed_at = folder.failure_marker(job.job_id, attempt), None
        while True:
            try:
                return self._child.wait(1.0)
            except subprocess.TimeoutExpired:
                if (local or self._stop_requested) and failure_marker.exists():
                    self._stop_requested, failed_at = True, failed_at or time.monotonic()
                if failed_at and time.monotonic() - failed_at > _GRACE_S:
                    self._child.kill()

    def _wait_for_turn(self, folder: JobFolder, job: str, attempt: int, rank: int) -> None:
        """Wait until rank 0 gets one of the sweep's slots, and hold the slot until this process ends."""
        marker = folder.path / "turns" / f"{job}-{attempt}"
        marker.parent.mkdir(parents=True, exist_ok=True)
        while not self._stop_requested:
            for index in range(self.parallel) if rank == 0 else ():
                slot = Path(self.turns, f"turn-{index}").open("a")  # noqa: SIM115  (closed when the process ends)
                try:
                    fcntl.lockf(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    slot.close()
                    continue
                self._slot = slot
                marker.touch()
                return
            if marker.exists() or folder.failure_marker(job, attempt).exists():
                return
            time.sleep(0.5)

    def _stage(self, job: JobEnvironment, folder: JobFolder, attempt: int) -> str:
        """Copy the data to this node, and wait for the other nodes, so that torch.distributed does not time out."""
        from slurm.staging import stage  # imported here, because it imports numpy and Pillow

        staged = stage(self.data, self.scratch, f"{job.job_id}-{attempt}")
        markers = folder.path / "staged"
        markers.mkdir(exist_ok=True)
        (markers / f"{job.job_id}-{attempt}-{job.node}").touch()
        while len(list(markers.glob(f"{job.job_id}-{attempt}-*"))) < job.num_nodes and not self._stop_requested:
            time.sleep(1)
        return staged

    def _environment(self, job: JobEnvironment, attempt: int, local: bool) -> dict[str, str]:
        """Return the environment of the command, including the variables of torch.distributed.

        Rank 0 runs on the node that started srun. All nodes can reach its address SLURM_LAUNCH_NODE_IPADDR, because
        they send their output to it.
        """
        job_number = int(job.raw_job_id)
        address = "127.0.0.1" if local else os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or job.hostnames[0]
        environment = {
            **os.environ,
            "RANK": str(job.global_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_RANK": str(job.local_rank),
            "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
            "MASTER_ADDR": address,
            # Below the ephemeral ports; different for concurrent jobs and for the attempts of a job.
            "MASTER_PORT": str(15000 + job_number % 1000 * 15 + attempt % 15),
        }
        if self.interface:
            environment |= {"GLOO_SOCKET_IFNAME": self.interface, "NCCL_SOCKET_IFNAME": self.interface}
        if self.backend != "auto":
            environment["CROSSCHANNEL_BACKEND"] = self.backend
        threads = os.environ.get("SLURM_CPUS_PER_TASK")
        if local and job.num_tasks > 1:
            threads = str(max(1, (os.cpu_count() or 1) // job.num_tasks))
        if threads:
            environment.setdefault("OMP_NUM_THREADS", threads)
        return environment

    def _forward(self, signum: int, _frame) -> None:
        self._stop_requested = True
        if self._child is not None:
            self._child.send_signal(signum)

    def _judge_locally(self, folder: JobFolder, job: JobEnvironment, attempt: int) -> None:
        """Judge an attempt without a batch script: every rank derives the same verdict from all end files."""
        deadline = time.monotonic() + 30
        while len(folder.ends(job.job_id, attempt)) < job.num_tasks and time.monotonic() < deadline:
            time.sleep(0.1)
        should_restart, _ = judge_attempt(
            folder, job.job_id, attempt, job.num_tasks, self.limit, write=job.global_rank == 0
        )
        if should_restart:
            sys.exit(LOCAL_REQUEUE_RETURN_CODE)


def _die_with_parent() -> None:
    """Let the kernel kill this child process when the launcher is killed (Linux only)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _last_line(log: Path) -> str:
    """Return the last non-empty line of a rank's log, which usually states the error."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return re.sub(r"^\[rank\d+\]: ", "", last)  # prefix that torch.distributed adds to tracebacks
