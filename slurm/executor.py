"""submitit's executors, and the environment that jobs are submitted in."""

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import submitit
import submitit.slurm.slurm
from submitit.slurm.slurm import _make_sbatch_string

from crosschannel.errors import UserError
from slurm.config import SubmitConfig

# Variables that hold a site's defaults, and the option of each: sbatch gets one unless submit sets its option.
_SITE_DEFAULTS = {
    "SBATCH_ACCOUNT": "account", "SBATCH_CLUSTERS": "clusters", "SLURM_CLUSTERS": "clusters",
    "SBATCH_CONSTRAINT": "constraint", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
}  # fmt: skip
_CONNECTION = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
_SLURM_VARIABLES = ("SLURM_", "SRUN_", "SBATCH_", "SALLOC_", "SUBMITIT_")
_PERCENT = "crosschannelpercentsign"  # replaces % while submitit writes the patterns of log files
SBATCH_S, TIMED_OUT = 60, 124  # seconds that sbatch may take, and timeout(1)'s exit code after them


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's executor, with support for % in folder names and for dry runs without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        """Return the batch script. sbatch and srun expand %j and the like in log file names; %% is a percent sign."""
        folder = str(self.folder).replace("%", _PERCENT)
        return _make_sbatch_string(command, folder, **self.parameters).replace(_PERCENT, "%%")

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["timeout", str(SBATCH_S), *super()._make_submission_command(submission_file_path)]


submitit.slurm.slurm.SlurmExecutor = _SlurmExecutor  # submitit looks this name up to build the executor of an array


def check_home(home: Path, cluster: str) -> None:
    """Raise a UserError if the folder's path cannot be part of a log file pattern.

    submitit expands four patterns anywhere in a path, sbatch has no escape for a backslash or a line break, and
    srun 22.05 fails on some pairs of escaped percent signs.
    """
    match = re.search(r"%[jtAa]" if cluster == "local" else r"%[jtAa]|[\\\n\r]|%.*%", str(home.absolute()))
    if match:
        raise UserError(f"{home.parent}: a path with {match[0]!r} cannot hold a job's logs; give another --out")


def build_executor(config: SubmitConfig, home: Path, places: Sequence[Path], code: Path) -> submitit.core.core.Executor:
    """submitit's executor with everything that the config asks for."""
    python = config.python or shlex.quote(sys.executable)
    if config.cluster == "local":
        if config.setup:
            lines = "; ".join([*config.setup, f'exec {python} "$@"'])
            python = f"bash -c {shlex.quote(lines)} bash"
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        executor = submitit.LocalExecutor(home, python=python)
        executor.update_parameters(
            timeout_min=60 * config.hours * len(places),  # those of a sweep wait for one another
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
        "array_parallelism": config.parallel or 256,
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
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Other environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def variables_of_sbatch(config: SubmitConfig) -> list[str]:
    """Describe the variables of sbatch in the environment: those passed on, and those ignored."""
    with outside_of_jobs(config, Path()) if config.cluster == "slurm" else environment({}):
        remaining = set(os.environ)
    passed_on = sorted(_SITE_DEFAULTS.keys() & remaining)
    ignored = sorted(key for key in os.environ if key.startswith("SBATCH_") and key not in remaining)
    lines = [f"from the environment: {', '.join(f'{key}={os.environ[key]}' for key in passed_on)}"] * bool(passed_on)
    return lines + [f"ignored: {', '.join(ignored)}; the keys of submit set these options"] * bool(ignored)


@contextlib.contextmanager
def outside_of_jobs(config: SubmitConfig, code: Path) -> Iterator[None]:
    """Enter the environment for submitting a job.

    SLURM's variables are removed: they would override the batch script's options, or belong to the job that this
    process runs in. Local jobs inherit the environment, so they also get the variables that a batch script would set,
    and are detached from the terminal.
    """
    site_defaults = {
        key for key, option in _SITE_DEFAULTS.items() if not (getattr(config, option, "") or option in config.sbatch)
    }
    preserved = _CONNECTION | site_defaults
    with environment({}):
        os.environ.pop("CROSSCHANNEL_STAGED_DATA", None)
        for key in list(os.environ):
            if key.startswith(_SLURM_VARIABLES) and key not in preserved:
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
