"""Every number has a range and is finite, wherever it comes from; it is checked when a command line is parsed."""

import subprocess
import sys

import pytest

import crosschannel.cli
import slurm.cli
import transfer.cli
from crosschannel import UserError, load_backbone
from crosschannel.config.keys import describe_range, keys_of
from crosschannel.pretext import TASKS

PRETRAIN = "pretrain --data x"
BAD = [
    ("crosschannel", f"{PRETRAIN} --optim.bias_lr=-1", "optim.bias_lr must be at least 0"),
    ("crosschannel", f"{PRETRAIN} --optim.momentum=-1", "optim.momentum"),
    ("crosschannel", f"{PRETRAIN} --optim.momentum=1", "optim.momentum"),
    ("crosschannel", f"{PRETRAIN} --optim.betas=[0.9,1.5]", "optim.betas"),
    ("crosschannel", f"{PRETRAIN} --optim.lr=.nan", "optim.lr must be a finite number"),
    ("crosschannel", f"{PRETRAIN} --optim.lr=1e308", "optim.lr"),
    ("crosschannel", f"{PRETRAIN} --optim.clip=-.inf", "optim.clip must be a finite number"),
    ("crosschannel", f"{PRETRAIN} --schedule.milestones=[-5] --schedule.rates=[1]", "schedule.milestones must be at"),
    (
        "crosschannel",
        f"{PRETRAIN} --schedule.milestones=[1] --schedule.rates=[.inf]",
        "schedule.rates must be a finite",
    ),
    ("crosschannel", f"{PRETRAIN} --schedule.milestones=[5,1] --schedule.rates=[1,1]", "must ascend"),
    ("crosschannel", f"{PRETRAIN} --objective.sigma=.inf", "objective.sigma must be a finite"),
    ("crosschannel", f"{PRETRAIN} --objective.lam=2", "objective.lam must be within 0..1"),
    ("crosschannel", f"{PRETRAIN} --objective.neighbours=0", "objective.neighbours must be within 1..313"),
    ("crosschannel", f"{PRETRAIN} --objective.grey_threshold=-3", "objective.grey_threshold"),
    ("crosschannel", f"{PRETRAIN} --model.name=resnet", "unknown net 'resnet'"),
    ("crosschannel", f"{PRETRAIN} --model.fc=100000000", "model.fc"),
    ("crosschannel", f"{PRETRAIN} --model.fc=-1", "model.fc"),
    ("crosschannel", f"{PRETRAIN} --crop.size=100000 --crop.resize=100000", "crop.size"),
    ("crosschannel", f"{PRETRAIN} --crop.aspect=1e308", "crop.aspect"),
    ("crosschannel", f"{PRETRAIN} --crop.area=[0.9,0.1]", "crop.area"),
    ("crosschannel", f"{PRETRAIN} --crop.area=[0,1]", "crop.area"),
    ("crosschannel", f"{PRETRAIN} --train.steps=-1", "train.steps"),
    ("crosschannel", f"{PRETRAIN} --train.epochs=0", "train.epochs"),
    ("crosschannel", f"{PRETRAIN} --train.batch=99999999999999999999999", "train.batch"),
    ("crosschannel", f"{PRETRAIN} --runtime.workers=1000000", "runtime.workers"),
    ("crosschannel", f"{PRETRAIN} --runtime.broken_limit=1.5", "runtime.broken_limit"),
    ("crosschannel", f"{PRETRAIN} --val_images=0", "val_images"),
    ("crosschannel", f"{PRETRAIN} --val_share=1", "val_share"),
    ("crosschannel", f"{PRETRAIN} --seed=-1", "seed"),
    ("crosschannel", f"{PRETRAIN} --seed=9223372036854775808", "seed"),
    ("crosschannel", f"{PRETRAIN} --device=gpu", "device must be auto, cpu, cuda or cuda:N"),
    ("crosschannel", f"{PRETRAIN} --out=", "out must not be empty"),
    ("crosschannel", f"{PRETRAIN} --out=a\0b", "out contains a NUL"),
    ("crosschannel", "pretrain --data=a\0b", "data contains a NUL"),
    ("crosschannel", f"{PRETRAIN} --out=~nosuchuser/x", "no such user"),
    ("crosschannel", f"{PRETRAIN} --config={'c' * 300}", "File name too long"),
    ("crosschannel", f"{PRETRAIN} --config=~nosuchuser/x", "no such user"),
    ("crosschannel", f"{PRETRAIN} --config=a\0b", "unknown config"),
    ("crosschannel", f"{PRETRAIN} --train=null", "train is a group of keys"),
    ("crosschannel", f"{PRETRAIN} --optim=/dev/zero", "optim is a group of keys"),
    ("crosschannel", f"{PRETRAIN} --optim={{lr:null}}", "optim"),
    ("crosschannel", "colorize a.png --model m --out o --size=-1", "size"),
    ("crosschannel", "colorize a.png --model m --out o --size=1000000", "size"),
    ("crosschannel", "colorize a.png --model m --out o --temperature=.inf", "temperature must be a finite"),
    ("crosschannel", "colorize a.png --model m --out=", "out must not be empty"),
    ("crosschannel", "colorize a.png --model m --out o --seed=-1", "seed"),
    ("crosschannel", "prior --data x --out p --size=0", "size"),
    ("crosschannel", "prior --data x --out p --neighbours=314", "neighbours"),
    ("crosschannel", "prior --data x --out p --sigma=.nan", "sigma"),
    ("crosschannel", "shard x y --shard_mb=0", "shard_mb"),
    ("crosschannel", "shard x y --size=-1", "size"),
    ("crosschannel", "shard x y --val_share=0", "val_share"),
    ("crosschannel", "import x --out y --input=cmyk", "input"),
    ("crosschannel", "zoo --seed=-1", "seed"),
    ("transfer", "knn --backbone b --data x --k=[0]", "k must be at least 1"),
    ("transfer", "knn --backbone b --data x --k=[]", "k must have at least one value"),
    ("transfer", "knn --backbone b --data x --k=[5,5]", "k must have at least one value and no value twice"),
    ("transfer", "knn --backbone b --data x --temperature=[-1]", "temperature"),
    ("transfer", "knn --backbone b --data x --temperature=[.inf]", "temperature must be a finite"),
    ("transfer", "knn --backbone b --data x --size=1000000", "size"),
    ("transfer", "linear-probe --backbone b --data x --rates=[1,-1]", "rates"),
    ("transfer", "linear-probe --backbone b --data x --held_out=1", "held_out"),
    ("transfer", "linear-probe --backbone b --data x --optim.lr=0", "optim.lr must be above 0"),
    ("transfer", "compare a b --resamples=1000000000000000", "resamples"),
    ("transfer", "compare a b --level=1", "level"),
    ("transfer", "report a --out=", "out"),
    ("crosschannel-slurm", "submit --mem_gb=-5 -- crosschannel zoo", "mem_gb must be at least 0"),
    ("crosschannel-slurm", "submit --hours=1e308 -- crosschannel zoo", "hours must be above 0"),
    ("crosschannel-slurm", "submit --hours=.inf -- crosschannel zoo", "hours must be a finite"),
    ("crosschannel-slurm", "submit --restarts=-1 -- crosschannel zoo", "restarts"),
    ("crosschannel-slurm", "submit --signal_before_s=0 -- crosschannel zoo", "signal_before_s"),
    ("crosschannel-slurm", "submit --dry-run -- crosschannel pretrain --data x --objective.lam=2", "objective.lam"),
    (
        "crosschannel-slurm",
        "submit --dry-run -- crosschannel pretrain --data x --model.name=resnet",
        "unknown net 'resnet'",
    ),
    ("crosschannel-slurm", "submit --dry-run -- transfer knn --backbone b --data x --k=[0]", "k must be"),
    ("crosschannel-slurm", "logs x --lines=-1", "lines"),
    ("crosschannel-slurm", "submit --name=a\nb -- crosschannel zoo", "name must be one line"),
    (
        "crosschannel-slurm",
        'submit --env={"x;y":"1"} -- crosschannel zoo',
        "keys of sbatch must be option names",
    ),
    ("crosschannel-slurm", "submit --sbatch.comment=a\nb -- crosschannel zoo", "sbatch must be one line"),
]
MAINS = {"crosschannel": crosschannel.cli, "transfer": transfer.cli, "crosschannel-slurm": slurm.cli}


