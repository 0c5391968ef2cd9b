"""What is settled before anything is queued: the batch script, refusals, sweeps, the copy of the code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from crosschannel import hub
from crosschannel.errors import UserError
from crosschannel.runs.folder import RunFolder
from slurm.cli import PROFILES, main
from slurm.command import prefetch, read_command, sweep
from slurm.job_folder import JobFolder
from slurm.snapshot import is_local, snapshot
from slurm.staging import stage
from slurm.task import Task


@pytest.fixture
def slurm(tmp_path, monkeypatch, capsys):
    """`crosschannel-slurm …` in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code: int = 0) -> str:
        capsys.readouterr()
        assert main(list(map(str, words))) == code
        return "".join(capsys.readouterr())

    return run


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.partition("=")[::2] for line in lines)


def test_a_dry_run_prints_the_batch_script_and_leaves_nothing(slurm, small, tmp_path):
    before = set(tmp_path.iterdir())
    script = slurm(
        "submit", "--dry-run", "--profile=a100", "--nodes=2", "--hours=1.5", "--partition=big",
        "--setup=[module load x]", "--sbatch.reservation=mine", "--sbatch.mail-type=END",
        "--env.NCCL_DEBUG=INFO", "--signal-before-s=77",
        "--", *small, "--train.batch=16", "--out=runs/a",
    )  # fmt: skip
    found = directives(script)
    expected = {
        "nodes": "2", "gpus-per-node": "8", "ntasks-per-node": "8", "cpus-per-task": "8", "time": "90",
        "partition": "big", "reservation": "mine", "mail-type": "END", "signal": "USR2@77", "job-name": "a",
        "requeue": "", "exclusive": "", "open-mode": "append",
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert "\nmodule load x\n" in script and "export NCCL_DEBUG=INFO" in script
    assert "--kill-on-bad-exit=1 --export=ALL --cpus-per-task=8" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("profile", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_submits(slurm, small, profile):
    slurm("submit", "--dry-run", f"--profile={profile.stem}", "--", *small, "--out=runs/a")


KNN = ["transfer", "knn", "--data=builtin:sample"]
BAD = [
    ("no command", [], [], "a command must follow --"),
    ("not ours", [], ["python", "x.py"], "a command must follow --"),
    ("no such command", [], ["crosschannel", "train"], "unknown command 'train'"),
    ("a bad flag", [], ["SMALL", "--learning-rate=1"], "unknown key 'learning_rate'"),
    ("a bad value", [], ["SMALL", "--optim.lr=x"], "optim.lr must be a number, got 'x'"),
    ("a value that cannot be", [], ["SMALL", "--train.ema=2"], "train.ema must be at least 0 and below 1"),
    ("no such config", [], ["crosschannel", "pretrain", "--config", "turbo"], "unknown config 'turbo'"),
    ("no such data", [], ["SMALL", "--data=/gone"], "no data at /gone on this machine; --no-path-check"),
    ("no such weights", [], [*KNN, "--backbone=runs/gone"], "no weights at runs/gone"),
    ("a source that cannot be", [], [*KNN, "--backbone=timm:x,y"], "invalid option"),
    ("a prior that is gone", [], ["SMALL", "--objective.prior=/gone.npz"], "no prior at '/gone.npz'"),
    ("images of a fresh net that are gone", [], [*KNN, "--backbone=kmeans:alexnet,data=/gone"], "no data at /gone"),
    ("weights of a net that are gone", [], [*KNN, "--backbone=timm:resnet18,weights=/gone/my.pth"], "no weights at"),
    ("a factory of a fresh net that is gone", [], [*KNN, "--backbone=random:nomodule.x:make"], "no package nomodule"),
    ("a factory that is gone", [], [*KNN, "--backbone=nomodule.x:make"], "no package nomodule for"),
    ("a batch that ranks cannot share", ["--nodes=3"], ["SMALL"], "train.batch (8) must be a multiple of ranks"),
    ("ranks for a command that has no use for them", ["--nodes=2"], ["crosschannel", "zoo"], "runs on one rank only"),
    ("a config to print", [], ["crosschannel", "zoo", "--print_config"], "--print_config cannot be submitted; run"),
    ("no nodes", ["--nodes=0"], ["SMALL"], "nodes must be within 1..100000, got 0"),
    ("no time", ["--hours=0"], ["SMALL"], "hours must be above 0"),
    ("no such key", ["--node=2"], ["SMALL"], "unknown key 'node'; did you mean"),
    ("no such profile", ["--profile=h100"], ["SMALL"], "unknown profile 'h100'"),
    ("a sweep without values", ["--sweep=seed="], ["SMALL", "--out=s"], "--sweep must be KEY=VALUE,VALUE"),
    ("a sweep of a value that cannot be", ["--sweep=seed=0,x"], ["SMALL", "--out=s"], "seed must be a whole number"),
    ("a sweep without a place", ["--sweep=seed=0,1"], ["SMALL"], "a sweep requires --out"),
    ("nodes on this machine", ["--profile=local", "--nodes=2"], ["SMALL"], "nodes must be 1 with cluster: local"),
    ("a package that is none", ["--code=[nothing]", "--profile=local"], ["SMALL", "--out=s"], "no package 'nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "command", "words"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_what_cannot_be_is_refused_before_anything_is_queued(slurm, small, tmp_path, flags, command, words):
    command = [word for each in command for word in (small if each == "SMALL" else [each])]
    dry = [] if "--profile=local" in flags else ["--dry-run"]
    said = slurm("submit", *dry, *flags, "--", *command, code=2)
    assert words in said and said.count("\n") == 1
    assert list(tmp_path.rglob("jobs.jsonl")) == []


def test_paths_that_only_the_nodes_see_may_pass(slurm, small):
    slurm("submit", "--dry-run", "--no-path-check", "--", *small, "--data=/on/the/nodes", "--out=runs/a")


@pytest.mark.parametrize(
    "words", [["status", "gone"], ["logs", "gone"], ["cancel", "gone"], ["resume", "gone"], ["resume"]]
)
def test_runs_that_are_none_are_refused(slurm, words):
    assert slurm(*words, code=2).count("\n") == 1


def test_no_sbatch_is_said(slurm, small, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = slurm("submit", "--", *small, "--out=runs/a", code=2)
    assert "sbatch is not installed here" in said


def test_a_forgotten_dash_is_said_with_the_whole_command(slurm):
    said = slurm("submit", "--profile=a100", "crosschannel", "pretrain", "--data=x", code=2)
    assert said.endswith("put -- before the command: "
                         "crosschannel-slurm submit --profile=a100 -- crosschannel pretrain --data=x\n")  # fmt: skip


def test_a_job_that_sbatch_refuses_leaves_nothing(slurm, small, tmp_path, monkeypatch):
    for axes, out in (([], "runs/a"), (["--sweep=seed=0,1"], "rates")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        sbatch = tmp_path / "bin" / "sbatch"
        sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
        sbatch.chmod(0o755)
        shutil.copy(sbatch, sbatch.with_name("srun"))
        shutil.copy(shutil.which("true"), sbatch.with_name("squeue"))
        monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
        before = sorted(tmp_path.rglob("*"))
        said = slurm("submit", "--partition=gpu", *axes, "--", *small, f"--out={out}", code=2)
        assert "SLURM rejected the job: invalid partition specified: gpu" in said
        assert sorted(tmp_path.rglob("*")) == before


def test_help_needs_no_submitit():
    code = (
        "import sys; sys.modules['submitit'] = None; from slurm.cli import main; sys.exit(main(['submit', '--help']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "profiles (--profile NAME" in found.stdout


def test_a_sweep_is_every_combination_with_a_folder_of_its_own(small, tmp_path):
    commands = sweep([*small, f"--out={tmp_path}/s"], ["optim.lr=1e-3,3e-4", "seed=0,1,2"])
    found = {(c.config.optim.lr, c.config.seed): Path(c.config.out).name for c in commands}
    assert found == {(lr, seed): f"optim.lr={text}_seed={seed}" for lr, text in ((1e-3, "1e-3"), (3e-4, "3e-4"))
                     for seed in (0, 1, 2)}  # fmt: skip


def test_a_queued_config_is_what_was_typed_even_if_its_file_is_edited(small, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {batch: 4}\noptim: {lr: 0.5, betas: [0.5, 0.6]}\n")
    typed = read_command(["crosschannel", "pretrain", f"--config={file}", "--data=builtin:sample", "--seed=3"])
    module, name, *words = typed.freeze(tmp_path)
    file.write_text("train: {batch: 5}\n")
    again = read_command([module.partition(".")[0], name, *words])
    assert (
        again.config == typed.config
        and again.config.out == "runs/mine-sample-3"
        and again.config.optim.betas == (0.5, 0.6)
    )


def test_a_finished_run_is_not_queued_and_a_changed_one_is_refused(slurm, small, tmp_path):
    command = [*small, "--out=runs/a"]
    run = RunFolder(tmp_path / "runs" / "a", "pretrain")
    run.write_config(read_command(command).config)
    run.log_metrics(1, loss=1.0)
    assert "optim.lr was 0.001 and is now 0.5" in slurm("submit", "--dry-run", "--", *command, "--optim.lr=0.5", code=2)
    (run.path / "result.json").write_text("{}")
    said = slurm("submit", "--dry-run", "--", *command)
    assert f"runs/a has already finished on {read_command(command).config.data}: nothing to do" in said


def test_every_form_of_source_is_submitted_as_it_is_typed(slurm, photo_folder, tmp_path):
    (tmp_path / "nets.py").write_text("def make(): ...\n")
    (tmp_path / "my.pth").write_text("")
    for source in (
        "random:alexnet,fc=0,size=64,seed=2", f"random:alexnet,data={photo_folder}", "random:my.pth,seed=2",
        "random:torchvision:alexnet,seed=1", "random:timm:resnet18", "kmeans:alexnet,input=lab",
        "torchvision:alexnet,weights=IMAGENET1K_V1", "timm:resnet18,weights=my.pth", "nets:make", "random:nets:make",
        "my.pth,geometry=probe", "zoo:eccv16", "hf-hub:me/net",
    ):  # fmt: skip
        assert f"--backbone={source}" in read_command([*KNN, f"--backbone={source}"]).text
        slurm("submit", "--dry-run", "--", *KNN, f"--backbone={source}")


def test_weights_are_fetched_where_a_job_will_want_them_and_nowhere_else(monkeypatch):
    fetched = []
    monkeypatch.setattr(hub, "load_backbone", fetched.append, raising=False)
    sources = {
        "zoo:eccv16": True, "hf-hub:me/net": True, "timm:resnet18": True, "torchvision:resnet18": True,
        "torchvision:resnet18,weights=IMAGENET1K_V1": True, "random:zoo:eccv16": True, "random:timm:resnet18": False,
        "random:torchvision:alexnet,seed=1": False, "timm:resnet18,weights=/on/nodes/my.pth": False,
        "random:hf-hub:me/net": True, "timm:resnet18,weights=my.ckpt": False,
        "torchvision:resnet18,weights=none": False, "random:alexnet": False, "runs/a": False, "nets:make": False,
    }  # fmt: skip
    for source in sources:
        prefetch(read_command([*KNN, f"--backbone={source}"]))
    assert fetched == [source for source, wanted in sources.items() if wanted]


def test_every_method_of_an_evaluation_is_fetched_and_its_classifier(monkeypatch):
    fetched = []
    for loads in ("colorizer", "classifier"):
        load = lambda source, loads=loads: fetched.append((loads, source))  # noqa: E731
        monkeypatch.setattr(hub, f"load_{loads}", load, raising=False)
    methods = ["--methods", "full=zoo:eccv16,temperature=1", "grey", "runs/a"]
    words = ["crosschannel", "evaluate", "--data=x", "--classifier=timm:resnet18", *methods]
    prefetch(read_command(words))
    assert fetched == [("colorizer", "zoo:eccv16"), ("classifier", "timm:resnet18")]


def test_debug_goes_along(slurm, small, tmp_path):
    slurm("submit", "--dry-run", "--", *small, "--debug", "--out=runs/a")
    assert "--debug" in read_command([*small, "--debug"]).freeze(tmp_path)


def test_a_dry_run_of_a_sweep_prints_the_script_of_the_array(slurm, small):
    script = slurm("submit", "--dry-run", "--sweep=seed=0,1,2", "--", *small, "--out=runs/s")
    assert directives(script)["array"].startswith("0-2") and "%A_%a" in script


def test_the_folder_that_a_command_runs_in_is_where_its_run_is(slurm, small, tmp_path):
    (tmp_path / "there" / "runs" / "ünïcode 🎨").mkdir(parents=True)
    (tmp_path / "there" / "runs" / "ünïcode 🎨" / "thesis.tex").write_text("years of work")
    out = "--out=runs/ünïcode 🎨"
    assert "is not empty" in slurm("submit", "--dry-run", "--cwd=there", "--", *small, out, code=2)
    assert "cwd must be an existing folder" in slurm("submit", "--dry-run", "--cwd=gone", "--", *small, out, code=2)
    assert Path.cwd() == tmp_path


def test_the_copy_of_the_code_has_git_s_word_and_packages_of_the_user_s(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    package = checkout / "mynet"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    (package / "__init__.py").write_text("x = 2\n")
    monkeypatch.syspath_prepend(str(checkout))
    target = tmp_path / "code"
    snapshot(target, ["mynet"])
    (package / "__init__.py").write_text("x = 3\n")
    assert (target / "mynet" / "__init__.py").read_text() == "x = 2\n"
    state = json.loads((target / "code.json").read_text())["git"][str(checkout)]
    assert state == {"commit": commit, "patch": "checkout.patch", "untracked": []}
    assert "+x = 2" in (target / "checkout.patch").read_text()
    names = {path.relative_to(target).as_posix() for path in target.rglob("*.py")}
    assert {"crosschannel/cli.py", "transfer/cli.py", "slurm/task.py"} <= names
    assert list(target.rglob("alexnet.yaml")) and not list(target.rglob("*.part"))
    with pytest.raises(UserError, match="no package"):
        snapshot(target, ["my.net"])


def test_data_are_copied_once_and_whole(tmp_path, photo_folder, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    staged = Path(stage(str(photo_folder), "$SCRATCH"))
    files = {path.relative_to(photo_folder): path.read_bytes() for path in photo_folder.rglob("*.jpg")}
    assert {path.relative_to(staged): path.read_bytes() for path in staged.rglob("*.jpg")} == files
    inodes = {path: path.stat().st_ino for path in staged.rglob("*.jpg")}
    cut = next(staged.rglob("*.jpg"))
    cut.write_bytes(b"cut off")
    assert stage(str(photo_folder), "$SCRATCH", "7-1") == str(staged)
    assert cut.read_bytes() == files[cut.relative_to(staged)]
    assert [path for path in inodes if path.stat().st_ino != inodes[path]] == [cut]
    cut.unlink()
    stage(str(photo_folder), "$SCRATCH", "7-1")  # the second rank of a node does not look again
    assert not cut.exists()
    stage(str(photo_folder), "$SCRATCH", "7-2")
    assert cut.exists()
    with pytest.raises(ValueError, match="contains a variable that is not set"):
        stage(str(photo_folder), "$NOT_SET_HERE/x")


def test_a_brace_pattern_is_copied_with_what_lies_beside(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a-0.tar", "a-1.tar", "a-1.tar.idx", "b-0.tar", "classes.txt"):
        (data / name).write_text(name)
    staged = Path(stage(f"{data}/a-{{0..1}}.tar", str(tmp_path / "scratch")))
    assert staged.name == "a-{0..1}.tar"
    names = {path.name for path in staged.parent.iterdir()} - {".lock"}
    assert names == {"a-0.tar", "a-1.tar", "a-1.tar.idx", "classes.txt"}


def test_profiles_say_what_they_are_for():
    for path in PROFILES.glob("*.yaml"):
        assert path.read_text().startswith("# ") and isinstance(yaml.safe_load(path.read_text()), dict)


def test_a_container_starts_python_on_every_rank(slurm, small):
    python = "--python=apptainer exec --nv image.sif python"
    script = slurm("submit", "--dry-run", python, "--", *small, "--out=runs/a")
    (line,) = (line for line in script.splitlines() if line.startswith("srun"))
    assert "apptainer exec --nv image.sif python -u -m submitit.core._submit" in line


def test_ranks_are_told_where_to_meet_and_over_what(monkeypatch):
    job = SimpleNamespace(
        raw_job_id="1234567", global_rank=5, num_tasks=8, num_nodes=2, local_rank=1, hostnames=["n1", "n2"]
    )
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7")
    task = Task("runs/a", ".", [], interface="ib0", backend="gloo")
    first, second = (task._environment(job, attempt, local=False) for attempt in (0, 1))
    expected = {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.7",
        "GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib0", "CROSSCHANNEL_BACKEND": "gloo",
    }  # fmt: skip
    assert {key: first[key] for key in expected} == expected
    assert 1024 < int(first["MASTER_PORT"]) < 32768 and first["MASTER_PORT"] != second["MASTER_PORT"]


def test_a_rank_reads_the_copy_of_its_data_under_their_own_name(tmp_path, photo_folder, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(photo_folder, data)
    (tmp_path / "look.py").write_text(
        "import shutil, sys\nfrom crosschannel.data import open_images\n"
        "shutil.rmtree(sys.argv[1])\nassert len(open_images(sys.argv[1])[0]) == 40\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    job = SimpleNamespace(
        job_id="7", raw_job_id="7", node=0, num_nodes=1, num_tasks=1, global_rank=0, local_rank=0, hostnames=["here"]
    )
    task = Task(str(tmp_path / "run"), ".", ["look", str(data)], scratch=str(tmp_path / "scratch"), data=str(data))
    folder = JobFolder(tmp_path / "run")
    folder.path.mkdir(parents=True)
    assert task._run_command(job, folder, 0, local=True) == 0


def test_local_code_of_any_layout_is_copied(tmp_path, monkeypatch):
    """A module, a package with runs in it, a folder without __init__.py; nothing that is installed."""
    (tmp_path / "one.py").touch()
    for folder in ("whole/runs/a/slurm", "plain/deep", "elsewhere/site-packages/installed"):
        (tmp_path / folder).mkdir(parents=True)
    for path in ("whole/__init__.py", "plain/deep/two.py", "elsewhere/site-packages/installed/__init__.py"):
        (tmp_path / path).touch()
    (tmp_path / "whole/runs/a/config.yaml").write_text("# crosschannel run: knn (crosschannel 0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere" / "site-packages")
    names = ["one", "whole", "plain", "installed", "torchvision", "crosschannel", "json", "nowhere"]
    assert [name for name in names if is_local(name)] == ["one", "whole", "plain"]
    target = tmp_path / "whole" / "runs" / "a" / "slurm" / "code"
    snapshot(target, ["one", "whole", "plain"])
    assert (target / "one.py").is_file() and (target / "plain/deep/two.py").is_file()
    assert (target / "whole/__init__.py").is_file() and not (target / "whole/runs/a").exists()
    with pytest.raises(UserError, match="no package 'configs'"):
        snapshot(target, ["configs"])
