"""`crosschannel-slurm status`, `logs`, `cancel`: what the queue and the run folders say; no accounting needed."""

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
from slurm.job_folder import Job, JobFolder, no_jobs
from slurm.queue import Queued

_LOG = re.compile(r"_(\d+)_log\.\w+$")


def is_active(job: Job, queued: dict[str, Queued] | None) -> bool:
    """Whether a job waits or runs, as far as can be known here.

    Args:
        job: of a run.
        queued: what SLURM's queue holds; None where it cannot be asked.
    """
    if job.cluster == "slurm":
        return queued is not None and job.id in queued
    command = Path(f"/proc/{job.id}/cmdline")
    return job.host == socket.gethostname() and command.is_file() and b"submitit" in command.read_bytes()


def state_of(job: Job, folder: JobFolder, queued: dict[str, Queued] | None) -> str:
    """As squeue names it while a job is in the queue; then how it ended: FINISHED, FAILED, CANCELLED, STOPPED."""
    events = [event["event"] for event in folder.events(job.id)]
    if is_active(job, queued):
        return queued[job.id].state if job.cluster == "slurm" else "RUNNING" if events else "PENDING"
    ended = {"finished": "FINISHED", "failed": "FAILED", "cancelled": "CANCELLED"}.get(events[-1] if events else "")
    if ended:
        return ended
    known = queued is not None if job.cluster == "slurm" else job.host == socket.gethostname()
    return "STOPPED" if known else "UNKNOWN"


def runs_below(paths: Sequence[str]) -> list[JobFolder]:
    """The runs that have jobs: the folders themselves, or those inside.

    Raises:
        UserError: a folder does not exist.
    """
    found: dict[Path, JobFolder] = {}
    for name in paths:
        if not Path(name).is_dir():
            raise UserError(f"no folder {name}")
        for top, folders, _ in os.walk(name):
            folders[:] = sorted(set(folders) - {"slurm", "checkpoints", "samples", "tensorboard"})
            if JobFolder(top).jobs():
                found.setdefault(Path(top), JobFolder(top))
    return list(found.values())


def status(config: StatusConfig) -> None:
    folders, (queued, problem) = runs_below(config.runs), queue.queue()
    table, reasons = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)), []
    for head in ("run", "job", "state", "nodes", "step", "loss", "images/s", "left", "starts"):
        table.add_column(head, overflow="fold" if head == "run" else "ellipsis", no_wrap=head != "run")
    for folder in folders:
        *cells, why = map(escape_control, _row(folder, queued))
        table.add_row(*cells)
        reasons += [f"{folder.run}: {why}"] if why else []
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = stdout_console(width=None if narrow else 200, soft_wrap=False)
    console.print(table if folders else f"no jobs below {', '.join(config.runs)}")
    for line in reasons:
        console.print(line, soft_wrap=True)
    if queued is None and any(folder.jobs()[-1].cluster == "slurm" for folder in folders):
        print_stderr(f"SLURM's queue cannot be read: {problem}")


def suggest_after_status(config: StatusConfig) -> list[str]:
    """Commands to type next, for the first run."""
    runs = [str(folder.run) for folder in runs_below(config.runs)][:1]
    steps = ("crosschannel-slurm logs {run} -f", "crosschannel-slurm cancel {run}")
    return [format_command(step, run=run) for run in runs for step in steps]


def _row(folder: JobFolder, queued: dict[str, Queued] | None) -> list[str]:
    """The cells of a run, and why it waits or failed."""
    job = folder.jobs()[-1]
    state, events = state_of(job, folder, queued), folder.events(job.id)
    attempts = [event["attempt"] for event in events if event["event"] == "started"]
    waits = state == "PENDING" and job.cluster == "slurm"
    causes = [event["cause"] for event in events if event["event"] in ("failed", "killed") and event["cause"]]
    why = queued[job.id].reason if waits else causes[-1] if causes and state != "FINISHED" else ""
    step, loss, speed, left = _progress(folder.run, state)
    starts = str(len(set(attempts)))
    return [str(folder.run), job.id, state.lower(), str(job.nodes), step, loss, speed, left, starts, why]


