"""A model card: what the weights are, how to load them, what they reach."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import crosschannel
from crosschannel.errors import UserError
from crosschannel.files import Writer, written_whole
from crosschannel.models import Backbone
from crosschannel.report.page import markdown
from crosschannel.runs.result import read_result

CARD, PICTURE = "README.md", "sample.png"


def check_probes(probes: Sequence[Path]) -> None:
    """Raise a UserError for a probe run that is not finished."""
    for path in probes:
        try:
            read_result(path)
        except UserError as error:
            raise UserError(f"{path} is not a finished probe run: {error}") from None


def how_to_load(source: str, layer: str) -> list[str]:
    """Lines of Python that load one of our own files."""
    return [
        "import crosschannel",
        "",
        f'backbone = crosschannel.load_backbone("{source}")',
        f'maps = backbone(rgb, ["{layer}"])  # rgb (N, 3, H, W) in [0, 1]',
    ]


def write_card(
    folder: Path,
    backbone: Backbone,
    usage: Sequence[str],
    run: Path | None,
    probes: Sequence[Path],
    write: Writer = written_whole,
) -> Path:
    """Write ``README.md`` beside exported weights, and the sample picture of the run they come from.

    Args:
        folder: where the weights are.
        backbone: what was exported; its provenance says the licence.
        usage: lines of Python that load it, or a comment that says how.
        run: the run folder that they come from, for its sample picture and its figures.
        probes: finished probe runs of this backbone, for a table.
        write: what opens the files.
    """
    details = backbone.provenance.details
    licence = json.dumps(details["licence"])  # quoted, as YAML has it too
    front = ["---", f"license: {licence}", "library_name: crosschannel", "pipeline_tag: image-feature-extraction"]
    front += ["tags:", "- self-supervised-learning", f"- {details.get('pretext', 'colorization')}", "- pytorch"]
    front += ["---", ""]
    name = markdown(folder.resolve().name)
    input = backbone.input
    lines = [
        f"# {name}",
        "",
        f"A backbone of [crosschannel](https://pypi.org/project/crosschannel/) {crosschannel.__version__}.",
        "",
        "```python",
        *usage,
        "```",
        "",
        f"- layers: {', '.join(backbone.layers)}",
        f"- input: {input.kind}, crops of {input.size} px from a short side of {input.resize}, {input.interpolation}",
        *(
            f"- {markdown(key)}: {markdown(Path(str(value)).name if key == 'data' else value)}"
            for key, value in details.items()
        ),
        f"- from: {markdown(Path(backbone.provenance.source).name)}",
        "",
    ]
    if run is not None and (run / "result.json").is_file():
        metrics = read_result(run).metrics
        shown = (details.get("headline", "kl_share"), "loss_share", "loss")
        figures = {key: value for key, value in metrics.items() if key in shown}
        lines += ["On held-out images: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()) + ".", ""]
    lines += _probe_table(probes)
    picture = sample_of(run)
    if picture:
        with write(folder / PICTURE) as part:
            shutil.copyfile(picture, part)
        rows = details.get("rows of its pictures", "lightness, predicted colours, truth")
        lines += [f"![held-out images: {rows}]({PICTURE})", "", f"Held-out images: {rows}.", ""]
    with write(folder / CARD) as part:
        part.write_text("\n".join(front + lines), encoding="utf-8")
    return folder / CARD


def sample_of(run: Path | None) -> Path | None:
    """The last picture of held-out images of a run."""
    pictures = sorted((run / "samples").glob("*.png")) if run else []
    return pictures[-1] if pictures else None


def _probe_table(probes: Sequence[Path]) -> list[str]:
    """Top-1 by layer of finished probe runs."""
    lines: list[str] = []
    for path in probes:
        result = read_result(path)
        found = {markdown(k.removesuffix("/top1")): v for k, v in result.metrics.items() if k.endswith("/top1")}
        lines += [f"{markdown(result.protocol)} on {markdown(Path(result.data).name)}, {result.n} images, top-1 in %:"]
        lines += [""]
        lines += ["| " + " | ".join(found) + " |", "|" + "---|" * len(found)]
        lines += ["| " + " | ".join(f"{100 * value:.1f}" for value in found.values()) + " |", ""]
    return lines
