"""``--`` ends the flags of every command: later words are positional, whatever they begin with."""

import pytest

import crosschannel.cli
import slurm.cli
import transfer.cli
from crosschannel import UserError
from crosschannel.config.keys import items, keys_of
from crosschannel.program import run_program as main
from slurm.cli import PROGRAM as SLURM
from slurm.command import sweep

PROGRAMS = {module.PROGRAM.name: module.PROGRAM for module in (crosschannel.cli, transfer.cli, slurm.cli)}
COMMANDS = [(program, name) for program, table in PROGRAMS.items() for name in table.commands]


def parsed(program: str, name: str, words: list[str]):
    return dict((key.name, value) for key, value in items(PROGRAMS[program].parse(name, words)))


def outcome(program: str, name: str, words: list[str]) -> object:
    """The keys, or the error message."""
    try:
        return parsed(program, name, words)
    except UserError as error:
        return str(error)


def needed(program: str, name: str) -> tuple[list[str], list[str]]:
    """Words for the positional keys of a command, and flags for its other required keys."""
    command = PROGRAMS[program].commands[name]
    operands, flags = [], []
    for key in keys_of(command.config_class()):
        if key.is_hidden:  # the command after the -- of submit
            continue
        if key.name in command.positional:
            operands.append((command.positional.index(key.name), f"{key.name}-word"))
        elif key.is_required:
            flags.append(f"--{key.name}={key.name}-value")
    return [word for _, word in sorted(operands)], flags


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_takes_the_end_of_options(program, name):
    operands, flags = needed(program, name)
    plain = outcome(program, name, [*operands, *flags])
    assert outcome(program, name, [*flags, "--", *operands]) == plain
    assert outcome(program, name, [*operands, *flags, "--"]) == plain
    for first in operands[:1]:  # flags may stand between positional words
        assert outcome(program, name, [first, *flags, *operands[1:]]) == plain
        assert outcome(program, name, [first, *flags, "--", *operands[1:]]) == plain
    if not operands and name != "submit":
        with pytest.raises(UserError, match="unexpected argument '--seed=1'"):
            parsed(program, name, [*flags, "--", "--seed=1"])


@pytest.mark.parametrize("words", [["-a.jpg"], ["--b.jpg", "--"], ["--help"], ["--debug", "-h"], ["--config", "x"]])
def test_words_after_it_are_positional(words, capsys):
    values = parsed("crosschannel", "colorize", ["--saturation", "2", "c.jpg", "--", *words])
    assert values["images"] == ["c.jpg", *words] and values["saturation"] == 2
    assert main(PROGRAMS["crosschannel"], ["colorize", "--model=gone", "--", *words]) == 2
    assert f"no such picture or folder: {words[0]!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        ("crosschannel", "--", "unknown command '--'"),
        ("transfer", "-- knn", "unknown command '--'"),
        ("transfer", "knn --data -- x", "argument --data: expected one argument"),
        ("transfer", "knn --=3", "unrecognized argument --=3"),
        ("crosschannel", "pretrain -- --data x", "unexpected argument '--data'"),
        ("crosschannel", "shard a b c", "unexpected argument 'c'"),
    ],
)
def test_an_invalid_command_line_is_refused_in_one_line(program, line, message, capsys):
    assert main(PROGRAMS[program], line.split()) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_launcher_keeps_its_separator_and_its_other_commands_accept_it():
    submitted = SLURM.parse("submit", ["--profile=local", "--", "crosschannel", "colorize", "--", "-a.jpg"])
    assert submitted.cluster == "local" and submitted.command == ["crosschannel", "colorize", "--", "-a.jpg"]
    profiles = ["--profile=a100", "--profile", "cpu"]
    layered = SLURM.parse("submit", [*profiles, "--setup", "a b", "c", "--sweep", "k=1", "seed=0,1", "--", "transfer"])
    assert (layered.setup, layered.sweep, layered.command) == (["a b", "c"], ["k=1", "seed=0,1"], ["transfer"])
    assert layered.gpus_per_node == SLURM.parse("submit", [*profiles[1:], "--profile=a100", "--", "x"]).gpus_per_node
    with pytest.raises(UserError, match="unexpected argument 'stray'"):
        SLURM.parse("submit", ["stray", "--", "crosschannel", "zoo"])
    logs = SLURM.parse("logs", ["-f", "--", "-f"])
    assert logs.follow and logs.run == "-f"
    assert SLURM.parse("status", ["--", "-runs"]).runs == ["-runs"]


def test_the_flags_of_a_sweep_are_put_before_it():
    words = ["transfer", "knn", "--backbone=b", "--data=d", "--out=o", "--"]
    commands = sweep(words, ["k=1,2"])
    assert [command.config.k for command in commands] == [[1], [2]]
