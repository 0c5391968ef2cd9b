"""`crosschannel import`: other people's weights as one of our files."""

from pathlib import Path

from crosschannel.commands.config import ImportConfig
from crosschannel.console import stdout_console
from crosschannel.errors import UserError
from crosschannel.files import Outputs, user_path
from crosschannel.hub.convert import import_weights
from crosschannel.hub.formats import FORMATS
from crosschannel.models.backbone import Provenance


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
    found = import_weights(path, config.name, config.input, config.key)
    details = {"format": found.format, "file": path.name, "licence": config.licence}
    found.save(out, Provenance(str(path), details), outputs.write)
    kind = "colorizer" if found.has_head else "backbone"
    console = stdout_console()
    whose = f" ({FORMATS[found.format].authors})" if found.format in FORMATS else ""
    console.print(f"{out}: {found.spec.name} {kind} from {found.format}{whose}, input {found.input.kind}")
    if found.prefix_note:
        console.print(f"read: {found.prefix_note}")
    if found.left_out:
        console.print(f"left out, a backbone has no place for them: {', '.join(found.left_out)}")
    return out
