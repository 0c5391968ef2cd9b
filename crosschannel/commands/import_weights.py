"""`crosschannel import`: convert third-party weights to a crosschannel file."""

from pathlib import Path

from crosschannel.commands.config import ImportConfig
from crosschannel.console import stdout_console
from crosschannel.errors import UserError
from crosschannel.files import Outputs, user_path
from crosschannel.hub.convert import import_weights
from crosschannel.hub.formats import FORMATS
from crosschannel.models.backbone import Provenance


def import_file(config: ImportConfig) -> Path:
    """Convert a weights file and return the output file.

    Raises:
        UserError: a damaged or unknown file, weights that do not fit the architecture, or an invalid output file.
    """
    out = Path(config.out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {out}")
    path = user_path(config.file)
    outputs = Outputs("crosschannel import", [path], config.overwrite)
    outputs.check(out)
    weights = import_weights(path, config.name, config.input, config.key)
    details = {"format": weights.format, "file": path.name, "licence": config.licence}
    weights.save(out, Provenance(str(path), details), outputs.write)
    kind = "colorizer" if weights.has_head else "backbone"
    console = stdout_console()
    authors = f" ({FORMATS[weights.format].authors})" if weights.format in FORMATS else ""
    console.print(f"{out}: {weights.spec.name} {kind} from {weights.format}{authors}, input {weights.input.kind}")
    if weights.prefix_note:
        console.print(f"read: {weights.prefix_note}")
    if weights.left_out:
        console.print(f"not imported (not part of a backbone): {', '.join(weights.left_out)}")
    return out
