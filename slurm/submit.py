"""`crosschannel-slurm submit` and `resume`: check a command on this machine, then submit it with submitit."""

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
    check_job_dir,
    describe_sbatch_variables,
    environment,
    submission_environment,
)
from slurm.job_folder import Job, JobFolder
from slurm.snapshot import snapshot
from slurm.task import Task
from slurm.watch import is_active, state_of


def submit(config: SubmitConfig) -> list[Path]:
    """Check the command, download its weights and data, copy the code and queue the jobs. Return the run folders.

    Raises:
        UserError: the command or its paths are invalid, a run already has a job, or SLURM rejected the job.
    """
    working_dir = Path(_working_dir())
    code_copy, cwd = str(working_dir / config.code_copy) if config.code_copy else "", str(working_dir / config.cwd)
    with contextlib.chdir(cwd):
        run_dirs = _submit(replace(config, cwd=cwd, code_copy=code_copy))
    if run_dirs and not config.dry_run:
        top = run_dirs[0].parent if config.sweep else run_dirs[0]
        top, first = (
            shlex.quote(str(path if cwd == str(working_dir) else Path(cwd, path))) for path in (top, run_dirs[0])
        )
        print_stderr(f"status: crosschannel-slurm status {top}")
        print_stderr(f"logs:   crosschannel-slurm logs {first} -f")
        print_stderr(f"cancel: crosschannel-slurm cancel {top}")
    return run_dirs


def _submit(config: SubmitConfig) -> list[Path]:
    """Submit from the command's working directory, and release the locks afterwards."""
    with contextlib.ExitStack() as locks:
        return _submit_locked(config, locks)


