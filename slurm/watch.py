"""`crosschannel-slurm status`, `logs` and `cancel`. They read the run folders and SLURM's queue; SLURM's
accounting is not needed."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from crosschannel.command import format_command
from crosschannel.config.load import build_stored
from crosschannel.config.training import TrainConfig, total_steps
from crosschannel.console import escape_control, print_stderr, stdout_console
from crosschannel.errors import UserError
from crosschannel.runs.folder import read_metrics
from crosschannel.stored import read_yaml
from crosschannel.training.log import clock
from slurm import queue
from slurm.config import CancelConfig, LogsConfig, StatusConfig
from slurm.job_folder import Job, JobFolder, no_jobs_reason
from slurm.queue import QueuedJob

_LOG = re.compile(r"_(\d+)_log\.\w+$")


def is_active(job: Job, queued: dict[str, QueuedJob] | None) -> bool:
    """Return whether a job is pending or running, as far as can be determined on this machine.

    Args:
        job: job of a run.
        queued: jobs in SLURM's queue, by id; None if the queue could not be read.
    """
    if job.cluster == "slurm":
        return queued is not None and job.id in queued
    command = Path(f"/proc/{job.id}/cmdline")
    return job.host == socket.gethostname() and command.is_file() and b"submitit" in command.read_bytes()


def state_of(job: Job, folder: JobFolder, queued: dict[str, QueuedJob] | None) -> str:
    """Return the state of a job.

    For active jobs it is squeue's state, such as PENDING or RUNNING. For ended jobs it is FINISHED, FAILED, CANCELLED,
    STOPPED (no end recorded) or UNKNOWN (not visible from this machine).
    """
    events = [event["event"] for event in folder.events(job.id)]
    if is_active(job, queued):
        return queued[job.id].state if job.cluster == "slurm" else "RUNNING" if events else "PENDING"
    ended = {"finished": "FINISHED", "failed": "FAILED", "cancelled": "CANCELLED"}.get(events[-1] if events else "")
    if ended:
        return ended
    is_visible = queued is not None if job.cluster == "slurm" else job.host == socket.gethostname()
    return "STOPPED" if is_visible else "UNKNOWN"


def runs_below(paths: Sequence[str]) -> list[JobFolder]:
    """Find the runs with jobs among the given folders and their subfolders.

    Raises:
        UserError: a folder does not exist.
    """
    runs: dict[Path, JobFolder] = {}
    for name in paths:
        if not Path(name).is_dir():
            raise UserError(f"the folder {name} does not exist")
        for top, folders, _ in os.walk(name):
            folders[:] = sorted(set(folders) - {"slurm", "checkpoints", "samples", "tensorboard"})
            if JobFolder(top).jobs():
                runs.setdefault(Path(top), JobFolder(top))
    return list(runs.values())


def status(config: StatusConfig) -> None:
    """Print a table of runs and their last jobs, then the reasons why runs wait or failed.

    Raises:
        UserError: a folder does not exist.
    """
    folders, (queued, problem) = runs_below(config.runs), queue.queue()
    table, reasons = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)), []
    for title in ("run", "job", "state", "nodes", "step", "loss", "images/s", "left", "starts"):
        table.add_column(title, overflow="fold" if title == "run" else "ellipsis", no_wrap=title != "run")
    for folder in folders:
        *cells, reason = map(escape_control, _row(folder, queued))
        table.add_row(*cells)
        reasons += [f"{folder.run}: {reason}"] if reason else []
    has_known_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = stdout_console(width=None if has_known_width else 200, soft_wrap=False)
    console.print(table if folders else f"no jobs below {', '.join(config.runs)}")
    for line in reasons:
        console.print(line, soft_wrap=True)
    if queued is None and any(folder.jobs()[-1].cluster == "slurm" for folder in folders):
        print_stderr(f"could not read SLURM's queue: {problem}")


def suggest_after_status(config: StatusConfig) -> list[str]:
    """Return the suggested next commands, for the first run."""
    runs = [str(folder.run) for folder in runs_below(config.runs)][:1]
    steps = ("crosschannel-slurm logs {run} -f", "crosschannel-slurm cancel {run}")
    return [format_command(step, run=run) for run in runs for step in steps]


def _row(folder: JobFolder, queued: dict[str, QueuedJob] | None) -> list[str]:
    """Return the table cells of a run, and the reason why it waits or failed."""
    job = folder.jobs()[-1]
    state, events = state_of(job, folder, queued), folder.events(job.id)
    attempts = [event["attempt"] for event in events if event["event"] == "started"]
    is_queued = state == "PENDING" and job.cluster == "slurm"
    causes = [event["cause"] for event in events if event["event"] in ("failed", "killed") and event["cause"]]
    reason = queued[job.id].reason if is_queued else causes[-1] if causes and state != "FINISHED" else ""
    step, loss, speed, left = _progress(folder.run, state)
    starts = str(len(set(attempts)))
    return [str(folder.run), job.id, state.lower(), str(job.nodes), step, loss, speed, left, starts, reason]


def _progress(run: Path, state: str) -> tuple[str, str, str, str]:
    """Return step, loss, images/s and time left, from the last line of the run's metrics log."""
    required = {"train/loss", "train/images_per_s", "train/epoch"}
    rows = [row for row in read_metrics(run) if required <= row.keys() and row["train/epoch"] > 1e-6]
    try:
        train = build_stored(TrainConfig, read_yaml(run / "config.yaml").get("train"), "train")
    except UserError:
        rows = []
    if not rows:
        return "-", "-", "-", "-"
    last = rows[-1]
    step, speed = last["step"], last["train/images_per_s"]
    steps = total_steps(train, step * train.batch / last["train/epoch"])
    left = clock((steps - step) * train.batch / max(speed, 1e-9)) if state == "RUNNING" else "-"
    return f"{step}/{steps}", f"{last['train/loss']:.4f}", f"{speed:.0f}", left


