"""`crosschannel zoo` lists published weights; `crosschannel fetch` downloads weights in advance."""

from crosschannel.commands.config import FetchConfig, ZooConfig
from crosschannel.console import stdout_console
from crosschannel.errors import UserError
from crosschannel.hub import load_backbone, parse_source, source_files, zoo
from crosschannel.hub.sources import is_fetched


def show(_config: ZooConfig) -> None:
    """Print the published weights, and whether they have been downloaded."""
    console = stdout_console()
    for name, entry in zoo.ZOO.items():
        status = " (fetched)" if zoo.cached_path(entry).is_file() else ""
        console.print(f"zoo:{name}: {entry.description}{status}")
        console.print(f"    {entry.url}")
        details = f"{entry.algorithm.upper()} {entry.checksum[:16]}…; importer {entry.format}; {entry.licence}"
        console.print(f"    {details}")
    console.print(f"fetched weights are in {zoo.weights_folder()}")


def fetch_source(config: FetchConfig) -> None:
    """Download the weights of a source to the cache of the library that loads it.

    Raises:
        UserError: the source does not exist or needs no download, or there is no connection.
    """
    name = config.source.removeprefix("zoo:")
    if name in zoo.ZOO or config.source.startswith("zoo:"):
        stdout_console().print(str(zoo.fetch(name)))
        return
    source = parse_source(config.source)
    if not is_fetched(source):
        note = ": it is already on this machine" if source_files(config.source) else ""
        raise UserError(
            f"nothing to fetch for {config.source!r}{note}; fetch accepts zoo:NAME, hf-hub:OWNER/NAME, "
            "torchvision:NAME or timm:NAME"
        )
    load_backbone(config.source)
    stdout_console().print(f"{config.source} is in the cache")
