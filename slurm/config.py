"""Config keys of the `crosschannel-slurm` commands. A profile is a YAML file with keys of `submit`."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from crosschannel.config.load import require
from crosschannel.config.training import PlainConfig
from crosschannel.config.types import HIDDEN, Count, Line, NonNegative

_KEY_OPTIONS = {"job-name", "nodes", "ntasks-per-node", "signal", "time"}  # sbatch options set by other keys
_LAUNCHER_OPTIONS = {"array", "error", "open-mode", "output"}  # sbatch options that the launcher sets


@dataclass
class SubmitConfig(PlainConfig):
    """Submit a command to SLURM. The command is the one that you would run on this machine."""

    command: Annotated[list[str], HIDDEN] = field(default_factory=list)
    """command that the job runs, after --"""
    cluster: Literal["slurm", "local"] = "slurm"
    """where the job runs: on SLURM, or as processes on this machine"""
    name: Line = ""
    """job name; default: name of the run folder"""
    nodes: Annotated[int, Interval(ge=1, le=100_000)] = 1
    """number of nodes"""
    gpus_per_node: Annotated[int, Interval(ge=0, le=1024)] = 0
    """GPUs per node; 0: CPU only"""
    tasks_per_node: Annotated[int, Interval(ge=0, le=1024)] = 0
    """ranks per node; 0: one per GPU, or one without GPUs"""
    cpus_per_task: Annotated[int, Interval(ge=0, le=4096)] = 0
    """CPU cores per rank, shared with its loader workers; 0: the cluster's default"""
    mem_gb: NonNegative = 0.0
    """memory per node, in GB; 0: the cluster's default"""
    hours: Annotated[float, Interval(gt=0, le=100_000)] = 24.0
    """time limit of each attempt, in hours; a run that reaches it resumes in the next attempt"""
    partition: Line = ""
    """partition to queue in"""
    account: Line = ""
    """account to charge"""
    qos: Line = ""
    """quality of service (QOS)"""
    constraint: Line = ""
    """required node features"""
    sbatch: dict[str, Line] = field(default_factory=dict)
    """other options of sbatch, such as --sbatch.reservation=NAME; leave the value empty for options without one"""
    srun: list[Line] = field(default_factory=list)
    """additional options of srun, such as ["--mpi=none"]"""
    setup: list[str] = field(default_factory=list)
    """shell commands to run before the job, for example to load modules or activate a virtual environment"""
    python: Line = ""
    """command that starts Python, such as "apptainer exec --nv image.sif python"; default: this interpreter"""
    env: dict[str, str] = field(default_factory=dict)
    """environment variables to set in the job"""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """torch.distributed backend; auto: nccl with GPUs, else gloo"""
    interface: Line = ""
    """network interface for NCCL and gloo, such as ib0; default: chosen by NCCL and gloo"""
    scratch: Line = ""
    """folder on a node-local disk, such as $SLURM_TMPDIR, to which the data are copied before the run"""
    signal_before_s: Count = 180
    """seconds before the time limit at which the job is asked to save and stop"""
    restarts: Annotated[int, Ge(0)] = 3
    """maximum number of restarts in a row after a rank was killed (out of memory, kill -9); preemption and time-outs do
    not count"""
    sweep: list[str] = field(default_factory=list)
    """KEY=VALUE,VALUE…: submit one run for every combination of values, as a job array; may be repeated"""
    parallel: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """maximum number of runs of a sweep at a time; 0: 256 on SLURM, 1 on this machine"""
    turns: Annotated[str, HIDDEN] = ""
    """sweep folder of a run that belongs to a sweep on this machine"""
    code: list[str] = field(default_factory=list)
    """additional packages to copy for the job; packages named in the command are always copied"""
    cwd: str = ""
    """working directory of the command; default: the current directory"""
    code_copy: str = ""
    """existing copy of the code to run; default: make a new copy"""
    dry_run: bool = False
    """print the batch script and submit nothing"""
    path_check: bool = True
    """check that data and weights exist on this machine"""

    @property
    def minutes(self) -> int:
        """Time limit in whole minutes, SLURM's unit."""
        return math.ceil(60 * self.hours)

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def check(self) -> None:
        reserved = (_KEY_OPTIONS | _LAUNCHER_OPTIONS) & {key.replace("_", "-") for key in self.sbatch}
        require(
            self.signal_before_s < 60 * self.minutes,
            "signal_before_s must be less than the time limit",
            self.signal_before_s,
        )
        on_slurm = self.cluster == "slurm"
        require(on_slurm or self.nodes == 1, "nodes must be 1 with cluster: local", self.nodes)
        shares_gpus = not on_slurm and self.sweep and self.parallel > 1 and self.gpus_per_node
        require(
            not shares_gpus,
            "parallel must be 1 for a sweep with GPUs on this machine, because its runs would share the GPUs",
            self.parallel,
        )
        rule = "sbatch must not contain options that have their own keys or that the launcher sets"
        invalid = [key for key in self.sbatch if not re.fullmatch(r"[a-z][a-z0-9_-]*", key)]
        invalid += [key for key in self.env if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key)]
        require(not invalid, "keys of sbatch must be option names, and keys of env must be names of variables", invalid)
        require(not reserved, rule, ", ".join(sorted(reserved)))
        require(not self.cwd or Path(self.cwd).is_dir(), "cwd must be an existing folder", self.cwd)
        exists = not self.code_copy or Path(self.code_copy).is_dir()
        require(exists, "code_copy must be an existing folder", self.code_copy)


@dataclass
class StatusConfig(PlainConfig):
    """Show runs with job, state, nodes, step, loss, speed, time left and number of starts."""

    runs: list[str] = field(default_factory=lambda: ["runs"])
    """run folders, or folders that contain run folders"""


@dataclass
class LogsConfig(PlainConfig):
    """Print the logs of all ranks of a run's last job."""

    run: str
    """run folder"""
    follow: bool = False
    """keep printing new lines until the job ends"""
    lines: Annotated[int, Ge(0)] = 0
    """number of lines to print from the end of each log; 0: all"""


@dataclass
class CancelConfig(PlainConfig):
    """Cancel the jobs of runs. Saved checkpoints are kept."""

    runs: list[str]
    """run folders, or folders that contain run folders"""
