"""`crosschannel zoo` lists published weights; `crosschannel fetch` downloads weights ahead."""

from crosschannel.commands.config import FetchConfig, ZooConfig
from crosschannel.console import stdout_console
from crosschannel.errors import UserError
from crosschannel.hub import load_backbone, parse_source, source_files, zoo
from crosschannel.hub.sources import is_fetched


def show(_config: ZooConfig) -> None:
    console = stdout_console()
    for name, entry in zoo.ZOO.items():
        fetched = " (fetched)" if zoo.cached_path(entry).is_file() else ""
        console.print(f"zoo:{name}: {entry.description}{fetched}")
        console.print(f"    {entry.url}")
        said = f"{entry.algorithm.upper()} {entry.checksum[:16]}…; importer {entry.format}; {entry.licence}"
        console.print(f"    {said}")
    console.print(f"fetched weights are in {zoo.weights_folder()}")


def fetch_source(config: FetchConfig) -> None:
    """Download the weights of a source into its library's cache, and report success.

    Raises:
        UserError: the source needs no download or does not exist, or there is no connection.
    """
    name = config.source.removeprefix("zoo:")
    if name in zoo.ZOO or config.source.startswith("zoo:"):
        stdout_console().print(str(zoo.fetch(name)))
        return
    source = parse_source(config.source)
    if not is_fetched(source):
        note = ": it is on this machine already" if source_files(config.source) else ""
        raise UserError(
            f"nothing to fetch for {config.source!r}{note}; fetch takes zoo:NAME, hf-hub:OWNER/NAME, "
            "torchvision:NAME and timm:NAME"
        )
    load_backbone(config.source)
    stdout_console().print(f"{config.source} is in the cache")
