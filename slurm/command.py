"""Wrapped commands, which follow ``--``. They are parsed and checked at submission as they will be in the job."""

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
    """Command that a job runs.

    Attributes:
        module: module of the program.
        invocation: parsed command line.
        config: config of the command.
    """

    module: str
    invocation: Invocation
    config: Any

    @property
    def name(self) -> str:
        return self.invocation.name

    @property
    def has_run_folder(self) -> bool:
        """Whether the command has a run folder, so that it can resume and use several ranks."""
        return hasattr(self.config, "default_out")

    @property
    def program(self) -> str:
        return self.module.partition(".")[0]

    @property
    def text(self) -> str:
        """Command line, as it would be typed."""
        return shlex.join([self.program, self.name, *self.invocation.argv])

    @property
    def local_data(self) -> str:
        """Data to copy to the node-local disk; "" if there is none."""
        if not self.has_run_folder or allows_download(self.config):  # the data may not exist yet
            return ""
        return next((data for data in values_of_role(self.config, Data).values() if _data_paths(data)), "")

    @property
    def local_packages(self) -> list[str]:
        """Packages named in the command that are user code and not installed."""
        return [name for name in user_packages(self.config) if is_local(name)]

    def freeze(self, folder: Path) -> list[str]:
        """Return the module and the arguments that the job runs.

        The config of a command with a run folder is written to a file in ``folder``, so that later edits of the
        original config do not affect queued jobs.
        """
        if not self.has_run_folder:
            return [self.module, *self.name.split(), *self.invocation.argv]
        debug = ["--debug"] if self.invocation.common.debug else []
        path = folder / "config.yaml"
        write_text(path, to_yaml(self.config))
        return [self.module, self.name, f"--config={path.absolute()}", *debug]


def read_command(argv: Sequence[str]) -> WrappedCommand:
    """Parse a command, and check its values.

    Raises:
        UserError: the command is invalid; the message is the same as when it is run directly.
    """
    path, *arguments = argv or [""]
    if Path(path).name not in PROGRAMS or not arguments:
        raise UserError("a command must follow --, such as: -- crosschannel pretrain --config imagenette")
    module, program = PROGRAMS[Path(path).name]
    invocation = program.invocation(arguments)
    for flag in ("help", "print_config"):
        if getattr(invocation.common, flag):
            raise UserError(f"--{flag} cannot be submitted; run {Path(path).name} {invocation.name} --{flag}")
    return WrappedCommand(module, invocation, invocation.load())


def sweep(argv: Sequence[str], axes: Sequence[str]) -> list[WrappedCommand]:
    """Expand a command into one command per combination of values, each with its own run folder below --out.

    Args:
        argv: arguments of the command.
        axes: axes of the sweep, each ``KEY=VALUE,VALUE…``; empty for a single command.

    Raises:
        UserError: an axis has no values, --out is missing, or the command does not accept a value.
    """
    if not axes:
        return [read_command(argv)]
    base = read_command(argv)
    if not base.has_run_folder:
        raise UserError(f"a sweep requires a command with a run folder; {base.name} has none")
    if "out" not in base.invocation.read():
        raise UserError("a sweep requires --out, the folder for its run folders")
    choices, (options, operands) = [_parse_axis(axis) for axis in axes], split_at_separator(argv)
    commands = []
    for combination in product(*choices):
        run_dir = Path(base.config.out) / "_".join(f"{key}={value}" for key, value in combination).replace("/", "-")
        flags = [*(f"--{key}={value}" for key, value in combination), f"--out={run_dir}"]
        commands.append(read_command([*options, *flags, "--", *operands]))
    if len({command.config.out for command in commands}) < len(commands):
        raise UserError(f"--sweep lists a value twice: {', '.join(axes)}")
    return commands


def _parse_axis(text: str) -> list[tuple[str, str]]:
    """Parse ``KEY=VALUE,VALUE…`` into pairs (key, value)."""
    key, equals, choices = text.partition("=")
    values = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", choices)  # split at commas outside brackets
    if not equals or not key or not values:
        raise UserError(f"--sweep must be KEY=VALUE,VALUE…, such as optim.lr=1e-3,3e-4, got {text!r}")
    return [(key.removeprefix("--"), value) for value in values]


def check_run_folder(command: WrappedCommand, ranks: int) -> RunFolder | None:
    """Check the run folder, the number of ranks and the batch size before a job starts.

    Returns:
        the run folder; None if the command has none.

    Raises:
        UserError: the run folder belongs to another run, or the command or its batch size does not fit the ranks.
    """
    if not command.has_run_folder:
        if ranks > 1:
            raise UserError(f"{command.name} runs on one rank only, got {ranks} ranks")
        return None
    if isinstance(command.config, TrainedConfig):
        check_ranks(command.config.train, ranks)
    run = RunFolder(Path(command.config.out), getattr(command.config, "protocol", command.name), hold=False)
    if run.resuming:
        run.check_fixed_keys(command.config)
    return run


def check_paths(command: WrappedCommand) -> None:
    """Check that data, weights, packages and input files exist on this machine.

    Raises:
        UserError: one of these does not exist.
    """
    config, hint = command.config, "on this machine; --no-path-check skips this check"
    data_by_key = {} if allows_download(config) else values_of_role(config, Data)
    paths = [("data", path) for data in data_by_key.values() for path in _data_paths(data)]
    for source in (parse_source(source) for _, _, source in sources(config)):
        paths += [("weights", path) for path in source_paths(source)]
        paths += [("data", path) for path in _data_paths(source.options.get("data", ""))]
        inner = inner_source(source)
        module = inner.name.partition(":")[0].partition(".")[0]
        with (
            wrap_external_errors(f"could not find the package {module} of {source.text!r}"),
            working_folder_importable(),
        ):
            if KINDS[inner.kind].is_user_code and importlib.util.find_spec(module) is None:
                raise UserError(f"no package {module} for {source.text!r} {hint}")
    for name in user_imports(config).values():
        if not source_files(name):
            raise UserError(f"no package {name.partition(':')[0]} for {name!r} {hint}")
    for kind, path in paths:
        if not user_path(path).exists():
            raise UserError(f"no {kind} at {path} {hint}")
    for key, names in input_paths(config).items():
        for name in names:
            if not is_remote(name) and not user_path(name).exists():
                raise UserError(f"no {key.rpartition('.')[2]} at {name!r} {hint}")


def prefetch(command: WrappedCommand) -> None:
    """Download weights and data on this machine, because compute nodes may not have network access.

    Raises:
        UserError: a download failed.
    """
    for _, role, source in sources(command.config):
        if is_fetched(parse_source(source)):
            getattr(crosschannel.hub, f"load_{role.loads}")(source)
    for data in values_of_role(command.config, Data).values():
        if kind_of(data).needs_download:
            open_images(data)
    if allows_download(command.config):
        load_protocol(command.name).open_data(command.config.data, command.config)


def _data_paths(data: str) -> list[str]:
    """Return the local files and folders that data are read from."""
    return kind_of(data).paths(data) if data else []
