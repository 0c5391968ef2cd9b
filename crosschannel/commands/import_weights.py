"""`crosschannel import`: other people's weights as one of our files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crosschannel.console import stdout_console
from crosschannel.errors import UserError
from crosschannel.files import Outputs, user_path
from crosschannel.hub.convert import import_weights
from crosschannel.hub.formats import FORMATS
from crosschannel.keys import Device, Out, Seed
from crosschannel.models.backbone import Provenance


@dataclass
class ImportConfig:
    """Read a .pth, .safetensors or .caffemodel file of somebody else's and write one of ours."""

    file: str = field(metadata={"help": "the weights file"})
    out: Out
    """the .safetensors file to write"""
    name: str | None = None
    """(also --as) what it is: alexnet, vgg16, colornet, caffe, or a format; default by the names in it"""
    input: Literal["grey", "lab", "rgb"] | None = None
    """grey, lab or rgb, where the first convolution's channels leave it open"""
    licence: str = "unknown"
    """of the weights, for the metadata"""
    overwrite: bool = False
    """replace a file that this command has not written; what it reads stays in any case"""
    seed: Seed = 0
    """taken as by every command; nothing is drawn at random"""
    device: Device = "auto"
    """taken as by every command; nothing here needs one"""


def import_file(config: ImportConfig) -> Path:
    """Returns the file written.

    Raises:
        UserError: a damaged or unknown file, weights that do not fit, or an output that cannot be.
    """
    out = Path(config.out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {out}")
    path = user_path(config.file)
    outputs = Outputs("crosschannel import", [path], config.overwrite)
    outputs.check(out)
    found = import_weights(path, config.name, config.input)
    details = {"format": found.format, "file": path.name, "licence": config.licence}
    found.save(out, Provenance(str(path), details), outputs.write)
    kind = "colorizer" if found.has_head else "backbone"
    console = stdout_console()
    whose = f" ({FORMATS[found.format].whose})" if found.format in FORMATS else ""
    said = f"{out}: {found.spec.name} {kind} from {found.format}{whose}, input {found.input.kind}"
    console.print(said, markup=False)
    if found.left_out:
        console.print(f"left out, a backbone has no place for them: {', '.join(found.left_out)}", markup=False)
    return out
