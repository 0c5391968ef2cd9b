"""Flags, YAML, help, checks, completion and stored configs all follow from one config dataclass."""

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Literal

import pytest
import yaml
from annotated_types import Interval

from crosschannel import UserError
from crosschannel.command import Command, format_command
from crosschannel.config.keys import items, keys_of, legacy_defaults, values_of_role
from crosschannel.config.load import build, build_stored, check_config, override, to_yaml
from crosschannel.config.training import CommandConfig
from crosschannel.config.types import HIDDEN, RUNTIME, Data, File, LegacyDefault, Text
from crosschannel.program import Program, run_program


@dataclass
class SolverConfig:
    """Solver."""

    steps: Annotated[int, Interval(ge=1, le=100)] = 10
    """number of steps"""
    betas: tuple[float, float] = (0.9, 0.99)
    """momenta"""

    def check(self) -> None:
        if self.steps == 13:
            raise UserError("solver.steps must not be 13")


@dataclass
class PaintConfig(CommandConfig):
    """Paint pictures."""

    images: list[str]
    """picture files"""
    data: Annotated[Text, Data()] = ""
    """a folder of images"""
    colour: Literal["red", "off"] | None = None
    """colour of the paint"""
    masks: Annotated[list[str], File(packaged=("builtin",))] = field(default_factory=list)
    """mask files"""
    sizes: list[Annotated[int, Interval(ge=1, le=9)]] = field(default_factory=lambda: [3])
    """sizes of the brush"""
    glossy: Annotated[bool, RUNTIME] = True
    """glossy paint"""
    extra: dict[str, str] = field(default_factory=dict)
    """more options"""
    counts: dict[str, int] = field(default_factory=dict)
    """numbers by name"""
    coats: Annotated[int, Interval(ge=1, le=9), LegacyDefault(1)] = 2
    """number of coats"""
    secret: Annotated[str, HIDDEN] = ""
    """not shown"""
    solver: SolverConfig = field(default_factory=lambda: SolverConfig(steps=20))


module = ModuleType("painting")
module.PaintConfig, module.calls = PaintConfig, []
module.paint = module.calls.append
ROW = Command(
    "painting:PaintConfig", "painting:paint", "paint", ("images",), {"c": "colour"}, ("paint {images} --twice",)
)
PROGRAM = Program("art", "Art.", {"paint": ROW})
REQUIRED = ["a.png", "--data=d"]


@pytest.fixture(autouse=True)
def painting(monkeypatch):
    monkeypatch.setitem(sys.modules, "painting", module)
    module.calls.clear()


