"""`crosschannel-slurm COMMAND …`."""

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path

from crosschannel import command_line
from crosschannel.command_line import Command, Program
from crosschannel.errors import UserError
from crosschannel.parsing import options_of
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
            configs=PROFILES,
            told_by="profile",
            tail=" -- COMMAND …",
        ),
        "status": Command(
            "slurm.config:StatusConfig",
            "slurm.watch:status",
            "a table of runs and their jobs",
            ("runs",),
            after="slurm.watch:after_status",
        ),
        "logs": Command(
            "slurm.config:LogsConfig",
            "slurm.watch:logs",
            "what all ranks wrote; -f follows",
            ("run",),
            {"f": "follow"},
            after="slurm.watch:after_logs",
        ),
        "cancel": Command(
            "slurm.config:CancelConfig",
            "slurm.watch:cancel",
            "end the jobs of runs",
            ("runs",),
            after="slurm.watch:after_cancel",
        ),
        "resume": Command(
            "slurm.config:SubmitConfig",
            "slurm.submit:submit",
            "queue a run again, as it was: resume RUN …",
            configs=PROFILES,
            told_by="profile",
            head=" RUN",
        ),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input."""
    return command_line.main(PROGRAM, argv, _prepared)


def _prepared(argv: list[str]) -> list[str]:
    """Translate a command line to plain flags: the command after ``--`` (of `submit`), ``--profile``, repeated
    ``--sweep``, ``-f``, and the stored submission of a run (of `resume`)."""
    if argv[:2] == ["resume", "--"]:
        argv = ["resume", *argv[2:]]
    options = options_of(argv)
    if options[:1] not in (["submit"], ["resume"]):
        return [*("--follow" if word == "-f" else word for word in options), *argv[len(options) :]]
    command, argv = argv[len(options) + 1 :], options
    if {"-h", "--help"} & set(argv):
        return argv
    programs = [place for place, word in enumerate(argv) if Path(word).name in ("crosschannel", "transfer")]
    if argv[0] == "submit" and not command and programs:
        whole = [*argv[: programs[0]], "--", *argv[programs[0] :]]
        raise UserError(f"put -- before the command: crosschannel-slurm {shlex.join(whole)}")
    if argv[0] == "resume":
        argv = ["submit", *_stored(argv[1:])]
    if importlib.util.find_spec("submitit") is None:
        raise UserError("submitit is missing: pip install 'crosschannel[slurm]'")
    words, axes = [], []
    rest = iter(argv)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag == "--sweep":
            axes.append(value if equals else next(rest, ""))
        elif flag == "--profile":
            words.append("--config=" + (value if equals else next(rest, "")))
        elif word in ("--no-path-check", "--no_path_check"):
            words.append("--path_check=false")
        else:
            words.append(word)
    words += [f"--command={json.dumps(command, ensure_ascii=False)}"] * bool(command)
    return words + [f"--sweep={json.dumps(axes, ensure_ascii=False)}"] * bool(axes)


def _stored(words: list[str]) -> list[str]:
    """The flags that submit a run again as it was submitted, and after them those given now."""
    if not words or words[0].startswith("-"):
        raise UserError("resume takes a run folder: crosschannel-slurm resume RUN")
    path = Path(words[0], "slurm", "submission.yaml")
    if not path.is_file():
        raise UserError(no_jobs(words[0]))
    named = read_yaml(path).get("cwd")
    cwd = Path(named) if isinstance(named, str) and named else None
    if cwd is None or not cwd.is_dir():
        raise UserError(f"{path} does not name a folder that is here: it was submitted from {cwd or 'nowhere'}")
    path = path.absolute()
    os.chdir(cwd)
    return [f"--config={path}", *words[1:]]


if __name__ == "__main__":
    sys.exit(main())
