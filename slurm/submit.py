"""`crosschannel-slurm submit` and `resume`: check everything here, then hand the command to submitit."""

import contextlib
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import submitit
import yaml
from submitit.core.utils import FailedJobError, FailedSubmissionError

from crosschannel.errors import UserError, check_rules
from slurm import queue
from slurm.command import WrappedCommand, check_paths, check_place, prefetch, sweep
from slurm.job_folder import Job, JobFolder
from slurm.snapshot import snapshot
from slurm.task import Task
from slurm.watch import is_active

_SETTLED = {
    "array",
    "error",
    "job-name",
    "nodes",
    "ntasks-per-node",
    "open-mode",
    "output",
    "requeue",
    "signal",
    "time",
}


@dataclass
class SubmitConfig:
    """Submit a command to SLURM: crosschannel-slurm submit [--profile NAME|FILE] [--KEY VALUE …] -- COMMAND …"""

    command: list[str] = field(default_factory=list)
    """what the job runs: given after --, as one would type it"""
    cluster: Literal["slurm", "local"] = "slurm"
    """slurm, or local: processes on this machine"""
    name: str = ""
    """of the job; default the run folder's"""
    nodes: int = 1
    """machines"""
    gpus_per_node: int = 0
    """GPUs on each; 0 for a partition of CPUs"""
    tasks_per_node: int = 0
    """ranks on each; 0: one a GPU, or one"""
    cpus_per_task: int = 0
    """cores a rank, its loader workers included; 0: the cluster's default"""
    mem_gb: float = 0.0
    """memory a node, GB; 0: the cluster's default"""
    hours: float = 24.0
    """time limit of one attempt; the run goes on in the next one"""
    partition: str = ""
    """where it queues"""
    account: str = ""
    """who pays"""
    qos: str = ""
    """quality of service"""
    constraint: str = ""
    """features that nodes must have"""
    sbatch: dict[str, str] = field(default_factory=dict)
    """any other option of sbatch, such as --sbatch.reservation=NAME; an empty value for one that takes none"""
    srun: list[str] = field(default_factory=list)
    """options of srun, such as ["--mpi=none"]"""
    setup: list[str] = field(default_factory=list)
    """shell lines before the job: modules, a virtual environment"""
    python: str = ""
    """what starts Python, such as "apptainer exec --nv image.sif python"; default this Python"""
    env: dict[str, str] = field(default_factory=dict)
    """environment variables of the job"""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """of torch.distributed; auto: nccl with GPUs, else gloo"""
    interface: str = ""
    """network interface of gloo and NCCL, such as ib0; default their choice"""
    scratch: str = ""
    """folder on a node's own disk that the data are copied to first, such as $SLURM_TMPDIR"""
    signal_before_s: int = 180
    """seconds before the time limit that the job is told to save and leave"""
    restarts: int = 3
    """how often a job starts again whose rank was killed (no memory, kill -9); preemption and time-outs do not count"""
    sweep: list[str] = field(default_factory=list)
    """KEY=VALUE,VALUE…, any number of times: one run for every combination, as a job array"""
    parallel: int = 256
    """most jobs of an array that run at once"""
    code: list[str] = field(default_factory=list)
    """packages of yours that the job imports, to be copied along with ours"""
    cwd: str = ""
    """where the command runs; default this folder"""
    code_copy: str = ""
    """an earlier copy of the code to run; default a new copy"""
    dry_run: bool = False
    """print the batch script and submit nothing"""
    path_check: bool = True
    """refuse data and weights that this machine does not see"""
    seed: int = 0
    """taken as by every command; a job's own is given after --"""
    device: str = "auto"
    """taken as by every command; a job's own is given after --"""

    @property
    def minutes(self) -> int:
        """The time limit, as SLURM counts."""
        return math.ceil(60 * self.hours)

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def check(config: SubmitConfig) -> None:
    """Raise a UserError for the first key that cannot be."""
    ours = _SETTLED & {key.replace("_", "-") for key in config.sbatch}
    rules = [
        (config.nodes >= 1, "nodes must be at least 1", config.nodes),
        (config.gpus_per_node >= 0, "gpus_per_node must not be negative", config.gpus_per_node),
        (config.tasks_per_node >= 0, "tasks_per_node must not be negative", config.tasks_per_node),
        (config.cpus_per_task >= 0, "cpus_per_task must not be negative", config.cpus_per_task),
        (config.hours > 0, "hours must be above 0", config.hours),
        (
            1 <= config.signal_before_s < 60 * config.minutes,
            "signal_before_s must be at least 1 and less than the time limit",
            config.signal_before_s,
        ),
        (config.restarts >= 0, "restarts must not be negative", config.restarts),
        (config.parallel >= 1, "parallel must be at least 1", config.parallel),
        (config.cluster == "slurm" or config.nodes == 1, "this machine is one node; nodes must be 1", config.nodes),
        (
            config.cluster == "slurm" or not config.sweep,
            "a sweep needs SLURM: here all would start at once",
            config.sweep,
        ),
        (not ours, "sbatch: these are settled by keys of their own or by the launcher", ", ".join(sorted(ours))),
        (
            not config.code_copy or Path(config.code_copy).is_dir(),
            "code_copy: there is no such folder",
            config.code_copy,
        ),
    ]
    check_rules(rules)


