"""Model cards for exported weights: description, usage, training data, limitations and evaluation results."""

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
    """Raise a UserError unless all runs are finished evaluations of a trained backbone."""
    for path in probes:
        try:
            result = read_result(path)
        except UserError as error:
            raise UserError(f"{path} is not a finished probe run: {error}") from None
        if result.protocol in ("pretrain", "evaluate"):
            raise UserError(f"{path} is not a finished probe run: it is a run of `crosschannel {result.protocol}`")
        if result.backbone.startswith(UNTRAINED):
            raise UserError(f"{path} evaluates the untrained net {result.backbone}; pass runs of the exported backbone")


def write_card(
    folder: Path,
    backbone: Backbone,
    usage: Sequence[str],
    run: Path | None,
    probes: Sequence[Path],
    write: Writer = atomic_write,
    hub: str = "",
) -> Path:
    """Write a model card, ``README.md``, for exported weights, with sample pictures from the pretraining run.

    Args:
        folder: folder of the weights.
        backbone: exported backbone, with the licence in its provenance.
        usage: lines of Python that load the weights from that folder and run the net.
        run: run folder of the pretraining, for its metrics and sample picture, or None.
        probes: finished probe runs of this backbone, for the evaluation tables.
        write: opens the output files.
        hub: Hub repository of the weights, ``owner/name``; empty if it is not yet known.

    Returns:
        Path of the card.
    """
    details = backbone.provenance.details
    licence = json.dumps(details["licence"])  # a JSON string is valid YAML
    header = [
        "---",
        f"license: {licence}",
        "library_name: crosschannel",
        "pipeline_tag: image-feature-extraction",
    ]
    pretext = [f"- {json.dumps(details['pretext'])}"] if "pretext" in details else []
    header += ["tags:", "- self-supervised-learning", *pretext, "- pytorch"]
    name = markdown(folder.resolve().name)
    header += [*_model_index(folder.resolve().name, probes), "---", ""]
    input = backbone.input
    resizing = (
        f"{input.interpolation}, values multiplied by {input.scale:g}" if input.scale != 1 else input.interpolation
    )
    lines = [
        f"# {name}",
        "",
        "A backbone for image feature extraction, exported with "
        f"[crosschannel](https://pypi.org/project/crosschannel/) {__version__} (`pip install crosschannel`).",
        "",
        "## How to use",
        "",
        "```python",
        *usage,
        "```",
        "",
        f"On any machine, pass `{f'hf-hub:{hub}' if hub else 'hf-hub:OWNER/NAME'}` as a source to `crosschannel` or "
        "`transfer`" + ("." if hub else ", after `crosschannel push` has uploaded the weights."),
        "",
        "## Model details",
        "",
        f"- layers: {markdown(', '.join(backbone.layers))}",
        markdown(f"- input: {input.kind}, {input.size} px crop, short side resized to {input.resize} px ({resizing})"),
        *(
            f"- {markdown(key)}: {markdown(Path(str(value)).name if key == 'data' else value)}"
            for key, value in details.items()
        ),
        f"- source: {markdown(Path(backbone.provenance.source).name)}",
        "",
        "## Training data",
        "",
        _training_data(details),
        "",
        "## Limitations",
        "",
        *_limitations(details),
        "",
    ]
    if run is not None and (run / "result.json").is_file():
        metrics = read_result(run).metrics
        names = (details.get("headline", "kl_share"), "loss_share", "loss")
        pretext_metrics = {key: value for key, value in metrics.items() if key in names}
        values = ", ".join(f"{key} {value:.4f}" for key, value in pretext_metrics.items())
        lines += [f"Pretext task on held-out images: {markdown(values)}.", ""]
    lines += _probe_table(probes)
    picture = last_pictures(run) if run else None
    if picture:
        with write(folder / PICTURE) as partial_file:
            shutil.copyfile(picture, partial_file)
        rows = markdown(details.get("rows of its pictures", "lightness, predicted colours, ground truth"))
        lines += [f"![held-out images: {rows}]({PICTURE})", "", f"Held-out images (rows: {rows}).", ""]
    lines += ["## Citation", "", "```bibtex", *_CITATION, "```", ""]
    with write(folder / CARD) as partial_file:
        partial_file.write_text("\n".join(header + lines), encoding="utf-8")
    return folder / CARD


def _training_data(details: dict[str, Any]) -> str:
    if "data" not in details:
        return "Unknown: not recorded in the weights file."
    images = f", {details['images']} images" if "images" in details else ""
    labels = "with labels" if details.get("pretext") == "labels" else "without labels"
    return f"{markdown(Path(str(details['data'])).name)}{images}, {labels}."


def _limitations(details: dict[str, Any]) -> list[str]:
    """Return the items of the section "Limitations"."""
    lines = [
        "- The model was trained only on the data listed above. It may perform poorly on images that are rare in that "
        "data, and it reproduces the biases of the data.",
        "- The model extracts features. To predict classes, train a probe on them or fine-tune the model.",
    ]
    if details.get("pretext") in ("colorization", "larsson", "dahl", "split-brain"):
        lines.append("- Predicted colours are plausible, but they are not evidence of the true colours.")
    return lines


def _model_index(name: str, probes: Sequence[Path]) -> list[str]:
    """Return the metrics of probe runs in the Hugging Face Hub's ``model-index`` format, as lines of YAML."""
    results = []
    for path in probes:
        result = read_result(path)
        metrics = [
            {"type": "accuracy", "name": f"{layer} {result.protocol} top-1", "value": round(100 * value, 2)}
            for layer, value in _top1(result).items()
        ]
        metrics = metrics or [
            {"type": name, "name": f"{result.protocol} {name}", "value": round(100 * value, 2)}
            for name, value in _overall_metrics(result).items()
        ]
        data = Path(result.data).name
        task = {"type": "image-classification", "name": result.protocol}
        results.append({"task": task, "dataset": {"type": data, "name": data}, "metrics": metrics})
    if not results:
        return []
    return yaml.safe_dump({"model-index": [{"name": name, "results": results}]}, sort_keys=False).splitlines()


def _top1(result: Result) -> dict[str, float]:
    """Return top-1 accuracy by layer: of linear probes if there are any, else of k-NN with the first value of k."""
    accuracies = {k.removesuffix("/top1"): v for k, v in result.metrics.items() if k.endswith("/top1")}
    if not accuracies:
        for name, value in result.metrics.items():
            if re.fullmatch(r"[^/]+/knn\d+", name):
                accuracies.setdefault(name.partition("/")[0], value)
    return accuracies


def _overall_metrics(result: Result) -> dict[str, float]:
    """Return the metrics that are neither per layer nor per class."""
    return {name: value for name, value in result.metrics.items() if "/" not in name}


def _probe_table(probes: Sequence[Path]) -> list[str]:
    """Return one table per probe run: top-1 accuracy by layer, or the overall metrics of other protocols."""
    lines: list[str] = []
    for path in probes:
        result = read_result(path)
        unit = "top-1 accuracy in %" if _top1(result) else "metrics in %"
        columns = {markdown(name): value for name, value in (_top1(result) or _overall_metrics(result)).items()}
        data = markdown(Path(result.data).name)
        lines += [f"{markdown(result.protocol)}: {markdown(result.backbone)} on {data} ({result.n} images), {unit}:"]
        lines += [""]
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(f"{100 * value:.1f}" for value in columns.values()) + " |", ""]
    return lines
