"""`crosschannel configs`: list the packaged configs of every command."""

from pathlib import Path
from typing import Any

from crosschannel.command import list_configs
from crosschannel.config.load import config_folder
from crosschannel.console import stdout_console


def show(_config: Any) -> None:
    """Print the packaged configs, one per line, under the command that accepts them."""
    console, root = stdout_console(), config_folder()
    folders: dict[str, Path] = {}
    for folder in sorted({path.parent for path in root.rglob("*.yaml")}):
        parts = folder.relative_to(root).parts
        folders[" ".join([*(parts if parts[0] == "transfer" else ("crosschannel", *parts)), "--config"])] = folder
    folders["crosschannel-slurm submit --profile"] = Path(__file__).parents[2] / "slurm" / "profiles"
    for command, folder in folders.items():
        console.print(command)
        for line in list_configs(folder):
            console.print(line)
