"""`crosschannel-slurm COMMAND …`."""

import importlib.util
import os
import shlex
import sys
from pathlib import Path

from crosschannel.command import Command
from crosschannel.config.flags import split_at_separator
from crosschannel.errors import UserError
from crosschannel.program import Program, run_program
from crosschannel.stored import read_yaml
from slurm.job_folder import no_jobs

PROFILES = Path(__file__).parent / "profiles"
PROGRAM = Program(
    "crosschannel-slurm",
    "Submits either command line, unchanged, to a SLURM cluster, and keeps it going until it is done.",
    {
        "submit": Command(
            "slurm.config:SubmitConfig",
            "slurm.submit:submit",
            "queue a command: submit [--profile NAME|FILE] … -- crosschannel pretrain …",
            ("command",),
            configs=PROFILES,
            config_flag="profile",
            tail=" -- COMMAND …",
        ),
        "status": Command(
            "slurm.config:StatusConfig",
            "slurm.watch:status",
            "a table of runs and their jobs",
            ("runs",),
            next_steps="slurm.watch:suggest_after_status",
        ),
        "logs": Command(
            "slurm.config:LogsConfig",
            "slurm.watch:logs",
            "print the logs of all ranks; -f follows",
            ("run",),
            {"f": "follow"},
            next_steps=("crosschannel-slurm status {run}", "crosschannel-slurm cancel {run}"),
        ),
        "cancel": Command(
            "slurm.config:CancelConfig",
            "slurm.watch:cancel",
            "cancel the jobs of runs",
            ("runs",),
            next_steps="slurm.watch:suggest_after_cancel",
        ),
        "resume": Command(
            "slurm.config:SubmitConfig",
            "slurm.submit:submit",
            "resubmit a run as it was submitted: resume RUN …",
            configs=PROFILES,
            config_flag="profile",
            head=" RUN",
        ),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input."""
    return run_program(PROGRAM, argv, _translate)


def _translate(words: list[str]) -> list[str]:
    """Check a submission, and turn ``resume RUN`` into ``submit --profile`` with the stored submission of the run."""
    options, command = split_at_separator(words)
    if options[:1] not in (["submit"], ["resume"]) or {"-h", "--help"} & set(options):
        return words
    programs = [place for place, word in enumerate(options) if Path(word).name in ("crosschannel", "transfer")]
    if options[0] == "submit" and not command and programs:
        corrected = [*options[: programs[0]], "--", *options[programs[0] :]]
        raise UserError(f"put -- before the command: crosschannel-slurm {shlex.join(corrected)}")
    if options[0] == "resume":
        words = ["submit", *_stored(options[1:] or command), *["--", *command] * bool(options[1:] and command)]
    if importlib.util.find_spec("submitit") is None:
        raise UserError("submitit is missing: pip install 'crosschannel[slurm]'")
    return words


def _stored(words: list[str]) -> list[str]:
    """Return the flags that resubmit a run: its stored submission, overridden by the given flags."""
    if not words or words[0].startswith("-"):
        raise UserError("resume takes a run folder: crosschannel-slurm resume RUN")
    path = Path(words[0], "slurm", "submission.yaml")
    if not path.is_file():
        raise UserError(no_jobs(words[0]))
    stored_cwd = read_yaml(path).get("cwd")
    cwd = Path(stored_cwd) if isinstance(stored_cwd, str) and stored_cwd else None
    if cwd is None or not cwd.is_dir():
        raise UserError(f"{path} does not name a folder that is here: it was submitted from {cwd or 'nowhere'}")
    path = path.absolute()
    os.chdir(cwd)
    return [f"--profile={path}", *words[1:]]


if __name__ == "__main__":
    sys.exit(main())