def parse(*words: str) -> PaintConfig:
    return PROGRAM.parse("paint", [*REQUIRED, *words])


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--solver.steps", "5"], "solver.steps", 5),
        (["--solver.betas=0.1,0.2"], "solver.betas", (0.1, 0.2)),
        (["--solver.betas", "1e-1,2e-1"], "solver.betas", (0.1, 0.2)),
        (["--solver={steps: 7}", "--solver.betas=0,1"], "solver.steps", 7),
        (["--colour", "off"], "colour", "off"),
        (["-c", "red"], "colour", "red"),
        (["--colour=null"], "colour", None),
        (["--masks=m", "--masks", "n"], "masks", ["m", "n"]),
        (["--masks=m", '--masks=["x", "y"]', "--masks=z"], "masks", ["x", "y", "z"]),
        (["--sizes", "4,5"], "sizes", [4, 5]),
        (["--sizes=4", "--sizes=[6]"], "sizes", [6]),
        (["--glossy", "false"], "glossy", False),
        (["--no-glossy"], "glossy", False),
        (["--glossy", "b.png"], "images", ["a.png", "b.png"]),
        (["--extra.a-b", "1", "--extra.c=x=y"], "extra", {"a_b": "1", "c": "x=y"}),
        (["b.png", "--coats", "3", "--", "--c.png", "--"], "images", ["a.png", "b.png", "--c.png", "--"]),
        ([], "solver.steps", 20),
        (["--solver.steps=3", "--solver={steps: 4}", "--solver.steps=5"], "solver.steps", 5),
        (["--solver.steps=3", "--solver={steps: 4}"], "solver.steps", 4),
        (["--counts.a=1", "--counts={b: 2}"], "counts", {"a": 1, "b": 2}),
        (["--seed=017"], "seed", 17),
    ],
)
def test_flags_are_parsed_by_the_type_of_their_key(words, name, value):
    assert {key.name: parsed for key, parsed in items(parse(*words))}[name] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--solver.step=1"], "unknown key 'solver.step'; did you mean solver.steps?"),
        (["--solver.steps=0"], "solver.steps must be within 1..100, got 0"),
        (["--solver.steps=2.5"], "solver.steps must be a whole number, got 2.5"),
        (["--solver.steps=13"], "solver.steps must not be 13"),
        (["--solver.betas=0.1"], "solver.betas must be two numbers such as 0.5,1.0"),
        (["--solver=3"], "solver is a group of keys, got '3'; set one of its keys, such as --solver.steps"),
        (["--colour=blue"], "colour must be 'red' or 'off' or None, got 'blue'"),
        (["--colour="], "colour must not be empty"),
        (["--sizes=3,0"], "sizes must be within 1..9"),
        (["--coats=.nan"], "coats must be a finite number"),
        (["--seed=-1"], "seed must be at least 0"),
        (["--coats"], "expected one argument"),
        (["--glossy=maybe"], "glossy must be true or false, got 'maybe'"),
        (["-x"], "unrecognized argument -x"),
        (["--images=b"], "images is a positional argument; pass it without --images"),
        (["--extra={a: 1}"], "extra must be a dictionary, each value a string"),
        (["--coats=12:30"], "coats must be a whole number, got '12:30'"),
    ],
)
def test_a_bad_flag_prints_one_line_and_exits_with_2(words, message, capsys):
    assert run_program(PROGRAM, ["paint", *REQUIRED, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("art: ") and message in error and error.count("\n") == 1 and not module.calls


def test_missing_keys_are_named(capsys):
    assert run_program(PROGRAM, ["paint"]) == 2 and "required: images" in capsys.readouterr().err
    assert run_program(PROGRAM, ["paint", "a.png"]) == 2 and "required: data" in capsys.readouterr().err


def test_flags_override_yaml_and_yaml_overrides_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("solver: {betas: [0, 1]}\ncoats: 5\nextra: {a: '1'}\n")
    config = parse(f"--config={tmp_path / 'mine.yaml'}", "--coats=7", "--extra.b=2")
    assert (config.coats, config.solver, config.extra) == (7, SolverConfig(20, (0.0, 1.0)), {"a": "1", "b": "2"})
    (tmp_path / "over.yaml").write_text("solver: {steps: 9}\n")
    both = parse(f"--config={tmp_path / 'mine.yaml'}", "--config", str(tmp_path / "over.yaml"))
    assert (both.coats, both.solver) == (5, SolverConfig(9, (0.0, 1.0)))
    assert override(config, {"steps": 3, "sizes": (1, 2)}).solver.steps == 3
    with pytest.raises(UserError, match="did you mean coats"):
        override(config, {"coat": 1})


def test_a_required_key_may_be_zero_or_false_and_may_stand_in_a_group():
    @dataclass
    class Inner:
        x: int

    @dataclass
    class Outer:
        inner: Inner
        on: bool

    program = Program("p", "P.", {"c": Command(Outer, "painting:paint", "c")})
    assert program.parse("c", ["--inner.x=0", "--on=false"]) == Outer(Inner(0), False)
    with pytest.raises(UserError, match=r"keys are required: inner\.x"):
        program.parse("c", ["--on", "--inner={}"])


def test_help_and_print_config_show_every_key(capsys):
    assert run_program(PROGRAM, ["paint", "--nonsense", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    shown = [key for key in keys_of(PaintConfig) if key.name != "secret"]
    assert all(key.description in text for key in shown) and "not shown" not in text
    assert "IMAGES picture files (required)" in text and "--sizes N sizes of the brush (within 1..9; default 3)" in text
    assert "-c red|off colour of the paint" in text and "Solver:" in text and "default 20" in text
    assert run_program(PROGRAM, ["paint", "--coats=4", "--print_config"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["coats"] == 4 and tree["images"] is None and tree["solver"] == {"steps": 20, "betas": [0.9, 0.99]}


def test_configs_round_trip_through_yaml_and_are_checked_in_python():
    config = parse("--solver.steps=5", "--colour=red")
    assert build_stored(PaintConfig, yaml.safe_load(to_yaml(config)), "it") == config == check_config(config)
    for bad in (PaintConfig(["a"], coats=0), PaintConfig(["a"], solver=SolverConfig(0)), PaintConfig(["a"], solver=3)):
        with pytest.raises(UserError):
            check_config(bad)
    assert repr(check_config(SolverConfig(betas=[0, 1])).betas) == "(0.0, 1.0)"  # as in every stored file
    with pytest.raises(UserError, match="expected a config, SolverConfig"):
        check_config(config, SolverConfig)
    with pytest.raises(UserError, match=r"^it is damaged or from another version: unknown key 'newer'"):
        build_stored(PaintConfig, {"images": [], "newer": 1}, "it")


def test_roles_and_legacy_defaults_are_read_from_types():
    config = build(PaintConfig, {"images": ["a"], "data": "d", "masks": ["builtin", "m"]})
    assert values_of_role(config, Data) == {"data": "d"}
    assert legacy_defaults(PaintConfig)["coats"] == 1 and legacy_defaults(PaintConfig)["solver.steps"] == 20
    assert {key.name for key in keys_of(PaintConfig) if key.is_runtime} == {"glossy", "data", "device"}


def test_a_command_runs_and_prints_next_steps(capsys):
    assert run_program(PROGRAM, ["paint", "a b.png", "--data=d"]) == 0
    assert module.calls[0].images == ["a b.png"]
    assert capsys.readouterr().err == "next:\n  paint 'a b.png' --twice\n"
    assert format_command("x {out}-report {runs}", out="a/", runs=["b", "c d"]) == "x a-report b 'c d'"
