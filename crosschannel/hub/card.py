"""A model card: what the weights are, how to load them, what they reach."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crosschannel.errors import UserError
from crosschannel.files import Writer, atomic_write
from crosschannel.models import Backbone
from crosschannel.report.page import markdown
from crosschannel.runs.folder import last_pictures
from crosschannel.runs.result import UNTRAINED, Result, read_result
from crosschannel.version import __version__

CARD, PICTURE = "README.md", "sample.png"
_CITATION = (
    "@inproceedings{zhang2016colorful,",
    "  title={Colorful Image Colorization},",
    "  author={Zhang, Richard and Isola, Phillip and Efros, Alexei A.},",
    "  booktitle={European Conference on Computer Vision},",
    "  year={2016}",
    "}",
)


def check_probes(probes: Sequence[Path]) -> None:
    """Raise a UserError for a run that is not finished, or is no measurement of a trained backbone."""
    for path in probes:
        try:
            result = read_result(path)
        except UserError as error:
            raise UserError(f"{path} is not a finished probe run: {error}") from None
        if result.protocol in ("pretrain", "evaluate"):
            raise UserError(f"{path} is not a finished probe run: it is one of `crosschannel {result.protocol}`")
        if result.backbone.startswith(UNTRAINED):
            raise UserError(f"{path} is of the untrained net {result.backbone}; a card has figures of its own net")


def write_card(
    folder: Path,
    backbone: Backbone,
    usage: Sequence[str],
    run: Path | None,
    probes: Sequence[Path],
    write: Writer = atomic_write,
    hub: str = "",
) -> Path:
    """Write ``README.md`` beside exported weights, and the sample picture of the run they come from.

    Args:
        folder: where the weights are.
        backbone: what was exported; its provenance says the licence.
        usage: lines of Python that load it in that folder, and use it.
        run: the run folder that they come from, for its sample picture and its figures.
        probes: finished probe runs of this backbone, for a table.
        write: what opens the files.
        hub: owner/name of the repository that it is going to be in; empty for none.
    """
    details = backbone.provenance.details
    licence = json.dumps(details["licence"])  # quoted, as YAML has it too
    front = ["---", f"license: {licence}", "library_name: crosschannel", "pipeline_tag: image-feature-extraction"]
    pretext = [f"- {json.dumps(details['pretext'])}"] if "pretext" in details else []
    front += ["tags:", "- self-supervised-learning", *pretext, "- pytorch"]
    name = markdown(folder.resolve().name)
    front += [*_model_index(folder.resolve().name, probes), "---", ""]
    input = backbone.input
    resizing = f"{input.interpolation}, times {input.scale:g}" if input.scale != 1 else input.interpolation
    lines = [
        f"# {name}",
        "",
        f"A net of [crosschannel](https://pypi.org/project/crosschannel/) {__version__} (`pip install crosschannel`).",
        "",
        "```python",
        *usage,
        "```",
        "",
        f"Anywhere: `{f'hf-hub:{hub}' if hub else 'hf-hub:OWNER/NAME'}` is a source of `crosschannel` and `transfer`"
        + ("." if hub else ", once `crosschannel push` has put it there."),
        "",
        "## What it is",
        "",
        f"- layers: {markdown(', '.join(backbone.layers))}",
        markdown(f"- input: {input.kind}, crops of {input.size} px from a short side of {input.resize}, {resizing}"),
        *(
            f"- {markdown(key)}: {markdown(Path(str(value)).name if key == 'data' else value)}"
            for key, value in details.items()
        ),
        f"- from: {markdown(Path(backbone.provenance.source).name)}",
        "",
        "## Training data",
        "",
        _data(details),
        "",
        "## Limitations",
        "",
        *_limitations(details),
        "",
    ]
    if run is not None and (run / "result.json").is_file():
        metrics = read_result(run).metrics
        shown = (details.get("headline", "kl_share"), "loss_share", "loss")
        figures = {key: value for key, value in metrics.items() if key in shown}
        values = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
        lines += [f"On held-out images: {markdown(values)}.", ""]
    lines += _probe_table(probes)
    picture = last_pictures(run) if run else None
    if picture:
        with write(folder / PICTURE) as part:
            shutil.copyfile(picture, part)
        rows = markdown(details.get("rows of its pictures", "lightness, predicted colours, truth"))
        lines += [f"![held-out images: {rows}]({PICTURE})", "", f"Held-out images: {rows}.", ""]
    lines += ["## Citation", "", "```bibtex", *_CITATION, "```", ""]
    with write(folder / CARD) as part:
        part.write_text("\n".join(front + lines), encoding="utf-8")
    return folder / CARD


def _data(details: dict[str, Any]) -> str:
    if "data" not in details:
        return "Not said by the file that the weights come from."
    images = f", {details['images']} images" if "images" in details else ""
    labels = "with their labels" if details.get("pretext") == "labels" else "without labels"
    return f"{markdown(Path(str(details['data'])).name)}{images}, {labels}."


def _limitations(details: dict[str, Any]) -> list[str]:
    """What a person who takes the weights should know."""
    lines = [
        "- It has seen the images named above and no others: what is rare among them it knows badly, and whatever "
        "bias they have it has too.",
        "- It is a backbone: without a probe or fine-tuning it names nothing.",
    ]
    if details.get("pretext") in ("colorization", "larsson", "dahl", "split-brain"):
        lines.append("- Colours that its head predicts are likely ones: they are no evidence of the true ones.")
    return lines


def _model_index(name: str, probes: Sequence[Path]) -> list[str]:
    """The figures of probes as the Hugging Face Hub reads them."""
    results = []
    for path in probes:
        result = read_result(path)
        metrics = [
            {"type": "accuracy", "name": f"{layer} {result.protocol} top-1", "value": round(100 * value, 2)}
            for layer, value in _top1(result).items()
        ]
        metrics = metrics or [
            {"type": name, "name": f"{result.protocol} {name}", "value": round(100 * value, 2)}
            for name, value in _whole(result).items()
        ]
        data = Path(result.data).name
        task = {"type": "image-classification", "name": result.protocol}
        results.append({"task": task, "dataset": {"type": data, "name": data}, "metrics": metrics})
    if not results:
        return []
    return yaml.safe_dump({"model-index": [{"name": name, "results": results}]}, sort_keys=False).splitlines()


def _top1(result: Result) -> dict[str, float]:
    """Top-1 by layer: of linear probes, else of the first k of nearest neighbours."""
    found = {k.removesuffix("/top1"): v for k, v in result.metrics.items() if k.endswith("/top1")}
    if not found:
        for name, value in result.metrics.items():
            if re.fullmatch(r"[^/]+/knn\d+", name):
                found.setdefault(name.partition("/")[0], value)
    return found


def _whole(result: Result) -> dict[str, float]:
    """Figures that are of no layer and no class."""
    return {name: value for name, value in result.metrics.items() if "/" not in name}


def _probe_table(probes: Sequence[Path]) -> list[str]:
    """Top-1 by layer of finished probe runs; of other measurements their figures."""
    lines: list[str] = []
    for path in probes:
        result = read_result(path)
        what = "top-1 in %" if _top1(result) else "in %"
        found = {markdown(name): value for name, value in (_top1(result) or _whole(result)).items()}
        data = markdown(Path(result.data).name)
        lines += [f"{markdown(result.protocol)} of {markdown(result.backbone)} on {data}, {result.n} images, {what}:"]
        lines += [""]
        lines += ["| " + " | ".join(found) + " |", "|" + "---|" * len(found)]
        lines += ["| " + " | ".join(f"{100 * value:.1f}" for value in found.values()) + " |", ""]
    return lines
