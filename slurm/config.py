"""What `crosschannel-slurm submit` can be told: a profile is a file of these keys."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from crosschannel.config.load import require
from crosschannel.config.training import PlainConfig
from crosschannel.config.types import HIDDEN, Count, Line, NonNegative

# options of sbatch that have keys of their own …
_KEYS = {"job-name", "nodes", "ntasks-per-node", "signal", "time"}
# … and those that the launcher stands on
_OURS = {"array", "error", "open-mode", "output"}


@dataclass
class SubmitConfig(PlainConfig):
    """Submit a command to SLURM, as one would type it on this machine."""

    command: Annotated[list[str], HIDDEN] = field(default_factory=list)
    """what the job runs: given after --"""
    cluster: Literal["slurm", "local"] = "slurm"
    """slurm, or local: processes on this machine"""
    name: Line = ""
    """of the job; default the run folder's"""
    nodes: Annotated[int, Interval(ge=1, le=100_000)] = 1
    """machines"""
    gpus_per_node: Annotated[int, Interval(ge=0, le=1024)] = 0
    """GPUs on each; 0 for a partition of CPUs"""
    tasks_per_node: Annotated[int, Interval(ge=0, le=1024)] = 0
    """ranks on each; 0: one a GPU, or one"""
    cpus_per_task: Annotated[int, Interval(ge=0, le=4096)] = 0
    """cores a rank, its loader workers included; 0: the cluster's default"""
    mem_gb: NonNegative = 0.0
    """memory a node, GB; 0: the cluster's default"""
    hours: Annotated[float, Interval(gt=0, le=100_000)] = 24.0
    """time limit of one attempt; the run goes on in the next one"""
    partition: Line = ""
    """where it queues"""
    account: Line = ""
    """who pays"""
    qos: Line = ""
    """quality of service"""
    constraint: Line = ""
    """features that nodes must have"""
    sbatch: dict[str, Line] = field(default_factory=dict)
    """any other option of sbatch, such as --sbatch.reservation=NAME; an empty value for one that takes none"""
    srun: list[Line] = field(default_factory=list)
    """options of srun, such as ["--mpi=none"]"""
    setup: list[str] = field(default_factory=list)
    """shell lines before the job: modules, a virtual environment"""
    python: Line = ""
    """what starts Python, such as "apptainer exec --nv image.sif python"; default this Python"""
    env: dict[str, str] = field(default_factory=dict)
    """environment variables of the job"""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """of torch.distributed; auto: nccl with GPUs, else gloo"""
    interface: Line = ""
    """network interface of gloo and NCCL, such as ib0; default their choice"""
    scratch: Line = ""
    """folder on a node's own disk that the data are copied to first, such as $SLURM_TMPDIR"""
    signal_before_s: Count = 180
    """seconds before the time limit that the job is told to save and leave"""
    restarts: Annotated[int, Ge(0)] = 3
    """how often a job starts again whose rank was killed (no memory, kill -9); preemption and time-outs do not count"""
    sweep: list[str] = field(default_factory=list)
    """KEY=VALUE,VALUE…, any number of times: one run for every combination, as a job array"""
    parallel: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """most runs of a sweep that go on at once; 0: 256, on this machine one"""
    turns: Annotated[str, HIDDEN] = ""
    """folder of the sweep on this machine that a run is of"""
    code: list[str] = field(default_factory=list)
    """additional packages that the job imports; the packages that the command names are copied anyway"""
    cwd: str = ""
    """where the command runs; default this folder"""
    code_copy: str = ""
    """an earlier copy of the code to run; default a new copy"""
    dry_run: bool = False
    """print the batch script and submit nothing"""
    path_check: bool = True
    """refuse data and weights that this machine does not see"""

    @property
    def minutes(self) -> int:
        """The time limit, as SLURM counts."""
        return math.ceil(60 * self.hours)

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def check(self) -> None:
        ours = (_KEYS | _OURS) & {key.replace("_", "-") for key in self.sbatch}
        require(
            self.signal_before_s < 60 * self.minutes,
            "signal_before_s must be less than the time limit",
            self.signal_before_s,
        )
        on_slurm = self.cluster == "slurm"
        require(on_slurm or self.nodes == 1, "this machine is one node; nodes must be 1", self.nodes)
        shares = not on_slurm and self.sweep and self.parallel > 1 and self.gpus_per_node
        require(not shares, "runs of a sweep on this machine would share its GPUs; parallel must be 1", self.parallel)
        words = "sbatch: these are settled by keys of their own or by the launcher"
        odd = [key for key in self.sbatch if not re.fullmatch(r"[a-z][a-z0-9_-]*", key)]
        odd += [key for key in self.env if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key)]
        require(not odd, "names in sbatch and env must be those of options and of variables", odd)
        require(not ours, words, ", ".join(sorted(ours)))
        require(not self.cwd or Path(self.cwd).is_dir(), "cwd: there is no such folder", self.cwd)
        here = not self.code_copy or Path(self.code_copy).is_dir()
        require(here, "code_copy: there is no such folder", self.code_copy)


@dataclass
class StatusConfig(PlainConfig):
    """Show runs: job, state, nodes, step, loss, speed, time left, starts."""

    runs: list[str] = field(default_factory=lambda: ["runs"])
    """run folders, or folders of them"""


@dataclass
class LogsConfig(PlainConfig):
    """Show what all ranks of a run's last job wrote."""

    run: str
    """a run folder"""
    follow: bool = False
    """go on until the job has ended"""
    lines: Annotated[int, Ge(0)] = 0
    """only so many last lines of each file; 0: all"""


@dataclass
class CancelConfig(PlainConfig):
    """End the jobs of runs; what they have saved stays."""

    runs: list[str]
    """run folders, or folders of them"""
