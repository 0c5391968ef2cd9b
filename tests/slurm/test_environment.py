"""Surroundings of a submission: SLURM's variables, paths with patterns, a controller that does not answer."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from slurm import queue
from slurm.config import SubmitConfig
from slurm.executor import submission_environment
from slurm.job_folder import Job, JobFolder
from slurm.submit import submit

SBATCH = """#!/bin/bash
env | grep -E '^(SLURM|SBATCH|SALLOC|SRUN)_' | sort > {seen}
cp "${{@: -1}}" {script}
echo Submitted batch job 7
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Write a stand-in for one of SLURM's programs to a folder at the head of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, text: str) -> None:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    write("srun", "#!/bin/sh\n")
    write("squeue", "#!/bin/sh\n")
    return write


@pytest.fixture
def submitted(programs, tmp_path, monkeypatch, photo_folder, capsys):
    """Submit a pretraining to a stand-in for sbatch; returns its variables, its script, and our stderr."""
    seen, script = tmp_path / "seen", tmp_path / "script"
    programs("sbatch", SBATCH.format(seen=seen, script=script))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slurm.submit.snapshot", lambda target, _: target.mkdir(parents=True))

    def run(out: str = "runs/a", **keys):
        words = ["crosschannel", "pretrain", f"--data={photo_folder}", "--model.fc=0", "--device=cpu"]
        submit(SubmitConfig(command=[*words, f"--out={out}"], **keys))
        variables = dict(line.partition("=")[::2] for line in seen.read_text().splitlines())
        return variables, script.read_text(), capsys.readouterr().err

    return run


def options(script: str) -> dict[str, str]:
    """Parse the sbatch options of a batch script."""
    words = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    return {word[2:].partition("=")[0]: word.partition("=")[2] for word in words}


FOREIGN = {
    "SBATCH_TIMELIMIT": "1", "SBATCH_JOB_NAME": "theirs", "SBATCH_OUTPUT": "theirs.out", "SBATCH_EXPORT": "NONE",
    "SBATCH_NO_REQUEUE": "1", "SBATCH_ARRAY_INX": "0-9", "SBATCH_GPUS_PER_NODE": "8", "SBATCH_MEM_PER_NODE": "1",
    "SBATCH_SIGNAL": "KILL@1", "SLURM_EXPORT_ENV": "NONE", "SLURM_NTASKS_PER_NODE": "9", "SLURM_KILL_BAD_EXIT": "0",
    "SALLOC_PARTITION": "theirs", "SRUN_CPUS_PER_TASK": "9",
}  # fmt: skip


def test_slurm_variables_do_not_reach_sbatch_and_ignored_ones_are_printed(submitted, monkeypatch):
    for name, value in {**FOREIGN, "SLURM_CONF": "/etc/mine.conf"}.items():
        monkeypatch.setenv(name, value)
    variables, script, said = submitted(hours=2.0)
    assert variables == {"SLURM_CONF": "/etc/mine.conf"}
    assert options(script)["time"] == "120" and options(script)["job-name"] == "a"
    assert all(name in said for name in FOREIGN if name.startswith("SBATCH_"))
    assert all(os.environ[name] == value for name, value in FOREIGN.items())  # our environment is unchanged


@pytest.mark.parametrize("variable", ["SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_QOS", "SBATCH_CONSTRAINT"])
def test_a_site_default_is_passed_on_unless_the_key_is_set(submitted, monkeypatch, variable):
    monkeypatch.setenv(variable, "site")
    variables, script, said = submitted()
    key = variable.partition("_")[2].lower()
    assert variables == {variable: "site"} and key not in options(script)
    assert f"from the environment: {variable}=site" in said
    variables, script, said = submitted("runs/b", **{key: "mine"})
    assert not variables and options(script)[key] == "mine" and f"ignored: {variable}" in said


def test_options_of_the_key_sbatch_override_variables_too(submitted, monkeypatch):
    monkeypatch.setenv("SBATCH_RESERVATION", "site")
    monkeypatch.setenv("SLURM_CLUSTERS", "site")
    variables, _, _ = submitted(sbatch={"reservation": "mine", "clusters": "here"})
    assert not variables


