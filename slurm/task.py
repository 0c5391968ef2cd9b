"""What runs on every rank: the command as a process of its own, told what its launcher is told, watched to its end.

submitit starts one :class:`Task` a rank. Its own signal handlers checkpoint and requeue from inside the signal; they
are replaced at once. The command saves at its next step boundary, all ranks together, and leaves with code 75.
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

from slurm.after import settle
from slurm.job_folder import End, JobFolder
from slurm.verdict import INTERRUPTED, ended_badly

_FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_PATIENCE = 2.0  # seconds that a rank has to end by itself once another one has ended badly; below SLURM's KillWait


@dataclass
class Task:
    """A command on one rank.

    Attributes:
        run: the run folder.
        cwd: where the command was typed.
        command: the program's module and its arguments.
        scratch: node-local folder that the data are copied to; empty for none.
        data: what is copied; empty for nothing.
        interface: network interface of gloo and NCCL; empty for their choice.
        backend: "auto", "nccl" or "gloo".
        limit: how often a killed attempt is started again.
        turns: folder of a sweep on this machine, whose runs take turns; empty where this one need not wait.
        parallel: how many of them go on at once.
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
    _told: bool = False
    _place: IO[str] | None = field(default=None, repr=False)

    def __call__(self) -> None:
        for number in _FORWARDED:
            signal.signal(number, self._forward)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        job, folder = JobEnvironment(), JobFolder(self.run)
        local, rank = job.cluster == "local", job.global_rank
        attempt = folder.attempts(job.job_id, rank) if local else int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        try:
            if self.turns:
                self._wait_for_turn(folder, job.job_id, attempt, rank)
            if rank == 0:
                folder.add_event(job.job_id, attempt, "started", f"{job.num_nodes} nodes, {job.num_tasks} ranks")
            os.chdir(self.cwd)
            code = self._work(job, folder, attempt, local)
        except (OSError, ValueError):
            traceback.print_exc()
            code = 1
        number = signal.Signals(-code).name if code < 0 else None
        end = End(rank, None if code < 0 else code, number, self._told, time.time(), socket.gethostname())
        if ended_badly(end):
            end = End(**{**vars(end), "words": _last_line(job.paths.stderr)})
        folder.write_end(job.job_id, attempt, end)
        if ended_badly(end):
            folder.bad_mark(job.job_id, attempt).touch()
        if local:
            self._settle_locally(folder, job, attempt)
        if ended_badly(end):
            sys.exit(code if code > 0 else 128 - code)

    def _work(self, job: JobEnvironment, folder: JobFolder, attempt: int, local: bool) -> int:
        """Run the command; its exit code, or minus the signal that ended it."""
        command, environment = [sys.executable, "-m", *self.command], self._environment(job, attempt, local)
        if self.scratch and self.data:
            environment["CROSSCHANNEL_STAGED_DATA"] = f"{self.data}\n{self._stage(job, folder, attempt)}"
        if self._told:  # before there was anything to save
            return INTERRUPTED
        self._child = subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent)
        if self._told:  # in between
            self._child.send_signal(signal.SIGTERM)
        bad, since = folder.bad_mark(job.job_id, attempt), None
        while True:
            try:
                return self._child.wait(1.0)
            except subprocess.TimeoutExpired:
                if (local or self._told) and bad.exists():
                    self._told, since = True, since or time.monotonic()
                if since and time.monotonic() - since > _PATIENCE:
                    self._child.kill()

    def _wait_for_turn(self, folder: JobFolder, job: str, attempt: int, rank: int) -> None:
        """Hold one of the sweep's places, as long as this process lives; the other ranks wait for the first one."""
        mark = folder.path / "turns" / f"{job}-{attempt}"
        mark.parent.mkdir(parents=True, exist_ok=True)
        while not self._told:
            for number in range(self.parallel) if rank == 0 else ():
                place = Path(self.turns, f"turn-{number}").open("a")  # noqa: SIM115  (closed as the process ends)
                try:
                    fcntl.lockf(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    place.close()
                    continue
                self._place = place
                mark.touch()
                return
            if mark.exists() or folder.bad_mark(job, attempt).exists():
                return
            time.sleep(0.5)

    def _stage(self, job: JobEnvironment, folder: JobFolder, attempt: int) -> str:
        """Copy the data to this node, and wait for the other nodes: ranks that are there early would give up."""
        from slurm.staging import stage  # it imports numpy and Pillow

        staged = stage(self.data, self.scratch, f"{job.job_id}-{attempt}")
        marks = folder.path / "staged"
        marks.mkdir(exist_ok=True)
        (marks / f"{job.job_id}-{attempt}-{job.node}").touch()
        while len(list(marks.glob(f"{job.job_id}-{attempt}-*"))) < job.num_nodes and not self._told:
            time.sleep(1)
        return staged

    def _environment(self, job: JobEnvironment, attempt: int, local: bool) -> dict[str, str]:
        """What torch.distributed reads. The first rank's node is the one that srun was started on, and every node
        reaches it under the address that their output goes to."""
        number = int(job.raw_job_id)
        address = "127.0.0.1" if local else os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or job.hostnames[0]
        environment = {
            **os.environ,
            "RANK": str(job.global_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_RANK": str(job.local_rank),
            "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
            "MASTER_ADDR": address,
            # Below the ports that systems give out; jobs that run side by side and attempts of one job differ.
            "MASTER_PORT": str(15000 + number % 1000 * 15 + attempt % 15),
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

    def _forward(self, number: int, _frame) -> None:
        self._told = True
        if self._child is not None:
            self._child.send_signal(number)

    def _settle_locally(self, folder: JobFolder, job: JobEnvironment, attempt: int) -> None:
        """Without a batch script around them, the ranks agree by what they wrote; all come to the same verdict."""
        deadline = time.monotonic() + 30
        while len(folder.ends(job.job_id, attempt)) < job.num_tasks and time.monotonic() < deadline:
            time.sleep(0.1)
        again, _ = settle(folder, job.job_id, attempt, job.num_tasks, self.limit, write=job.global_rank == 0)
        if again:
            sys.exit(LOCAL_REQUEUE_RETURN_CODE)


def _die_with_parent() -> None:
    """In the child: a launcher that is killed leaves nothing behind (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _last_line(log: Path) -> str:
    """The last line that a rank wrote: what went wrong."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return re.sub(r"^\[rank\d+\]: ", "", last)  # torch.distributed's mark on tracebacks
