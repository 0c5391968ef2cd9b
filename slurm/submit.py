"""`crosschannel-slurm submit` and `resume`: check everything here, then hand the command to submitit."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import submitit
import yaml
from submitit.core.utils import FailedJobError, FailedSubmissionError

from crosschannel.console import escape_control, print_stderr
from crosschannel.errors import UserError
from crosschannel.files import LOCK, FolderLock, write_text
from slurm import queue
from slurm.command import WrappedCommand, check_paths, check_run_folder, prefetch, sweep
from slurm.config import SubmitConfig
from slurm.executor import (
    SBATCH_S,
    TIMED_OUT,
    build_executor,
    check_home,
    environment,
    outside_of_jobs,
    variables_of_sbatch,
)
from slurm.job_folder import Job, JobFolder
from slurm.snapshot import snapshot
from slurm.task import Task
from slurm.watch import is_active, state_of


def submit(config: SubmitConfig) -> list[Path]:
    """Check, prefetch, copy the code, queue; returns the run folders.

    Raises:
        UserError: the command or its paths are refused, a run has a job already, or SLURM refuses.
    """
    here = Path(_here())
    code_copy, cwd = str(here / config.code_copy) if config.code_copy else "", str(here / config.cwd)
    with contextlib.chdir(cwd):
        places = _submit(replace(config, cwd=cwd, code_copy=code_copy))
    if places and not config.dry_run:
        whole = places[0].parent if config.sweep else places[0]
        whole, first = (shlex.quote(str(path if cwd == str(here) else Path(cwd, path))) for path in (whole, places[0]))
        print_stderr(f"status: crosschannel-slurm status {whole}")
        print_stderr(f"logs:   crosschannel-slurm logs {first} -f")
        print_stderr(f"cancel: crosschannel-slurm cancel {whole}")
    return places


def _submit(config: SubmitConfig) -> list[Path]:
    """In the folder that the command runs in."""
    with contextlib.ExitStack() as held:
        return _submit_held(config, held)


def _submit_held(config: SubmitConfig, held: contextlib.ExitStack) -> list[Path]:
    """While the run folders' jobs are held: of two that submit at once, one sees the job of the other."""
    todo, (queued, problem) = [], queue.queue()
    if config.cluster == "slurm" and queued is None and shutil.which("squeue") and not config.dry_run:
        raise UserError(f"SLURM does not answer: {problem}; nothing was submitted, try again later")
    for command in sweep(config.command, config.sweep):
        run = check_run_folder(command, config.ranks)
        if run is not None and run.finished:
            stored = run.stored_config().get("data")
            print_stderr(f"{run.path} is finished, on {stored}: nothing to do")
            continue
        if config.path_check:
            check_paths(command)
        place = run.path if run else Path("runs") / f"{command.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if not config.dry_run:
            held.enter_context(FolderLock(JobFolder(place).path))
        for job in JobFolder(place).jobs()[-1:]:
            if is_active(job, queued):
                raise UserError(f"{place} has job {job.id} already; crosschannel-slurm cancel ends it")
            unknown = job.cluster == "slurm" and state_of(job, JobFolder(place), queued) == "UNKNOWN"
            if unknown and not config.dry_run:
                raise UserError(f"job {job.id} of {place} may still be queued: {problem}; try again on a login node")
        todo.append((place, command))
    if not todo:
        return []
    places = [place for place, _ in todo]
    home = (places[0].parent if config.sweep else places[0]) / "slurm"
    check_home(home, config.cluster)
    code = Path(config.code_copy or home / "code" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    if config.dry_run:
        _print_script(config, home, places, code)
        return places
    missing = next((program for program in ("sbatch", "srun") if not shutil.which(program)), None)
    if config.cluster == "slurm" and missing:
        raise UserError(f"there is no {missing} here: submit on a login node, or take --profile local")
    for line in variables_of_sbatch(config):
        print_stderr(line)
    with environment(config.env):
        for _, command in todo:
            prefetch(command)
    new = [path for path in {home, *(JobFolder(place).path for place in places)} if _is_empty(path)]
    try:
        if not code.is_dir():
            own = [name for _, command in todo for name in command.local_packages]
            snapshot(code, list(dict.fromkeys([*config.code, *own])))
        return _queue(config, home, todo, code)
    except UserError:
        for path in new:
            for entry in path.iterdir() if path.is_dir() else ():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != LOCK:
                    entry.unlink()
            with contextlib.suppress(OSError):  # that of a lock goes with it
                path.rmdir()
        raise


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder but its lock, or it is not there."""
    return not folder.is_dir() or {entry.name for entry in folder.iterdir()} <= {LOCK}


def _print_script(config: SubmitConfig, home: Path, places: Sequence[Path], code: Path) -> None:
    if config.cluster == "local":
        print(f"{config.ranks} processes on this machine, without a batch script")
        return
    executor = build_executor(config, home, places, code)
    if config.sweep:
        executor.parameters["map_count"] = len(places)
    print(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _queue(config: SubmitConfig, home: Path, todo: Sequence[tuple[Path, WrappedCommand]], code: Path) -> list[Path]:
    """Hand the commands to submitit, as one job or one array, and note the jobs in their run folders."""
    executor, tasks, cwd = build_executor(config, home, [place for place, _ in todo], code), [], config.cwd
    turns = config.turns or (str(home.absolute()) if config.sweep and config.cluster == "local" else "")
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
            turns=turns,
            parallel=config.parallel or 1,
        )
        tasks.append(task)
    with outside_of_jobs(config, code):
        try:
            jobs: list[submitit.Job] = []
            if config.sweep and config.cluster == "slurm":
                jobs = executor.submit_array(tasks)
            else:
                jobs.extend(map(executor.submit, tasks))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
            for job in jobs:  # on this machine: those that have started already
                with contextlib.suppress(OSError):
                    os.kill(int(job.job_id), signal.SIGTERM)
            raise UserError(f"SLURM refuses the job: {_reason(error)}") from error
    for (place, command), task, job in zip(todo, tasks, jobs, strict=True):
        folder, logs, host = JobFolder(place), str(home.absolute()), socket.gethostname()
        words = [command.program, *task.command[1:]]
        told = {"command": words, "sweep": [], "turns": turns, "cwd": cwd, "code_copy": str(code)}
        stored = {**asdict(config), **told}
        text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)
        write_text(folder.path / "submission.yaml", f"# {escape_control(command.text)}\n{text}")
        folder.add_job(Job(job.job_id, config.cluster, config.nodes, config.ranks, logs, host, time.time()))
        print_stderr(f"job {job.job_id}: {place}")
    return [place for place, _ in todo]


def _here() -> str:
    """The working folder by the name that the shell has for it: automounters know no other."""
    name = os.environ.get("PWD", "")
    return name if name and Path(name).is_dir() and Path(name).samefile(Path.cwd()) else str(Path.cwd())


def _reason(error: Exception) -> str:
    """What sbatch said."""
    if getattr(error.__cause__ or error, "returncode", None) == TIMED_OUT:
        return f"sbatch has not answered for {SBATCH_S} s; check squeue before submitting again"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("sbatch:")] or lines[-1:]
    return " ".join(line.removeprefix("sbatch:").strip().removeprefix("error:").strip() for line in said)
