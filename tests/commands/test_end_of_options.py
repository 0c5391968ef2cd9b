"""``--`` ends the flags of every command: what follows is given by place, whatever it begins with."""

from dataclasses import MISSING, fields

import pytest

import crosschannel.cli
import slurm.cli
import transfer.cli
from crosschannel import UserError
from crosschannel.command_line import main
from crosschannel.runs.config import keys
from slurm.cli import _prepared
from slurm.command import sweep

PROGRAMS = {module.PROGRAM.name: module.PROGRAM for module in (crosschannel.cli, transfer.cli, slurm.cli)}
COMMANDS = [(program, name) for program, table in PROGRAMS.items() for name in table.commands]


def parsed(program: str, name: str, words: list[str]):
    return dict((key, value) for key, _, value in keys(PROGRAMS[program].parse(name, words)))


def outcome(program: str, name: str, words: list[str]) -> object:
    """The keys, or why they are refused."""
    try:
        return parsed(program, name, words)
    except UserError as error:
        return str(error)


def needed(program: str, name: str) -> tuple[list[str], list[str]]:
    """Words of the keys by place of a command, and flags of the others that it needs."""
    command = PROGRAMS[program].commands[name]
    by_place, flags = [], []
    for entry in fields(command.keys()):
        has_default = entry.default is not MISSING or entry.default_factory is not MISSING
        if entry.name in command.positional:
            by_place.append((command.positional.index(entry.name), f"{entry.name}-word"))
        elif entry.metadata.get("needed") or not has_default:
            flags.append(f"--{entry.name}={entry.name}-value")
    return [word for _, word in sorted(by_place)], flags


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_takes_the_end_of_options(program, name):
    by_place, flags = needed(program, name)
    plain = outcome(program, name, [*by_place, *flags])
    assert outcome(program, name, [*flags, "--", *by_place]) == plain
    assert outcome(program, name, [*by_place, *flags, "--"]) == plain
    for first in by_place[:1]:  # flags may stand between words given by place
        assert outcome(program, name, [first, *flags, *by_place[1:]]) == plain
        assert outcome(program, name, [first, *flags, "--", *by_place[1:]]) == plain
    if not by_place:
        with pytest.raises(UserError, match="unexpected argument '--seed=1'"):
            parsed(program, name, [*flags, "--", "--seed=1"])


@pytest.mark.parametrize("words", [["-a.jpg"], ["--b.jpg", "--"], ["--help"], ["--debug", "-h"], ["--config", "x"]])
def test_names_after_it_are_names(words, capsys):
    found = parsed("crosschannel", "colorize", ["--saturation", "2", "c.jpg", "--", *words])
    assert found["images"] == ["c.jpg", *words] and found["saturation"] == 2
    assert main(PROGRAMS["crosschannel"], ["colorize", "--model=gone", "--", *words]) == 2
    assert f"no picture or folder {words[0]!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        ("crosschannel", "--", "no command '--'"),
        ("transfer", "-- knn", "no command '--'"),
        ("transfer", "knn --data -- x", "unexpected argument 'x'"),
        ("transfer", "knn --=3", "unrecognized arguments: --=3"),
        ("crosschannel", "pretrain -- --data x", "unexpected argument '--data'"),
        ("crosschannel", "shard a b c", "unexpected argument 'c'"),
    ],
)
def test_what_cannot_be_is_one_sentence(program, line, message, capsys):
    assert main(PROGRAMS[program], line.split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_launcher_s_separator_stays_and_its_other_commands_take_it():
    submitted = _prepared(["submit", "--profile=local", "--", "crosschannel", "colorize", "--", "-a.jpg"])
    assert submitted == ["submit", "--config=local", '--command=["crosschannel", "colorize", "--", "-a.jpg"]']
    assert _prepared(["logs", "-f", "--", "-f"]) == ["logs", "--follow", "--", "-f"]
    assert _prepared(["status", "--", "-runs"]) == ["status", "--", "-runs"]


def test_a_sweep_s_flags_stand_before_it():
    words = ["transfer", "knn", "--backbone=b", "--data=d", "--out=o", "--"]
    found = sweep(words, ["k=1,2"])
    assert [command.config.k for command in found] == [[1], [2]]