@pytest.mark.parametrize(("program", "line", "words"), BAD, ids=[f"{line[:70]!r}" for _, line, _ in BAD])
def test_a_value_that_cannot_be_is_one_sentence_before_anything_is_done(
    tmp_path, monkeypatch, capsys, program, line, words
):
    monkeypatch.chdir(tmp_path)
    assert MAINS[program].main(line.split(" ")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{program}: ") and words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


YAMLS = {
    "a key twice": (b"optim: {lr: 1}\noptim: {lr: 2}\n", "the key 'optim' twice"),
    "a key twice, deeper": (b"optim: {lr: 1, lr: 2}\n", "the key 'lr' twice"),
    "a bomb": (b"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]\n", "alias"),
    "binary": (bytes(range(256)), "UTF-8"),
    "UTF-16": ("optim: {lr: 1}\n".encode("utf-16"), "UTF-8"),
    "no group": (b"train: null\n", "train"),
    "a group of another kind": (b"train: [1, 2]\n", "train"),
    "no number": (b"optim: {lr: .inf}\n", "optim.lr must be a finite"),
    "a long number": (b"seed: " + b"9" * 5000, "seed|YAML"),
    "deep": (b"[" * 5000, "nested|YAML"),
    "a list": (b"- 1\n", ""),
    "null for a number": (b"train: {batch: null}\n", "train.batch must be a whole number, got None"),
    "null for a seed": (b"seed: null\n", "seed must be a whole number, got None"),
    "null for a name": (b"model: {name: null}\n", "model.name must be a string, got None"),
    "a key in two ways": (b"train.steps: 2\ntrain: {steps: 3}\n", "key 'train.steps' is not allowed"),
    "a config in a config": (b"config: x\n", "key 'config' is not allowed"),
    "a NUL": (b'init_from: "a\\0b"\n', "init_from contains a NUL"),
    "out of range": (b"train: {ema: 1.0}\n", "train.ema"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_configs_that_are_none(tmp_path, monkeypatch, capsys, name):
    import re

    data, words = YAMLS[name]
    (tmp_path / "c.yaml").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert crosschannel.cli.main(["pretrain", "--data=x", "--config=c.yaml"]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "source",
    [
        "random:alexnet,fc=100000000", "random:alexnet,size=0", "random:alexnet,size=100000000",
        "random:alexnet,seed=-1",
        "random:alexnet,seed=99999999999999999999", "kmeans:alexnet,resize=٣", "random:alexnet,fc=x", "a\0b",
        "~nosuchuser/x", "timm:resnet18,weights=~nosuchuser/x",
    ],
)  # fmt: skip
def test_options_of_sources_have_ranges_too(source):
    with pytest.raises(UserError):
        load_backbone(source)


@pytest.mark.parametrize("module", MAINS.values(), ids=MAINS)
def test_every_number_of_every_command_has_a_range(module):
    for command in module.PROGRAM.commands.values():
        for selected in TASKS if command.selector else [None]:
            numbers = [key for key in keys_of(command.config_class(selected)) if {key.type, key.element} & {int, float}]
            assert not [key.name for key in numbers if not describe_range(key.hint)], command.config


def test_help_shows_the_ranges_and_switches_need_no_value(capsys):
    assert crosschannel.cli.main(["pretrain", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 requires a prior estimated from many images (within 0..1; default 0.5)" in said
    for words, value in (([], False), (["--overwrite"], True), (["--overwrite", "false"], False)):
        config = crosschannel.cli.PROGRAM.parse("prior", ["--data=x", *words, "--out=y"])
        assert config.overwrite is value
    config = crosschannel.cli.PROGRAM.parse("colorize", ["--overwrite", "a.png", "--out=y", "--model=m"])
    assert config.overwrite is True and config.images == ["a.png"]


def test_flags_override_a_config_wherever_it_stands():
    flags = ["--data=photos", "--train.batch", "8", "--backbone=b"]
    for words in ([*flags, "--config=quickstart"], ["--config", "quickstart", *flags]):
        config = transfer.cli.PROGRAM.parse("linear-probe", words)
        assert (config.data, config.train.batch, config.pooling) == ("photos", 8, "average")
    config = crosschannel.cli.PROGRAM.parse("pretrain", ["--optim.lr=0.5", "--config=quickstart"])
    assert config.optim.lr == 0.5 and config.data == "builtin:sample"


@pytest.mark.slow  # Python compiles torch anew; help without docstrings is always tested
def test_python_without_docstrings_and_asserts():
    """`PYTHONOPTIMIZE=2`."""
    code = (
        "import inspect, sys, transfer; from transfer.cli import PROGRAM; from transfer.protocols import PROTOCOLS\n"
        "import contextlib, io, crosschannel.cli, slurm.cli, transfer.cli\n"
        "for program in (crosschannel, transfer, slurm):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):\n"
        "        if program.cli.main(['--help']): sys.exit(program.__name__)\n"
        "    if 'commands:' not in text.getvalue(): sys.exit(program.__name__)\n"
        "for name, entry in PROTOCOLS.items():\n"
        "    function = entry.load()\n"
        "    keys = inspect.signature(function).parameters\n"
        "    if 'config' not in keys or 'seed' not in function.__doc__: sys.exit(name)\n"
        "    text = PROGRAM.invocation([name]).help_text('transfer')\n"
        "    if '--backbone SOURCE' not in text or 'random seed' not in text: sys.exit(name)\n"
    )
    code += "sys.exit(crosschannel.cli.main(['pretrain', '--data=/gone', '--optim.lr=-1']))\n"
    result = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("crosschannel: optim.lr must be above 0"), result.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "5", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "29", "CROSSCHANNEL_BACKEND": "mpi"},
    ],
    ids=str,
)  # fmt: skip
def test_an_environment_that_describes_no_ranks(monkeypatch, tmp_path, capsys, variables):
    monkeypatch.chdir(tmp_path)
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert crosschannel.cli.main(["pretrain", "--data=builtin:sample"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and list(tmp_path.iterdir()) == []
