"""A model card: what the weights are, how to load them, what they reach."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import crosschannel
from crosschannel.errors import UserError
from crosschannel.models import Backbone


def write_card(
    folder: Path, backbone: Backbone, files: Sequence[str], licence: str, run: Path | None, probes: Sequence[Path]
) -> Path:
    """Write ``README.md`` beside exported weights, and the sample picture of the run they come from.

    Args:
        folder: where the weights are.
        backbone: what was exported.
        files: names of the weights files.
        licence: of the weights, as the Hugging Face Hub spells it.
        run: the run folder that they come from, for its sample picture and its figures.
        probes: finished probe runs of this backbone, for a table.

    Raises:
        UserError: a probe run that is not finished.
    """
    details = backbone.provenance.details
    front = ["---", f"license: {licence}", "library_name: crosschannel", "pipeline_tag: image-feature-extraction"]
    front += ["tags:", "- self-supervised-learning", "- colorization", "- pytorch", "---", ""]
    name = folder.resolve().name
    input = backbone.input
    lines = [
        f"# {name}",
        "",
        f"A backbone of [crosschannel](https://pypi.org/project/crosschannel/) {crosschannel.__version__}.",
        "",
        "```python",
        "import crosschannel",
        "",
        f'backbone = crosschannel.load_backbone("{name}/{files[0]}")',
        f'maps = backbone(rgb, ["{backbone.layers[-1]}"])  # rgb (N, 3, H, W) in [0, 1]',
        "```",
        "",
        f"- layers: {', '.join(backbone.layers)}",
        f"- input: {input.kind}, crops of {input.size} px from a short side of {input.resize}, {input.interpolation}",
        *(f"- {key}: {value}" for key, value in details.items()),
        f"- from: {backbone.provenance.source}",
        "",
    ]
    if run is not None and (run / "result.json").is_file():
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        figures = {key: value for key, value in metrics.items() if key in ("kl_share", "loss_share", "loss")}
        lines += ["On held-out images: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()) + ".", ""]
    lines += _probe_table(probes)
    pictures = sorted((run / "samples").glob("*.png")) if run else []
    if pictures:
        shutil.copyfile(pictures[-1], folder / "sample.png")
        lines += ["![held-out images: lightness, predicted colours, truth](sample.png)", ""]
        lines += ["Held-out images: lightness, predicted colours, truth.", ""]
    card = folder / "README.md"
    card.write_text("\n".join(front + lines), encoding="utf-8")
    return card


def _probe_table(probes: Sequence[Path]) -> list[str]:
    """Top-1 by layer of finished probe runs."""
    lines: list[str] = []
    for path in probes:
        if not (path / "result.json").is_file():
            raise UserError(f"{path} is not a finished probe run: it has no result.json")
        result = json.loads((path / "result.json").read_text())
        found = {k.removesuffix("/top1"): v for k, v in result["metrics"].items() if k.endswith("/top1")}
        lines += [f"{result['protocol']} on {Path(result['data']).name}, {result['n']} images, top-1 in %:", ""]
        lines += ["| " + " | ".join(found) + " |", "|" + "---|" * len(found)]
        lines += ["| " + " | ".join(f"{100 * value:.1f}" for value in found.values()) + " |", ""]
    return lines