def submit(config: SubmitConfig) -> list[Path]:
    """Check, prefetch, copy the code, queue; returns the run folders.

    Raises:
        UserError: the command or its paths are refused, a run has a job already, or SLURM refuses.
    """
    check(config)
    todo, queued = [], queue.queue()
    for command in sweep(config.command, config.sweep):
        run = check_place(command, config.ranks)
        if run is not None and run.finished:
            print(f"{run.path} is finished: nothing to do", file=sys.stderr)
            continue
        if config.path_check:
            check_paths(command)
        place = run.path if run else Path("runs") / f"{command.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        jobs = JobFolder(place).jobs()
        if jobs and is_active(jobs[-1], queued):
            raise UserError(f"{place} has job {jobs[-1].id} already; crosschannel-slurm cancel ends it")
        todo.append((place, command))
    if not todo:
        return []
    places = [place for place, _ in todo]
    home = (places[0].parent if config.sweep else places[0]) / "slurm"
    code = Path(config.code_copy or home / "code" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    if config.dry_run:
        _print_script(config, home, places, code)
        return places
    if config.cluster == "slurm" and not shutil.which("sbatch"):
        raise UserError("there is no sbatch here: submit on a login node, or take --profile local")
    with _environment(config.env):
        for _, command in todo:
            prefetch(command)
    if not code.is_dir():
        snapshot(code, config.code)
    return _queue(config, home, todo, code)


def _print_script(config: SubmitConfig, home: Path, places: Sequence[Path], code: Path) -> None:
    if config.cluster == "local":
        print(f"{config.ranks} processes on this machine, without a batch script")
        return
    executor = _executor(config, home, places, code)
    print(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _queue(config: SubmitConfig, home: Path, todo: Sequence[tuple[Path, WrappedCommand]], code: Path) -> list[Path]:
    """Hand the commands to submitit, as one job or one array, and note the jobs in their run folders."""
    executor, tasks, cwd = _executor(config, home, [place for place, _ in todo], code), [], config.cwd or _here()
    for place, command in todo:
        folder = JobFolder(place)
        folder.path.mkdir(parents=True, exist_ok=True)
        task = Task(
            run=str(place.absolute()),
            cwd=cwd,
            command=command.frozen(folder.path),
            scratch=config.scratch,
            data=command.local_data,
            interface=config.interface,
            backend=config.backend,
            limit=config.restarts,
        )
        tasks.append(task)
    with _outside_of_jobs(config, code):
        try:
            jobs = executor.submit_array(tasks) if config.sweep else [executor.submit(tasks[0])]
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
            raise UserError(f"SLURM refuses the job: {_reason(error)}") from error
    for (place, command), task, job in zip(todo, tasks, jobs, strict=True):
        folder, logs, host = JobFolder(place), str(home.absolute()), socket.gethostname()
        words = [command.program, *task.command[1:]]
        stored = {**asdict(config), "command": words, "sweep": [], "cwd": cwd, "code_copy": str(code)}
        text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)
        folder.path.joinpath("submission.yaml").write_text(f"# {command.text}\n{text}")
        folder.add_job(Job(job.job_id, config.cluster, config.nodes, config.ranks, logs, host, time.time()))
        print(f"job {job.job_id}: {place}", file=sys.stderr)
    return [place for place, _ in todo]


def _here() -> str:
    """The working folder by the name that the shell has for it: automounters know no other."""
    name = os.environ.get("PWD", "")
    return name if name and Path(name).is_dir() and Path(name).samefile(Path.cwd()) else str(Path.cwd())


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's, which can be made (for a dry run) on a machine without SLURM too."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def _executor(config: SubmitConfig, home: Path, places: Sequence[Path], code: Path) -> submitit.core.core.Executor:
    """submitit's executor with everything that the config asks for."""
    python = config.python or shlex.quote(sys.executable)
    if config.cluster == "local":
        if config.setup:
            lines = "; ".join([*config.setup, f'exec {python} "$@"'])
            python = f"bash -c {shlex.quote(lines)} bash"
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        executor = submitit.LocalExecutor(home, python=python)
        executor.update_parameters(
            timeout_min=60 * config.hours,
            tasks_per_node=config.ranks_per_node,
            gpus_per_node=config.gpus_per_node,
            visible_gpus=[int(gpu) for gpu in seen] if all(gpu.isdecimal() for gpu in seen) else (),
            signal_delay_s=config.signal_before_s,
        )
        return executor
    exports = [f"export {key}={shlex.quote(value)}" for key, value in config.env.items()]
    path = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    runs = " ".join(shlex.quote(str(place.absolute())) for place in places)
    after = f"{shlex.quote(sys.executable)} -m slurm.after $? {config.ranks} {config.restarts} {runs}"
    cores = [f"--cpus-per-task={config.cpus_per_task}"] if config.cpus_per_task else []  # srun does not inherit it
    asked = {
        "job_name": config.name or places[0].name,
        "time": config.minutes,
        "nodes": config.nodes,
        "ntasks_per_node": config.ranks_per_node,
        "signal_delay_s": config.signal_before_s,
        "array_parallelism": config.parallel,
        # The shell outlives SIGTERM, so that it can say what became of the job.
        "setup": ["trap : TERM", *config.setup, *exports, path],
        "teardown": [after, "exit $?"],
        "srun_args": ["--kill-on-bad-exit=1", "--export=ALL", *cores, *config.srun],
        "additional_parameters": {"requeue": True, **{key: value or True for key, value in config.sbatch.items()}},
        "wckey": None,
    }
    optional = {
        "gpus_per_node": config.gpus_per_node,
        "cpus_per_task": config.cpus_per_task,
        "mem": f"{round(1024 * config.mem_gb)}M" if config.mem_gb else "",
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
    }
    executor = _SlurmExecutor(home, python=python)
    executor.update_parameters(**asked, **{key: value for key, value in optional.items() if value})
    return executor


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Other environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _outside_of_jobs(config: SubmitConfig, code: Path) -> Iterator[None]:
    """What a job is submitted with: nothing of a job that we may be in ourselves; and for local jobs, which inherit it,
    what a batch script would set, and no hold on the terminal."""
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
    with _environment({}):
        for key in list(os.environ) if "SLURM_JOB_ID" in os.environ else []:
            if key.startswith(("SLURM_", "SRUN_", "SUBMITIT_")) and key not in kept:
                del os.environ[key]
        if config.cluster == "slurm":
            yield
            return
        path = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {**config.env, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
        hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited
        streams = [os.dup(number) for number in range(3)]
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            for number in range(3):
                os.dup2(nothing, number)
            yield
        finally:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            os.close(nothing)
            signal.signal(signal.SIGHUP, hang_up)


def _reason(error: Exception) -> str:
    """What sbatch said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("sbatch:")] or lines[-1:]
    return " ".join(line.removeprefix("sbatch:").strip().removeprefix("error:").strip() for line in said)
