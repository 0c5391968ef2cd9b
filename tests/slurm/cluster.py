"""A real SLURM on this machine: a controller and two nodes, each with eight cores and eight simulated GPUs."""

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from launch import until

from crosschannel.runs.folder import read_metrics
from slurm.job_folder import JobFolder

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")  # Debian: slurmctld slurmd slurm-client munge

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort={port}
SlurmctldPidFile={dir}/slurmctld.pid
SlurmctldLogFile={dir}/slurmctld.log
StateSaveLocation={dir}/state
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmdLogFile={dir}/slurmd-%n.log
SlurmdSpoolDir={dir}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
GresTypes=gpu
MpiDefault=none
ReturnToService=2
JobRequeue=1
FirstJobId={job}
KillWait=5
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=8 RealMemory=8000 Gres=gpu:8
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=scavenge Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
"""


def missing_requirements() -> str:
    """Return why no cluster can be started on this machine, or "" if one can."""
    if os.geteuid() != 0:
        return "a test cluster requires root"
    missing = [program for program in PROGRAMS if not shutil.which(program, path=_PATH)]
    return f"a test cluster requires {', '.join(missing)}" if missing else ""


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class Cluster:
    """A running cluster whose configuration and logs are in a folder.

    Attributes:
        environment: environment variables for SLURM's commands.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir(parents=True)
        with (Path(tempfile.gettempdir()) / "crosschannel-test-cluster.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other test workers may start munged too
            _start_munged()
        host = socket.gethostname().partition(".")[0]
        if host not in Path("/etc/hosts").read_text().split():
            with Path("/etc/hosts").open("a") as hosts:
                hosts.write(f"127.0.0.1 {host}\n")
        port, first, second = _free_ports(3)
        # The rendezvous port of a job depends on its id, so ids must differ between test workers.
        job = 1 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
        conf = CONF.format(host=host, dir=folder, port=port, first=first, second=second, job=job)
        if second != first + 1:  # the range requires consecutive ports
            conf = conf.replace(f"[{first}-{second}]", f"{first},{second}")
        (folder / "slurm.conf").write_text(conf)
        (folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/tty[0-7]\n")
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")
        self._run("slurmctld")
        for node in ("n1", "n2"):
            self._run("slurmd", "-N", node)
        until(lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * 2, 60)

    def _run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=60)

    def ask(self, *command: str) -> str:
        """Return the stdout of a SLURM command, which may fail."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        fields = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(field.partition("=")[::2] for field in fields)

    def seconds_running(self, number: str) -> int:
        days, _, clock = self.job(number)["RunTime"].rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    def release(self, number: str) -> None:
        """Start a requeued job now; SLURM would hold it for two minutes."""
        self.ask("scontrol", "update", f"JobId={number}", "StartTime=now")

    def stop(self) -> None:
        self.ask("scancel", "--user", "root")
        time.sleep(1)
        for file in self.folder.glob("*.pid"):
            subprocess.run(["kill", file.read_text().strip()], capture_output=True)


def _start_munged() -> None:
    """Start munged, SLURM's authentication service, unless it is running."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    if not Path("/etc/munge/munge.key").is_file():
        subprocess.run(["mungekey"], check=True, env={**os.environ, "PATH": _PATH})
    shutil.chown("/etc/munge/munge.key", "munge", "munge")
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["su", "munge", "-s", "/bin/sh", "-c", "PATH=$PATH:/usr/sbin munged"], check=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = sorted(probe.getsockname()[1] for probe in sockets)
    for probe in sockets:
        probe.close()
    return ports


def events(run) -> list[str]:
    return [event["event"] for event in JobFolder(run).events()]


def last_step(run) -> int:
    return max((row["step"] for row in read_metrics(run)), default=0)


def wait(cluster, run, event, count=1, seconds=400):
    """Wait until a run's event log has ``count`` entries of a kind.

    A job that SLURM holds after a requeue is released after five seconds. If it were released at once, its nodes could
    still confuse it with the attempt that they have just ended.
    """
    held_since: dict[str, float] = {}

    def reached():
        for job in JobFolder(run).jobs():
            if cluster.job(job.id).get("Reason") != "BeginTime":
                held_since.pop(job.id, None)
            elif time.monotonic() - held_since.setdefault(job.id, time.monotonic()) > 5:
                cluster.release(job.id)
        if event != "failed":
            assert "failed" not in events(run), JobFolder(run).events()[-1]["cause"]
        return events(run).count(event) >= count

    try:
        until(reached, seconds)
    except AssertionError:
        logs = [f"{path}: {path.read_text()[-2000:]}" for path in (Path(run) / "slurm").glob("*_log.*")]
        raise AssertionError("\n".join([f"no {event!r} in {events(run)}", *logs])) from None


def wait_for_step(cluster, run, step):
    until(lambda: last_step(run) >= step, 200)
