"""Write ``config.json``, so that timm's ``local-dir:`` loads a folder of exported weights."""

import json
import math
from pathlib import Path
from typing import Any

from crosschannel.files import Writer
from crosschannel.models import Backbone

CONFIG = "config.json"
_PREFERRED = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")  # in timm's order
_SUFFIXES = (".safetensors", ".pth", ".bin")


def write_config(
    out: Path,
    backbone: Backbone,
    architecture: str,
    arguments: dict[str, Any],
    overrides: dict[str, Any],
    write: Writer,
) -> list[str]:
    """Write ``config.json`` into the folder of exported weights.

    Args:
        out: path of the weights file.
        backbone: the exported backbone.
        architecture: timm's name for the net.
        arguments: arguments of ``timm.create_model`` that build the net.
        overrides: entries of ``pretrained_cfg`` that differ from the backbone's input.
        write: opens the output file.

    Returns:
        Notes on how to load the folder, or on why timm would not read these weights.
    """
    input = backbone.input
    config = {
        "input_size": [3, input.size, input.size],
        "interpolation": input.interpolation,
        "crop_pct": math.nextafter(input.size / input.resize, 0),  # timm rounds size / crop_pct down
        "crop_mode": "center",
        "mean": list(input.mean),
        "std": list(input.std),
        "num_classes": 0,
        "custom_load": False,
        **overrides,
    }
    content = {"architecture": architecture, "num_classes": 0, "model_args": arguments, "pretrained_cfg": config}
    with write(out.parent / CONFIG) as partial_file:
        partial_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    file_name = _timm_weights_file(out.parent)
    if out.suffix not in _SUFFIXES:
        return [f"timm's local-dir: reads {', '.join(_SUFFIXES)} files, not {out.name}"]
    if file_name != out.name:
        return [f"timm's local-dir: reads {file_name} in this folder, not {out.name}; export to an empty folder"]
    return ['timm.create_model("local-dir:FOLDER", pretrained=True) also loads this folder']


def _timm_weights_file(folder: Path) -> str:
    """Return the name of the weights file that timm reads from a folder; empty if there is none."""
    preferred = [name for name in _PREFERRED if (folder / name).exists()]
    other_files = [path.name for suffix in _SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    return next(iter([*preferred, *other_files]), "")
