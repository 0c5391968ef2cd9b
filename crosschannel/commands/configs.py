"""`crosschannel configs`: the packaged configs, a line each, below the command that takes them."""

from pathlib import Path
from typing import Any

from crosschannel.command import list_configs
from crosschannel.config.load import config_folder
from crosschannel.console import stdout_console


def show(_config: Any) -> None:
    """Print the packaged configs."""
    console, top = stdout_console(), config_folder()
    folders: dict[str, Path] = {}
    for folder in sorted({path.parent for path in top.rglob("*.yaml")}):
        words = folder.relative_to(top).parts
        folders[" ".join([*(words if words[0] == "transfer" else ("crosschannel", *words)), "--config"])] = folder
    folders["crosschannel-slurm submit --profile"] = Path(__file__).parents[2] / "slurm" / "profiles"
    for command, folder in folders.items():
        console.print(command)
        for line in list_configs(folder):
            console.print(line)