def logs(config: LogsConfig) -> None:
    """Print the logs of all ranks, with each line prefixed by its rank; with ``follow``, continue until the job ends.

    Raises:
        UserError: the run has no job.
    """
    folder = _job_folder(config.run)
    job, offsets, last_check, active = folder.jobs()[-1], {}, -60.0, config.follow
    while True:
        if config.follow and time.monotonic() - last_check > 10:
            queued, problem = queue.queue()
            active, last_check = is_active(job, queued), time.monotonic()
            if queued is None and job.cluster == "slurm":
                print_stderr(f"could not read SLURM's queue: {problem}; printed the logs so far")
        paths = [path for path in Path(job.logs).glob(f"{job.id}_*_log.*") if _LOG.search(path.name)]
        for path in sorted(paths, key=_rank):
            offsets[path] = _print_from(path, offsets.get(path), f"[{_rank(path)}] ", config.lines, job.ranks > 1)
        sys.stdout.flush()
        if not active:
            return
        time.sleep(1)


def _rank(path: Path) -> int:
    return int(_LOG.search(path.name)[1])


def _print_from(path: Path, start: int | None, label: str, lines: int, labelled: bool) -> int:
    """Print the complete lines of a log from an offset on, and return the offset after them.

    Args:
        path: log file.
        start: offset in bytes; None: from the beginning, but only the last ``lines`` lines.
        label: prefix of each line.
        lines: number of lines; 0: all.
        labelled: whether to print the prefix.
    """
    with path.open("rb") as file:
        file.seek(start or 0)
        text = file.read()
    complete = text[: text.rfind(b"\n") + 1]
    printed = complete.decode(errors="replace").splitlines()
    if start is None and lines:
        printed = printed[-lines:]
    for line in printed:
        print(label * labelled + escape_control(line))
    return (start or 0) + len(complete)


def cancel(config: CancelConfig) -> None:
    """Ask running jobs to save and stop, and remove pending jobs from the queue.

    Jobs that were already asked to stop are killed without saving.

    Raises:
        UserError: a run has no job, or its job cannot be cancelled from this machine.
    """
    folders, (queued, problem) = runs_below(config.runs), queue.queue()
    if not folders:
        raise UserError(f"no jobs below {', '.join(config.runs)}")
    for folder in folders:
        job = folder.jobs()[-1]
        state, events = state_of(job, folder, queued), folder.events(job.id)
        if state == "UNKNOWN":
            reason = f"it was started on {job.host}" if job.cluster == "local" else f"SLURM did not respond: {problem}"
            raise UserError(f"could not cancel job {job.id} of {folder.run} from this machine: {reason}")
        if not is_active(job, queued):
            print_stderr(f"{folder.run}: job {job.id} has already ended")
            continue
        was_asked = any(event["event"] == "cancelled" for event in events)
        folder.add_event(job.id, max((event["attempt"] for event in events), default=0), "cancelled")
        if job.cluster == "local":
            os.kill(int(job.id), signal.SIGINT if was_asked else signal.SIGTERM)
        elif not (queue.cancel if was_asked or state != "RUNNING" else queue.send_sigterm)(job.id):
            raise UserError(f"scancel could not cancel job {job.id} of {folder.run}")
        action = f"cancelled job {job.id}"
        if state == "RUNNING" and not was_asked:
            action = f"asked job {job.id} to save and stop (cancel again to kill it)"
        print_stderr(f"{folder.run}: {action}; crosschannel-slurm resume continues the run")


def suggest_after_cancel(config: CancelConfig) -> list[str]:
    """Return the suggested next commands."""
    first = str(runs_below(config.runs)[0].run)
    return [
        format_command("crosschannel-slurm status {runs}", runs=config.runs),
        format_command("crosschannel-slurm resume {run}", run=first),
    ]


def _job_folder(run: str) -> JobFolder:
    """Return the job folder of a run, or raise a UserError if the run has no jobs."""
    folder = JobFolder(run)
    if not folder.jobs():
        raise UserError(no_jobs_reason(run))
    return folder
