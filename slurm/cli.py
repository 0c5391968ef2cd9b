"""The command line `crosschannel-slurm COMMAND …`."""

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
from slurm.job_folder import no_jobs_reason

PROFILES = Path(__file__).parent / "profiles"
PROGRAM = Program(
    "crosschannel-slurm",
    "Submits `crosschannel` and `transfer` commands to a SLURM cluster, and restarts them until they finish.",
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
            "show a table of runs and their jobs",
            ("runs",),
            next_steps="slurm.watch:suggest_after_status",
        ),
        "logs": Command(
            "slurm.config:LogsConfig",
            "slurm.watch:logs",
            "print the logs of all ranks; -f follows them",
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
            "resubmit a run with its stored settings: resume RUN …",
            configs=PROFILES,
            config_flag="profile",
            head=" RUN",
        ),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line, and return the exit code: 0 on success, 2 for invalid input."""
    return run_program(PROGRAM, argv, _translate)


def _translate(argv: list[str]) -> list[str]:
    """Check a submission, and translate ``resume RUN`` to ``submit --profile=RUN/slurm/submission.yaml``."""
    options, command = split_at_separator(argv)
    if options[:1] not in (["submit"], ["resume"]) or {"-h", "--help"} & set(options):
        return argv
    programs = [index for index, argument in enumerate(options) if Path(argument).name in ("crosschannel", "transfer")]
    if options[0] == "submit" and not command and programs:
        corrected = [*options[: programs[0]], "--", *options[programs[0] :]]
        raise UserError(f"put -- before the command: crosschannel-slurm {shlex.join(corrected)}")
    if options[0] == "resume":
        argv = ["submit", *_stored_flags(options[1:] or command), *["--", *command] * bool(options[1:] and command)]
    if importlib.util.find_spec("submitit") is None:
        raise UserError("submitit is not installed: pip install 'crosschannel[slurm]'")
    return argv


def _stored_flags(arguments: list[str]) -> list[str]:
    """Return the flags of ``submit`` that resubmit a run.

    Args:
        arguments: run folder, then flags that override its stored submission.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UserError("resume requires a run folder: crosschannel-slurm resume RUN")
    path = Path(arguments[0], "slurm", "submission.yaml")
    if not path.is_file():
        raise UserError(no_jobs_reason(arguments[0]))
    stored_cwd = read_yaml(path).get("cwd")
    cwd = Path(stored_cwd) if isinstance(stored_cwd, str) and stored_cwd else None
    if cwd is None or not cwd.is_dir():
        raise UserError(
            f"cannot resume {path}: its working directory {cwd or '(not recorded)'} does not exist on this machine"
        )
    path = path.absolute()
    os.chdir(cwd)
    return [f"--profile={path}", *arguments[1:]]


if __name__ == "__main__":
    sys.exit(main())
