"""`crosschannel zoo` lists published weights; `crosschannel fetch` downloads weights ahead."""

from crosschannel.commands.config import FetchConfig, ZooConfig
from crosschannel.console import stdout_console
from crosschannel.hub import load_backbone, zoo


def show(_config: ZooConfig) -> None:
    console = stdout_console()
    for name, entry in zoo.ZOO.items():
        fetched = " (fetched)" if zoo.place(entry).is_file() else ""
        console.print(f"zoo:{name}: {entry.what}{fetched}", markup=False)
        console.print(f"    {entry.url}", markup=False)
        said = f"{entry.algorithm.upper()} {entry.checksum[:16]}…; importer {entry.format}; {entry.licence}"
        console.print(f"    {said}", markup=False)
    console.print(f"fetched weights are in {zoo.weights_folder()}", markup=False)


def fetch_source(config: FetchConfig) -> None:
    """Raises:
    UserError: no such source, or it cannot be had.
    """
    name = config.source.removeprefix("zoo:")
    if name in zoo.ZOO or config.source.startswith("zoo:"):
        path = zoo.fetch(name)
        stdout_console().print(str(path), markup=False)
    else:
        load_backbone(config.source)