def _submit_locked(config: SubmitConfig, locks: contextlib.ExitStack) -> list[Path]:
    """Lock the job folders, and submit the jobs. The locks let concurrent submissions see each other's jobs."""
    pending, (queued, problem) = [], queue.queue()
    if config.cluster == "slurm" and queued is None and shutil.which("squeue") and not config.dry_run:
        raise UserError(f"SLURM did not respond: {problem}; nothing was submitted, try again later")
    for command in sweep(config.command, config.sweep):
        run = check_run_folder(command, config.ranks)
        if run is not None and run.finished:
            stored = run.stored_config().get("data")
            print_stderr(f"{run.path} has already finished on {stored}: nothing to do")
            continue
        if config.path_check:
            check_paths(command)
        run_dir = run.path if run else Path("runs") / f"{command.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if not config.dry_run:
            locks.enter_context(FolderLock(JobFolder(run_dir).path))
        for job in JobFolder(run_dir).jobs()[-1:]:
            if is_active(job, queued):
                raise UserError(f"{run_dir} already has job {job.id}; cancel it with crosschannel-slurm cancel")
            is_unknown = job.cluster == "slurm" and state_of(job, JobFolder(run_dir), queued) == "UNKNOWN"
            if is_unknown and not config.dry_run:
                raise UserError(f"job {job.id} of {run_dir} may still be queued: {problem}; try again on a login node")
        pending.append((run_dir, command))
    if not pending:
        return []
    run_dirs = [run_dir for run_dir, _ in pending]
    job_dir = (run_dirs[0].parent if config.sweep else run_dirs[0]) / "slurm"
    check_job_dir(job_dir, config.cluster)
    code = Path(config.code_copy or job_dir / "code" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    if config.dry_run:
        _print_script(config, job_dir, run_dirs, code)
        return run_dirs
    missing_program = next((program for program in ("sbatch", "srun") if not shutil.which(program)), None)
    if config.cluster == "slurm" and missing_program:
        raise UserError(f"{missing_program} is not installed here: submit on a login node, or pass --profile local")
    for line in describe_sbatch_variables(config):
        print_stderr(line)
    with environment(config.env):
        for _, command in pending:
            prefetch(command)
    new_folders = [path for path in {job_dir, *(JobFolder(run_dir).path for run_dir in run_dirs)} if _is_empty(path)]
    try:
        if not code.is_dir():
            local_packages = [name for _, command in pending for name in command.local_packages]
            snapshot(code, list(dict.fromkeys([*config.code, *local_packages])))
        return _queue(config, job_dir, pending, code)
    except UserError:
        for path in new_folders:
            for entry in path.iterdir() if path.is_dir() else ():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != LOCK:
                    entry.unlink()
            with contextlib.suppress(OSError):  # FolderLock removes a folder that still holds its lock file
                path.rmdir()
        raise


def _is_empty(folder: Path) -> bool:
    """Return whether a folder does not exist, or contains at most a lock file."""
    return not folder.is_dir() or {entry.name for entry in folder.iterdir()} <= {LOCK}


def _print_script(config: SubmitConfig, job_dir: Path, run_dirs: Sequence[Path], code: Path) -> None:
    """Print the batch script of a submission."""
    if config.cluster == "local":
        print(f"no batch script: local processes, one per rank (ranks: {config.ranks})")
        return
    executor = build_executor(config, job_dir, run_dirs, code)
    if config.sweep:
        executor.parameters["map_count"] = len(run_dirs)
    print(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _queue(
    config: SubmitConfig, job_dir: Path, pending: Sequence[tuple[Path, WrappedCommand]], code: Path
) -> list[Path]:
    """Submit commands with submitit, as one job or one job array, and record the jobs in their run folders.

    Args:
        config: config of the submission.
        job_dir: folder of batch scripts, pickles and logs.
        pending: run folder and command of each job.
        code: copy of the code.
    """
    executor, tasks, cwd = build_executor(config, job_dir, [run_dir for run_dir, _ in pending], code), [], config.cwd
    turns = config.turns or (str(job_dir.absolute()) if config.sweep and config.cluster == "local" else "")
    for run_dir, command in pending:
        folder = JobFolder(run_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        task = Task(
            run=str(run_dir.absolute()),
            cwd=cwd,
            command=command.freeze(folder.path),
            scratch=config.scratch,
            data=command.local_data,
            interface=config.interface,
            backend=config.backend,
            limit=config.restarts,
            turns=turns,
            parallel=config.parallel or 1,
        )
        tasks.append(task)
    with submission_environment(config, code):
        try:
            jobs: list[submitit.Job] = []
            if config.sweep and config.cluster == "slurm":
                jobs = executor.submit_array(tasks)
            else:
                jobs.extend(map(executor.submit, tasks))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
            for job in jobs:  # local jobs that have already started
                with contextlib.suppress(OSError):
                    os.kill(int(job.job_id), signal.SIGTERM)
            raise UserError(f"SLURM rejected the job: {_sbatch_error(error)}") from error
    for (run_dir, command), task, job in zip(pending, tasks, jobs, strict=True):
        folder, logs, host = JobFolder(run_dir), str(job_dir.absolute()), socket.gethostname()
        argv = [command.program, *task.command[1:]]
        overrides = {"command": argv, "sweep": [], "turns": turns, "cwd": cwd, "code_copy": str(code)}
        stored = {**asdict(config), **overrides}
        text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)
        write_text(folder.path / "submission.yaml", f"# {escape_control(command.text)}\n{text}")
        folder.add_job(Job(job.job_id, config.cluster, config.nodes, config.ranks, logs, host, time.time()))
        print_stderr(f"job {job.job_id}: {run_dir}")
    return [run_dir for run_dir, _ in pending]


def _working_dir() -> str:
    """Return the working directory as the shell spells it ($PWD). Under an automounter, its resolved path may not exist
    on other nodes."""
    path = os.environ.get("PWD", "")
    return path if path and Path(path).is_dir() and Path(path).samefile(Path.cwd()) else str(Path.cwd())


def _sbatch_error(error: Exception) -> str:
    """Extract sbatch's error message from an exception of submitit."""
    if getattr(error.__cause__ or error, "returncode", None) == TIMED_OUT:
        return f"sbatch did not respond within {SBATCH_S} s; check squeue before submitting again"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    messages = [line for line in lines if line.startswith("sbatch:")] or lines[-1:]
    return " ".join(line.removeprefix("sbatch:").strip().removeprefix("error:").strip() for line in messages)
