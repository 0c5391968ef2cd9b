"""`crosschannel zoo` lists published weights; `crosschannel fetch` downloads weights ahead."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from crosschannel.hub import load_backbone, zoo


@dataclass
class ZooConfig:
    """List the weights that `zoo:NAME` knows."""

    seed: int = 0
    """taken as by every command; nothing is drawn at random"""
    device: str = "auto"
    """taken as by every command; nothing here needs one"""


def show(_config: ZooConfig) -> None:
    table = Table()
    for head in ("source", "what", "licence", "fetched"):
        table.add_column(head, no_wrap=head == "source")
    for name, entry in zoo.ZOO.items():
        here = (zoo.weights_folder() / entry.url.rpartition("/")[2]).is_file()
        table.add_row(f"zoo:{name}", entry.what, entry.licence, "yes" if here else "no")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"fetched weights are in {zoo.weights_folder()}; addresses are in the documentation", markup=False)


@dataclass
class FetchConfig:
    """Download the weights of a source into its cache, so that a node without a network finds them."""

    source: str = field(metadata={"help": "zoo:NAME (or NAME), hf-hub:owner/name, torchvision:NAME or timm:NAME"})
    seed: int = 0
    """taken as by every command; nothing is drawn at random"""
    device: str = "auto"
    """taken as by every command; nothing here needs one"""


def fetch_source(config: FetchConfig) -> None:
    """Raises:
    UserError: no such source, or it cannot be had.
    """
    name = config.source.removeprefix("zoo:")
    if name in zoo.ZOO or config.source.startswith("zoo:"):
        path = zoo.fetch(name)
        Console(highlight=False, soft_wrap=True).print(str(path), markup=False)
    else:
        load_backbone(config.source)
