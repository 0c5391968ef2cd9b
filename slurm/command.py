"""The command after ``--``: parsed and checked on the login node as it would be where it runs."""

import importlib.util
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import crosschannel.cli
import crosschannel.hub
import transfer.cli
from crosschannel.command import Invocation
from crosschannel.config.flags import split_at_separator
from crosschannel.config.keys import allows_download, input_paths, sources, values_of_role
from crosschannel.config.load import to_yaml
from crosschannel.config.training import TrainedConfig, check_ranks
from crosschannel.config.types import Data
from crosschannel.data.datasets import kind_of
from crosschannel.data.open import open_images
from crosschannel.data.remote import is_remote
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.factories import working_folder_importable
from crosschannel.files import user_path, write_text
from crosschannel.hub.sources import (
    KINDS,
    inner_source,
    is_fetched,
    parse_source,
    source_files,
    source_paths,
    user_imports,
    user_packages,
)
from crosschannel.program import Program
from crosschannel.runs.folder import RunFolder
from slurm.snapshot import is_local
from transfer.protocols import load_protocol

PROGRAMS: dict[str, tuple[str, Program]] = {
    "crosschannel": ("crosschannel.cli", crosschannel.cli.PROGRAM),
    "transfer": ("transfer.cli", transfer.cli.PROGRAM),
}


@dataclass
class WrappedCommand:
    """A command that a job is to run.

    Attributes:
        module: module of the program.
        invocation: the parsed command.
        config: config of the invocation.
    """

    module: str
    invocation: Invocation
    config: Any

    @property
    def name(self) -> str:
        return self.invocation.name

    @property
    def has_run_folder(self) -> bool:
        """Whether it resumes, and shares its work among ranks."""
        return hasattr(self.config, "default_out")

    @property
    def program(self) -> str:
        return self.module.partition(".")[0]

    @property
    def text(self) -> str:
        """As it is typed."""
        return shlex.join([self.program, self.name, *self.invocation.words])

    @property
    def local_data(self) -> str:
        """The data that a node can copy to its own disk; empty for none."""
        if not self.has_run_folder or allows_download(self.config):  # it may not be there yet
            return ""
        return next((data for data in values_of_role(self.config, Data).values() if _data_paths(data)), "")

    @property
    def local_packages(self) -> list[str]:
        """User packages that the command names and that are not installed."""
        return [name for name in user_packages(self.config) if is_local(name)]

    def frozen(self, folder: Path) -> list[str]:
        """Module and arguments for the job. A command with a run folder gets its config as a file, so that later edits
        of the config do not change queued jobs."""
        if not self.has_run_folder:
            return [self.module, *self.name.split(), *self.invocation.words]
        debug = ["--debug"] if self.invocation.common.debug else []
        path = folder / "config.yaml"
        write_text(path, to_yaml(self.config))
        return [self.module, self.name, f"--config={path.absolute()}", *debug]


def read_command(words: Sequence[str]) -> WrappedCommand:
    """Parse a command, and check its values.

    Raises:
        UserError: as the command itself would say it.
    """
    program, *rest = words or [""]
    if Path(program).name not in PROGRAMS or not rest:
        raise UserError("after -- comes a command such as: crosschannel pretrain --config imagenette")
    module, table = PROGRAMS[Path(program).name]
    invocation = table.invocation(rest)
    for flag in ("help", "print_config"):
        if getattr(invocation.common, flag):
            raise UserError(f"--{flag} is for the command itself: {Path(program).name} {invocation.name} --{flag}")
    return WrappedCommand(module, invocation, invocation.load())