def test_a_submission_from_inside_a_job_inherits_nothing_from_it(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with submission_environment(SubmitConfig(), None):
        assert not {"SLURM_JOB_ID", "SUBMITIT_EXECUTOR"} & os.environ.keys()


def log_file(pattern: str, **values: str) -> str:
    """Expand a pattern as SLURM does (sbatch(1), "filename pattern")."""
    return re.sub(
        r"%(\d*)(.)", lambda match: values.get(match[2], "%" if match[2] == "%" else f"<{match[0]}>"), pattern
    )


@pytest.mark.parametrize("sweep", [[], ["seed=0,1"]])
@pytest.mark.parametrize("name", ["50%", "%x-run", "a%5b c", "100%'s"])
def test_a_percent_sign_in_a_run_folder_is_taken_literally(submitted, tmp_path, name, sweep):
    _, script, _ = submitted(f"runs/{name}", sweep=sweep)
    home, kind = tmp_path / "runs" / name / "slurm", "A_a" if sweep else "j"
    job = "_".join(f"%{letter}" for letter in kind.split("_"))
    (srun,) = (shlex.split(line) for line in script.splitlines() if line.startswith("srun"))
    for stream, ending in (("output", "out"), ("error", "err")):
        written = log_file(options(script)[stream], A="7", a="1", j="7")
        assert written == str(home / f"{job.replace('%A', '7').replace('%a', '1').replace('%j', '7')}_0_log.{ending}")
        of_rank = log_file(srun[srun.index(f"--{stream}") + 1], A="7", a="1", j="7", t="3")
        assert of_rank == written.replace("_0_log", "_3_log")
    assert srun[-1] == str(home)  # submitit's own folder is taken literally


@pytest.mark.parametrize("name", ["at%j", "%t", "a%Ab", "%a", "%x%u", "back\\slash", "two\nlines"])
def test_a_run_folder_that_slurm_or_submitit_would_expand_is_refused(submitted, tmp_path, name):
    from crosschannel.errors import UserError

    with pytest.raises(UserError, match=r"(?s)logs cannot be written to .*; choose another --out"):
        submitted(f"runs/{name}")
    assert not (tmp_path / "runs").exists()


FAILING = "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
HANGING = "#!/bin/sh\nexec sleep 60\n"


@pytest.mark.parametrize("program", [FAILING, HANGING])
def test_a_controller_that_does_not_answer_is_reported_within_seconds(
    programs, submitted, tmp_path, monkeypatch, program
):
    from crosschannel.errors import UserError

    monkeypatch.setattr(queue, "SQUEUE_TIMEOUT_S", 0.5)
    programs("squeue", program)
    began = time.monotonic()
    words = "Unable to contact slurm controller" if program == FAILING else "squeue did not respond within 0.5 s"
    with pytest.raises(UserError, match=f"SLURM did not respond: .*{words}.*; nothing was submitted"):
        submitted()
    assert time.monotonic() - began < 8 and not (tmp_path / "runs").exists()


def test_an_sbatch_that_hangs_is_reported(programs, submitted, tmp_path, monkeypatch):
    from crosschannel.errors import UserError

    monkeypatch.setattr("slurm.executor.SBATCH_S", 0.5)
    programs("sbatch", HANGING)
    with pytest.raises(UserError, match="sbatch did not respond"):
        submitted()
    assert not list((tmp_path / "runs").rglob("jobs.jsonl"))


@pytest.mark.parametrize(
    "command, code, words",
    [
        ("status {run}", 0, "unknown"),
        ("status {run}", 0, "could not read SLURM's queue: squeue: slurm_load_jobs error: Unable to contact"),
        ("cancel {run}", 2, "from this machine: SLURM did not respond: squeue: slurm_load_jobs error"),
        ("logs {run} -f", 0, "printed the logs so far"),
        ("logs {sweep}", 2, "is a folder of runs (2 with jobs); choose one, such as {sweep}/a=0"),
        ("resume {sweep}", 2, "is a folder of runs (2 with jobs); choose one, such as {sweep}/a=0"),
        ("logs {tmp}/gone", 2, "has no jobs: the folder does not exist"),
        ("logs {run}", 0, "a line of rank 0"),
        ("logs -- {run}", 0, "a line of rank 0"),
        ("logs {sweep}/a=1", 0, "a line of the array"),
        ("status -- {run}", 0, "unknown"),
    ],
)
def test_commands_on_runs_without_a_controller_and_on_sweeps(programs, tmp_path, capsys, command, code, words):
    from slurm.cli import main

    programs("squeue", FAILING)
    places = {"run": tmp_path / "run", "sweep": tmp_path / "rates", "tmp": tmp_path}
    jobs = {"run": "12", "rates/a=0": "13_0", "rates/a=1": "13_1"}
    for run, number in jobs.items():
        JobFolder(tmp_path / run).add_job(Job(number, "slurm", 1, 1, str(tmp_path / "logs"), "there", 0.0))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "12_0_log.out").write_text("a line of rank 0\n")
    (tmp_path / "logs" / "13_1_0_log.out").write_text("a line of the array\n")
    assert main(command.format(**places).split()) == code
    said = capsys.readouterr()
    assert words.format(**places) in said.out + said.err


def test_squeue_filters_of_the_user_do_not_hide_jobs(programs, monkeypatch):
    programs("squeue", '#!/bin/sh\n[ -z "$SQUEUE_STATES$SQUEUE_PARTITION" ] && echo "12|RUNNING|n1"\nexit 0\n')
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    queued, problem = queue.queue()
    assert queued["12"].state == "RUNNING" and not problem


def test_the_end_of_the_batch_script_needs_only_the_standard_library():
    assert shutil.which("timeout")  # coreutils
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'numpy', 'submitit'])); import slurm.after"
    subprocess.run([sys.executable, "-c", code], check=True)
