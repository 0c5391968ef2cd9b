"""What `crosschannel-slurm submit` can be told: a profile is a file of these keys."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crosschannel.errors import check_rules

# options of sbatch that have keys of their own …
_KEYS = {"job-name", "nodes", "ntasks-per-node", "signal", "time"}
# … and those that the launcher stands on
_OURS = {"array", "error", "open-mode", "output"}


@dataclass
class SubmitConfig:
    """Submit a command to SLURM: crosschannel-slurm submit [--profile NAME|FILE] [--KEY VALUE …] -- COMMAND …"""

    command: list[str] = field(default_factory=list)
    """what the job runs: given after --, as one would type it"""
    cluster: Literal["slurm", "local"] = "slurm"
    """slurm, or local: processes on this machine"""
    name: str = ""
    """of the job; default the run folder's"""
    nodes: int = 1
    """machines"""
    gpus_per_node: int = 0
    """GPUs on each; 0 for a partition of CPUs"""
    tasks_per_node: int = 0
    """ranks on each; 0: one a GPU, or one"""
    cpus_per_task: int = 0
    """cores a rank, its loader workers included; 0: the cluster's default"""
    mem_gb: float = 0.0
    """memory a node, GB; 0: the cluster's default"""
    hours: float = 24.0
    """time limit of one attempt; the run goes on in the next one"""
    partition: str = ""
    """where it queues"""
    account: str = ""
    """who pays"""
    qos: str = ""
    """quality of service"""
    constraint: str = ""
    """features that nodes must have"""
    sbatch: dict[str, str] = field(default_factory=dict)
    """any other option of sbatch, such as --sbatch.reservation=NAME; an empty value for one that takes none"""
    srun: list[str] = field(default_factory=list)
    """options of srun, such as ["--mpi=none"]"""
    setup: list[str] = field(default_factory=list)
    """shell lines before the job: modules, a virtual environment"""
    python: str = ""
    """what starts Python, such as "apptainer exec --nv image.sif python"; default this Python"""
    env: dict[str, str] = field(default_factory=dict)
    """environment variables of the job"""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """of torch.distributed; auto: nccl with GPUs, else gloo"""
    interface: str = ""
    """network interface of gloo and NCCL, such as ib0; default their choice"""
    scratch: str = ""
    """folder on a node's own disk that the data are copied to first, such as $SLURM_TMPDIR"""
    signal_before_s: int = 180
    """seconds before the time limit that the job is told to save and leave"""
    restarts: int = 3
    """how often a job starts again whose rank was killed (no memory, kill -9); preemption and time-outs do not count"""
    sweep: list[str] = field(default_factory=list)
    """KEY=VALUE,VALUE…, any number of times: one run for every combination, as a job array"""
    parallel: int = 256
    """most jobs of an array that run at once"""
    code: list[str] = field(default_factory=list)
    """packages of yours that the job imports, to be copied along with ours"""
    cwd: str = ""
    """where the command runs; default this folder"""
    code_copy: str = ""
    """an earlier copy of the code to run; default a new copy"""
    dry_run: bool = False
    """print the batch script and submit nothing"""
    path_check: bool = True
    """refuse data and weights that this machine does not see"""
    seed: int = 0
    """taken as by every command; a job's own is given after --"""
    device: str = "auto"
    """taken as by every command; a job's own is given after --"""

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


def check(config: SubmitConfig) -> None:
    """Raise a UserError for the first key that cannot be."""
    ours = (_KEYS | _OURS) & {key.replace("_", "-") for key in config.sbatch}
    rules = [
        (config.nodes >= 1, "nodes must be at least 1", config.nodes),
        (config.gpus_per_node >= 0, "gpus_per_node must not be negative", config.gpus_per_node),
        (config.tasks_per_node >= 0, "tasks_per_node must not be negative", config.tasks_per_node),
        (config.cpus_per_task >= 0, "cpus_per_task must not be negative", config.cpus_per_task),
        (config.hours > 0, "hours must be above 0", config.hours),
        (
            1 <= config.signal_before_s < 60 * config.minutes,
            "signal_before_s must be at least 1 and less than the time limit",
            config.signal_before_s,
        ),
        (config.restarts >= 0, "restarts must not be negative", config.restarts),
        (config.parallel >= 1, "parallel must be at least 1", config.parallel),
        (config.cluster == "slurm" or config.nodes == 1, "this machine is one node; nodes must be 1", config.nodes),
        (
            config.cluster == "slurm" or not config.sweep,
            "a sweep needs SLURM: here all would start at once",
            config.sweep,
        ),
        (not ours, "sbatch: these are settled by keys of their own or by the launcher", ", ".join(sorted(ours))),
        (not config.cwd or Path(config.cwd).is_dir(), "cwd: there is no such folder", config.cwd),
        (
            not config.code_copy or Path(config.code_copy).is_dir(),
            "code_copy: there is no such folder",
            config.code_copy,
        ),
    ]
    check_rules(rules)