def sweep(words: Sequence[str], axes: Sequence[str]) -> list[WrappedCommand]:
    """One command for every combination of ``KEY=VALUE,VALUE…`` axes, each with a run folder of its own below --out.

    Raises:
        UserError: an axis without values, a command without --out, or a value that the command refuses.
    """
    if not axes:
        return [read_command(words)]
    base = read_command(words)
    if not base.has_run_folder:
        raise UserError(f"a sweep is for commands with a run folder; {base.name} has none")
    if "out" not in base.invocation.read():
        raise UserError("a sweep needs --out: the folder that its run folders go into")
    choices, (options, operands) = [_axis(axis) for axis in axes], split_at_separator(words)
    commands = []
    for combination in product(*choices):
        place = Path(base.config.out) / "_".join(f"{key}={value}" for key, value in combination).replace("/", "-")
        flags = [*(f"--{key}={value}" for key, value in combination), f"--out={place}"]
        commands.append(read_command([*options, *flags, "--", *operands]))
    if len({command.config.out for command in commands}) < len(commands):
        raise UserError(f"--sweep names a value twice: {', '.join(axes)}")
    return commands


def _axis(text: str) -> list[tuple[str, str]]:
    key, equals, values = text.partition("=")
    found = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", values)  # at commas, but not at those inside brackets
    if not equals or not key or not found:
        raise UserError(f"--sweep takes KEY=VALUE,VALUE… such as optim.lr=1e-3,3e-4, got {text!r}")
    return [(key.removeprefix("--"), value) for value in found]


def check_run_folder(command: WrappedCommand, ranks: int) -> RunFolder | None:
    """What can be known before a job starts: the run folder is free or this run's, the batch fits the ranks.

    Returns:
        the run folder; None for a command that has none.

    Raises:
        UserError: anything else.
    """
    if not command.has_run_folder:
        if ranks > 1:
            raise UserError(f"{command.name} does not share its work: give it one rank, not {ranks}")
        return None
    if isinstance(command.config, TrainedConfig):
        check_ranks(command.config.train, ranks)
    run = RunFolder(Path(command.config.out), getattr(command.config, "protocol", command.name), hold=False)
    if run.resuming:
        run.check_fixed_keys(command.config)
    return run


def check_paths(command: WrappedCommand) -> None:
    """Data and weights that are named by a path exist here.

    Raises:
        UserError: one does not.
    """
    config, later = command.config, "on this machine; --no-path-check leaves that to the job"
    named = {} if allows_download(config) else values_of_role(config, Data)
    paths = [("data", path) for data in named.values() for path in _data_paths(data)]
    for source in (parse_source(source) for _, _, source in sources(config)):
        paths += [("weights", path) for path in source_paths(source)]
        paths += [("data", path) for path in _data_paths(source.options.get("data", ""))]
        inner = inner_source(source)
        module = inner.name.partition(":")[0].partition(".")[0]
        with wrap_external_errors(f"cannot find {module} for {source.text!r}"), working_folder_importable():
            if KINDS[inner.kind].is_user_code and importlib.util.find_spec(module) is None:
                raise UserError(f"no package {module} for {source.text!r} {later}")
    for own in user_imports(config).values():
        if not source_files(own):
            raise UserError(f"no package {own.partition(':')[0]} for {own!r} {later}")
    for kind, path in paths:
        if not user_path(path).exists():
            raise UserError(f"no {kind} at {path} {later}")
    for key, names in input_paths(config).items():
        for name in names:
            if not is_remote(name) and not user_path(name).exists():
                raise UserError(f"no {key.rpartition('.')[2]} at {name!r} {later}")


def prefetch(command: WrappedCommand) -> None:
    """Download what a node without a network would miss: named weights and data.

    Raises:
        UserError: it cannot be had.
    """
    for _, role, named in sources(command.config):
        if is_fetched(parse_source(named)):
            getattr(crosschannel.hub, f"load_{role.loads}")(named)
    for data in values_of_role(command.config, Data).values():
        if kind_of(data).needs_download:
            open_images(data)
    if allows_download(command.config):
        load_protocol(command.name).open_data(command.config.data, command.config)


def _data_paths(data: str) -> list[str]:
    """The local files and folders that data are read from."""
    return kind_of(data).paths(data) if data else []
