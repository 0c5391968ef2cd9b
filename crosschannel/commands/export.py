"""`crosschannel export` and `crosschannel push`: a backbone for other libraries and other people."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from crosschannel.errors import UserError
from crosschannel.hub import load_backbone
from crosschannel.hub.card import write_card
from crosschannel.hub.export import EXPORTERS, to_safetensors
from crosschannel.hub.huggingface import push_folder


@dataclass
class ExportConfig:
    """Write a backbone for other libraries, with a model card beside it."""

    backbone: str = field(metadata={"help": "a source, such as a run folder"})
    out: str
    """the file to write"""
    format: Literal["safetensors", "torchvision", "timm", "onnx"] = "safetensors"
    """safetensors (ours), torchvision (VGG-16, and AlexNets of its shape), timm, or onnx"""
    licence: str = "bsd-2-clause"
    """of the weights, for the card, as the Hugging Face Hub spells it"""
    probes: list[str] = field(default_factory=list)
    """finished probe runs of this backbone, for a table in the card"""
    card: bool = True
    """write README.md beside the file"""
    seed: int = 0
    """taken as by every command; nothing is drawn at random"""
    device: str = "auto"
    """taken as by every command; exporting needs none"""


def export(config: ExportConfig) -> Path:
    """Returns the file written.

    Raises:
        UserError: a net that the format has no shape for, or an output that cannot be.
    """
    out = Path(config.out)
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"cannot write {out}: " + ("it is a folder" if out.is_dir() else f"no folder {out.parent}"))
    if config.format == "safetensors" and out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors for this format, got {out}")
    card = out.parent / "README.md"
    if config.card and card.exists() and not _is_card(card):
        raise UserError(f"{card} is not a model card and would be overwritten; --card false keeps it")
    backbone = load_backbone(config.backbone)
    backbone.provenance.details["licence"] = config.licence
    notes = EXPORTERS[config.format](backbone, out)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{out}: {config.format}", markup=False)
    for note in notes:
        console.print(note, markup=False)
    if config.card:
        probes = [Path(probe) for probe in config.probes]
        card = write_card(out.parent, backbone, [out.name], config.licence, _run_folder(config.backbone), probes)
        console.print(f"model card: {card}", markup=False)
    return out


def _is_card(path: Path) -> bool:
    return "library_name: crosschannel" in path.read_text(errors="replace")[:500]


def _run_folder(source: str) -> Path | None:
    path = Path(source.partition(",")[0]).expanduser()
    return path if (path / "result.json").is_file() else None


@dataclass
class PushConfig:
    """Upload a backbone (and its colorization head) with a model card to the Hugging Face Hub."""

    backbone: str = field(metadata={"help": "a source, such as a run folder"})
    repository: str = field(metadata={"help": "owner/name"})
    licence: str = "bsd-2-clause"
    """of the weights, for the card, as the Hub spells it"""
    probes: list[str] = field(default_factory=list)
    """finished probe runs of this backbone, for a table in the card"""
    private: bool = False
    """create a private repository"""
    seed: int = 0
    """taken as by every command; nothing is drawn at random"""
    device: str = "auto"
    """taken as by every command; nothing here needs one"""


def push(config: PushConfig) -> str:
    """Returns the repository's address.

    Raises:
        UserError: a bad source or repository, not logged in, or no network.
    """
    backbone, run = load_backbone(config.backbone), _run_folder(config.backbone)
    backbone.provenance.details["licence"] = config.licence
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / config.repository.rpartition("/")[2]
        folder.mkdir()
        to_safetensors(backbone, folder / "backbone.safetensors")
        if run is not None and (run / "colorizer.safetensors").is_file():
            shutil.copyfile(run / "colorizer.safetensors", folder / "colorizer.safetensors")
        write_card(folder, backbone, ["backbone.safetensors"], config.licence, run, [Path(p) for p in config.probes])
        address = push_folder(folder, config.repository, config.private)
    Console(highlight=False, soft_wrap=True).print(address, markup=False)
    return address
