"""submitit's executors, and the environment in which jobs are submitted."""

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

# Environment variables with a site's defaults → sbatch options. sbatch gets them unless submit sets the option.
_SITE_DEFAULTS = {
    "SBATCH_ACCOUNT": "account", "SBATCH_CLUSTERS": "clusters", "SLURM_CLUSTERS": "clusters",
    "SBATCH_CONSTRAINT": "constraint", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
}  # fmt: skip
_CONNECTION = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
_SLURM_VARIABLES = ("SLURM_", "SRUN_", "SBATCH_", "SALLOC_", "SUBMITIT_")
_PERCENT = "crosschannelpercentsign"  # stands in for % while submitit writes the log file patterns
SBATCH_S, TIMED_OUT = 60, 124  # time limit of sbatch in seconds, and exit code of timeout(1) when it is exceeded


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's executor, with support for % in folder names and for dry runs without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        """Return the batch script, with percent signs in the folder escaped.

        sbatch and srun expand patterns such as %j in log file names; %% is a literal percent sign.
        """
        folder = str(self.folder).replace("%", _PERCENT)
        return _make_sbatch_string(command, folder, **self.parameters).replace(_PERCENT, "%%")

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["timeout", str(SBATCH_S), *super()._make_submission_command(submission_file_path)]


submitit.slurm.slurm.SlurmExecutor = _SlurmExecutor  # submitit looks this class up to build the executor of an array


def check_job_dir(job_dir: Path, cluster: str) -> None:
    """Raise a UserError if the folder's path cannot be part of a log file pattern.

    submitit expands four patterns anywhere in a path, sbatch cannot escape backslashes and line breaks, and srun 22.05
    fails on some pairs of escaped percent signs.
    """
    match = re.search(r"%[jtAa]" if cluster == "local" else r"%[jtAa]|[\\\n\r]|%.*%", str(job_dir.absolute()))
    if match:
        raise UserError(
            f"logs cannot be written to {job_dir.parent}: its path contains {match[0]!r}; choose another --out"
        )


def build_executor(
    config: SubmitConfig, job_dir: Path, run_dirs: Sequence[Path], code: Path
) -> submitit.core.core.Executor:
    """Build the executor of a submission.

    Args:
        config: config of the submission.
        job_dir: folder of batch scripts, pickles and logs.
        run_dirs: run folders of the jobs.
        code: copy of the code, which is put on PYTHONPATH.
    """
    python = config.python or shlex.quote(sys.executable)
    if config.cluster == "local":
        if config.setup:
            lines = "; ".join([*config.setup, f'exec {python} "$@"'])
            python = f"bash -c {shlex.quote(lines)} bash"
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        executor = submitit.LocalExecutor(job_dir, python=python)
        executor.update_parameters(
            timeout_min=60 * config.hours * len(run_dirs),  # includes waiting for the other runs of a sweep
            tasks_per_node=config.ranks_per_node,
            gpus_per_node=config.gpus_per_node,
            visible_gpus=[int(gpu) for gpu in gpus] if all(gpu.isdecimal() for gpu in gpus) else (),
            signal_delay_s=config.signal_before_s,
        )
        return executor
    exports = [f"export {key}={shlex.quote(value)}" for key, value in config.env.items()]
    path = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    runs = " ".join(shlex.quote(str(run_dir.absolute())) for run_dir in run_dirs)
    after = f"{shlex.quote(sys.executable)} -m slurm.after $? {config.ranks} {config.restarts} {runs}"
    cpu_options = (
        [f"--cpus-per-task={config.cpus_per_task}"] if config.cpus_per_task else []
    )  # srun does not inherit the option from sbatch
    parameters = {
        "job_name": config.name or run_dirs[0].name,
        "time": config.minutes,
        "nodes": config.nodes,
        "ntasks_per_node": config.ranks_per_node,
        "signal_delay_s": config.signal_before_s,
        "array_parallelism": config.parallel or 256,
        # The shell ignores SIGTERM, so that it can still run slurm.after.
        "setup": ["trap : TERM", *config.setup, *exports, path],
        "teardown": [after, "exit $?"],
        "srun_args": ["--kill-on-bad-exit=1", "--export=ALL", *cpu_options, *config.srun],
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
    executor = _SlurmExecutor(job_dir, python=python)
    executor.update_parameters(**parameters, **{key: value for key, value in optional.items() if value})
    return executor


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of a block, and restore the environment afterwards."""
    original = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(original)


def describe_sbatch_variables(config: SubmitConfig) -> list[str]:
    """Return messages that list the SBATCH variables in the environment that are passed on or ignored."""
    with submission_environment(config, Path()) if config.cluster == "slurm" else environment({}):
        remaining = set(os.environ)
    passed_on = sorted(_SITE_DEFAULTS.keys() & remaining)
    ignored = sorted(key for key in os.environ if key.startswith("SBATCH_") and key not in remaining)
    lines = [f"from the environment: {', '.join(f'{key}={os.environ[key]}' for key in passed_on)}"] * bool(passed_on)
    return lines + [f"ignored: {', '.join(ignored)}; set these options with keys of submit"] * bool(ignored)


@contextlib.contextmanager
def submission_environment(config: SubmitConfig, code: Path) -> Iterator[None]:
    """Set up the environment in which a job is submitted, for the duration of a block.

    SLURM's variables are removed, because they would override options of the batch script, or belong to the job in
    which this process runs. Local jobs inherit this environment, so the variables that a batch script would set are
    added for them. Local jobs are also detached from the terminal.
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
        sighup_handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by child processes
        streams = [os.dup(descriptor) for descriptor in range(3)]
        devnull = os.open(os.devnull, os.O_RDWR)
        try:
            for descriptor in range(3):
                os.dup2(devnull, descriptor)
            yield
        finally:
            for descriptor, stream in enumerate(streams):
                os.dup2(stream, descriptor)
                os.close(stream)
            os.close(devnull)
            signal.signal(signal.SIGHUP, sighup_handler)