def _progress(run: Path, state: str) -> tuple[str, str, str, str]:
    """Step, loss, images/s and time left, by the last line that the run has logged."""
    needed = {"train/loss", "train/images_per_s", "train/epoch"}
    rows = [row for row in read_metrics(run) if needed <= row.keys() and row["train/epoch"] > 1e-6]
    try:
        asked = build_stored(TrainConfig, read_yaml(run / "config.yaml").get("train"), "train")
    except UserError:
        rows = []
    if not rows:
        return "-", "-", "-", "-"
    last = rows[-1]
    step, speed = last["step"], last["train/images_per_s"]
    steps = total_steps(asked, step * asked.batch / last["train/epoch"])
    left = clock((steps - step) * asked.batch / max(speed, 1e-9)) if state == "RUNNING" else "-"
    return f"{step}/{steps}", f"{last['train/loss']:.4f}", f"{speed:.0f}", left


def logs(config: LogsConfig) -> None:
    """Print the logs of all ranks, each line behind its rank; with ``follow`` until the job has ended.

    Raises:
        UserError: the run has no job.
    """
    folder = _with_jobs(config.run)
    job, places, asked, active = folder.jobs()[-1], {}, -60.0, config.follow
    while True:
        if config.follow and time.monotonic() - asked > 10:
            queued, problem = queue.queue()
            active, asked = is_active(job, queued), time.monotonic()
            if queued is None and job.cluster == "slurm":
                print_stderr(f"SLURM's queue cannot be read: {problem}; these are the logs so far")
        paths = [path for path in Path(job.logs).glob(f"{job.id}_*_log.*") if _LOG.search(path.name)]
        for path in sorted(paths, key=_rank):
            places[path] = _print_from(path, places.get(path), f"[{_rank(path)}] ", config.lines, job.ranks > 1)
        sys.stdout.flush()
        if not active:
            return
        time.sleep(1)


def _rank(path: Path) -> int:
    return int(_LOG.search(path.name)[1])


def _print_from(path: Path, start: int | None, label: str, lines: int, labelled: bool) -> int:
    """Print whole lines from a place in a file on; returns the place behind them."""
    with path.open("rb") as file:
        file.seek(start or 0)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    shown = whole.decode(errors="replace").splitlines()
    if start is None and lines:
        shown = shown[-lines:]
    for line in shown:
        print(label * labelled + escape_control(line))
    return (start or 0) + len(whole)


def cancel(config: CancelConfig) -> None:
    """Tell running jobs to save and leave (those told before are ended at once), and take waiting ones off the queue.

    Raises:
        UserError: a run has no job, or it cannot be cancelled from here.
    """
    folders, (queued, problem) = runs_below(config.runs), queue.queue()
    if not folders:
        raise UserError(f"no jobs below {', '.join(config.runs)}")
    for folder in folders:
        job = folder.jobs()[-1]
        state, events = state_of(job, folder, queued), folder.events(job.id)
        if state == "UNKNOWN":
            reason = f"it was started on {job.host}" if job.cluster == "local" else f"no answer from SLURM: {problem}"
            raise UserError(f"job {job.id} of {folder.run} cannot be cancelled here: {reason}")
        if not is_active(job, queued):
            print_stderr(f"{folder.run}: job {job.id} has ended already")
            continue
        told = any(event["event"] == "cancelled" for event in events)
        folder.add_event(job.id, max((event["attempt"] for event in events), default=0), "cancelled")
        if job.cluster == "local":
            os.kill(int(job.id), signal.SIGINT if told else signal.SIGTERM)
        elif not (queue.cancel if told or state != "RUNNING" else queue.send_sigterm)(job.id):
            raise UserError(f"scancel could not cancel job {job.id} of {folder.run}")
        how = "saves and ends; once more ends it at once" if state == "RUNNING" and not told else "is cancelled"
        print_stderr(f"{folder.run}: job {job.id} {how}; crosschannel-slurm resume goes on")


def suggest_after_cancel(config: CancelConfig) -> list[str]:
    """Commands to type next."""
    first = str(runs_below(config.runs)[0].run)
    return [
        format_command("crosschannel-slurm status {runs}", runs=config.runs),
        format_command("crosschannel-slurm resume {run}", run=first),
    ]


def _with_jobs(run: str) -> JobFolder:
    folder = JobFolder(run)
    if not folder.jobs():
        raise UserError(no_jobs(run))
    return folder
