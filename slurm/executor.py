"""submitit's executors, and the environment that jobs are submitted in."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import submitit

from slurm.config import SubmitConfig


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's, which can be made (for a dry run) on a machine without SLURM too."""

    @classmethod
    def affinity(cls) -> int:
        return 2


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


@contextlib.contextmanager
def outside_of_jobs(config: SubmitConfig, code: Path) -> Iterator[None]:
    """What a job is submitted with: nothing of a job that we may be in ourselves; and for local jobs, which inherit it,
    what a batch script would set, and no hold on the terminal."""
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
    with environment({}):
        os.environ.pop("CROSSCHANNEL_STAGED_DATA", None)
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
