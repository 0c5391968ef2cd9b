"""`crosschannel export` and `crosschannel push`: write a backbone for other libraries, or upload it."""

import shutil
import tempfile
from pathlib import Path

from crosschannel.commands.config import ExportConfig, PushConfig
from crosschannel.config.load import check_config
from crosschannel.console import stdout_console
from crosschannel.errors import UserError
from crosschannel.factories import is_factory
from crosschannel.files import Outputs, output_folder, user_path
from crosschannel.hub import load_backbone, load_colorizer, source_files
from crosschannel.hub.card import CARD, PICTURE, check_probes, write_card
from crosschannel.hub.export import EXPORTERS, colorizer_to_onnx, how_to_load, to_safetensors
from crosschannel.hub.files import COLORIZER, PRETEXT
from crosschannel.hub.huggingface import check_repository, push_folder
from crosschannel.hub.timm_config import CONFIG
from crosschannel.models import Backbone, spec_of
from crosschannel.runs.folder import last_pictures


def export(config: ExportConfig) -> Path:
    """Export a backbone and return the output file.

    Raises:
        UserError: a model that the format does not support, or an invalid output file.
    """
    config = check_config(config, ExportConfig)
    out = Path(config.out)
    if config.format == "safetensors" and out.suffix != ".safetensors" and not out.is_dir():
        raise UserError(f"--out must end in .safetensors for this format, got {out}")
    if not out.parent.parent.is_dir():
        raise UserError(f"cannot write {out}: folder {out.parent.parent} does not exist")
    run, probes = _run_folder(config.backbone), [Path(probe) for probe in config.probes]
    inputs = [*source_files(config.backbone).values(), *probes, *([run] if run else [])]
    outputs = Outputs("crosschannel export", inputs, config.overwrite, makes_folders=True)
    companions = [CARD, *([PICTURE] if run and last_pictures(run) else [])] if config.card else []
    if out.name in companions:
        raise UserError(f"{out} would be overwritten by the model card; choose another --out or pass --card false")
    companions += [CONFIG] if config.format == "timm" else []
    if out.name in companions:
        raise UserError(f"{out} would be overwritten by timm's {CONFIG}; choose another --out")
    outputs.check(out)
    for name in companions:
        outputs.check(out.parent / name)
    check_probes(probes)
    backbone = load_backbone(config.backbone)
    backbone.default_layers = backbone.choose_layers(config.layer)
    _set_licence(backbone, config.licence)
    with output_folder(out.parent):
        if config.part == "colorizer":
            exported_file = colorizer_to_onnx(load_colorizer(config.backbone), out, outputs.write)
        else:
            exported_file = EXPORTERS[config.format](backbone, out, outputs.write)
    notes = [f"# {note}" for note in exported_file.notes]
    console = stdout_console()
    console.print(f"{out}: {config.format}")
    for line in [*notes, *([] if config.card else exported_file.usage)]:
        console.print(line)
    if config.card:
        card = write_card(out.parent, backbone, [*notes, *exported_file.usage], run, probes, outputs.write)
        console.print(f"model card: {card}")
    return out


def _set_licence(backbone: Backbone, licence: str | None) -> None:
    """Set the licence of the weights to ``licence``, else to that of their file, else to "unknown"."""
    details = backbone.provenance.details
    details["licence"] = licence or details.get("licence") or "unknown"


def _run_folder(source: str) -> Path | None:
    """Return the folder of a source that is a finished run, or None."""
    path = user_path(source.partition(",")[0])
    return path if (path / "result.json").is_file() else None


def push(config: PushConfig) -> str:
    """Upload a backbone to the Hugging Face Hub and return the URL of the repository.

    Raises:
        UserError: an invalid source or repository, no login, or no network.
    """
    probes = [Path(probe) for probe in config.probes]
    check_probes(probes)
    check_repository(config.repository)
    backbone, run = load_backbone(config.backbone), _run_folder(config.backbone)
    if is_factory(spec_of(backbone.net).name):
        raise UserError(f"{config.backbone} is a user-defined model, which others could not load without its code")
    _set_licence(backbone, config.licence)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / config.repository.rpartition("/")[2]
        folder.mkdir()
        to_safetensors(backbone, folder / "backbone.safetensors")
        for name in (COLORIZER, PRETEXT):
            if run is not None and (run / name).is_file():
                shutil.copyfile(run / name, folder / name)
        usage = how_to_load(f"hf-hub:{config.repository}", backbone)
        write_card(folder, backbone, usage, run, probes, hub=config.repository)
        url = push_folder(folder, config.repository, config.private)
    stdout_console().print(url)
    return url
