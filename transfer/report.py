"""`transfer report RUN … --out DIR`: any number of finished runs as one page of tables and plots.

Runs that differ in their seed alone become one row, the mean and standard deviation over seeds. Published figures are
marked as such, and never share an axis with figures of other data.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from crosschannel.console import stderr_console, stdout_console
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, read_text
from crosschannel.keys import Device, Out, Seed
from crosschannel.report import Figure, Heading, Listing, Page, Table, Text, accuracy_by_layer
from crosschannel.report.page import FILES
from crosschannel.report.published import IMAGENET_PROBES, LAYERS, PASCAL, PASCAL_COLUMNS
from crosschannel.training.config import flatten
from transfer.result import Result, finished_runs

# Keys that do not tell runs of a table apart.
_FREE = {"seed", "out", "device", "data", "backbone", "init_from", "batch", "workers", "broken_limit"}
_BY_LAYER, _BY_LAYER_KINDS = ("linear-probe", "knn"), re.compile(r"top\d|knn\d+(/t.*)?")
_KINDS = {"top1": "top-1", "top5": "top-5"}
_PASCAL = {"classify": 4952, "detect": 4952, "segment": 736}  # images that the published figures are of
_WORDS = {"linear-probe": "Linear probes", "knn": "Nearest neighbours", "pretrain": "Pretraining"}


@dataclass
class ReportConfig:
    """Gather finished runs into report.md, report.html and tables.tex, with plots."""

    out: Out
    """folder for the page; files of an earlier report in it are replaced, others are not"""
    runs: list[str] = field(default_factory=list, metadata={"help": "run folders, of any protocol"})
    title: str = "What the backbones learned"
    """of the page"""
    overwrite: bool = False
    """replace files that no report has written"""
    seed: Seed = 0
    """taken as by every command; nothing is drawn at random"""
    device: Device = "auto"
    """taken as by every command; nothing here needs one"""


@dataclass
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        label: the backbone, and what its config has that others of the page have not.
        runs: (folder, result).
    """

    label: str
    runs: list[tuple[Path, Result]]

    @property
    def first(self) -> Result:
        return self.runs[0][1]

    def over_seeds(self, metric: str) -> tuple[float, float] | None:
        """Mean and standard deviation of a metric; None where a run lacks it."""
        values = [result.metrics[metric] for _, result in self.runs if metric in result.metrics]
        if len(values) < len(self.runs):
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def cell(self, metric: str, factor: float = 100, digits: int = 1) -> str:
        found = self.over_seeds(metric)
        if found is None:
            return "–"
        mean, spread = (factor * value for value in found)
        return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(self.runs) > 1 else "")


def run(config: ReportConfig) -> list[Path]:
    """`transfer report`: write the page; returns its files."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if not config.runs:
        raise UserError("no runs named: give run folders")
    runs = finished_runs(dict.fromkeys(config.runs), stderr_console())
    groups = group(runs)
    by_setting: dict[tuple, list[Group]] = defaultdict(list)
    for entry in groups:
        by_setting[_section(entry.first)].append(entry)
    sections = sorted(by_setting.items(), key=lambda section: section[0][0] == "pascal")
    plots = {n: out / f"{kind}-{n}.png" for n, ((kind, _, _), _) in enumerate(sections) if kind in _BY_LAYER}
    outputs = Outputs("transfer report", [path for path, _ in runs], config.overwrite)
    page = Page(config.title)
    with FolderLock(out):
        for path in (*plots.values(), *(out / name for name in FILES)):
            outputs.check(path)
        for number, ((kind, _, size), members) in enumerate(sections):
            if kind in _BY_LAYER:
                page.add(*_layers_section(members, plots[number], outputs))
            elif kind == "pascal":
                page.add(*_pascal_section(members, is_whole=not size))
            else:
                page.add(*_plain_section(members))
        page.add(Heading("How each was obtained"), *_origins(groups))
        written = page.write(out, outputs.write)
    stdout_console().print(f"report: {out / 'report.html'} (and report.md, tables.tex)", markup=False)
    return written


def _section(result: Result) -> tuple[str, str, int]:
    """(kind, data, images) that runs of one section share; all images of PASCAL's count as 0, whatever the protocol."""
    if result.protocol in _BY_LAYER and not any(_BY_LAYER_KINDS.fullmatch(m.partition("/")[2]) for m in result.metrics):
        return "without layers", result.data, result.n
    if result.protocol in _PASCAL:
        return "pascal", result.data, 0 if result.n == _PASCAL[result.protocol] else result.n
    return result.protocol, result.data, result.n


def group(runs: list[tuple[Path, Result]]) -> list[Group]:
    """Runs by everything but their seeds, labelled so that no two groups of a protocol look alike."""
    found: dict[str, list[tuple[Path, Result]]] = defaultdict(list)
    for path, result in runs:
        key = [result.protocol, _without_seed(result.backbone), result.data, result.n, _science(result)]
        found[json.dumps(key, sort_keys=True)].append((path, result))
    alike: dict[tuple, list[list[tuple[Path, Result]]]] = defaultdict(list)
    for members in found.values():
        first = members[0][1]
        alike[first.protocol, _without_seed(first.backbone), first.data].append(members)
    groups = []
    for (_, backbone, _), variants in alike.items():
        configs = [_science(members[0][1]) for members in variants]
        keys = dict.fromkeys(key for config in configs for key in config)
        differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
        for members, science in zip(variants, configs, strict=True):
            words = ", ".join(f"{key}={science[key]}" for key in differing if key in science)
            groups.append(Group(f"{backbone} ({words})" if words else backbone, members))
    return groups


def _without_seed(source: str) -> str:
    return re.sub(r",seed=\d+", "", source)


def _science(result: Result) -> dict[str, object]:
    return {k: v for k, v in flatten(result.config).items() if k not in _FREE and not k.startswith("runtime.")}


def _layers_section(groups: list[Group], plot: Path, outputs: Outputs) -> Iterator[Heading | Text | Table | Figure]:
    """Accuracy by layer: a plot of the first kind of figure, a table of each."""
    first = groups[0].first
    metrics = list(dict.fromkeys(metric for entry in groups for metric in entry.first.metrics))
    kinds = [k for k in dict.fromkeys(m.partition("/")[2] for m in metrics) if _BY_LAYER_KINDS.fullmatch(k)]
    layers = [m.removesuffix(f"/{kinds[0]}") for m in metrics if m.endswith(f"/{kinds[0]}")]
    classes = sum(metric.startswith(f"{layers[0]}/top1/") for metric in first.metrics)
    where = _setting(first, classes)
    yield Heading(f"{_WORDS[first.protocol]} on {_name(first.data)}")
    yield Text(
        f"Validation accuracy in percent on {where}. One figure's standard error is at most "
        f"{50 / first.n**0.5:.1f} points; `transfer compare` pairs runs image by image."
    )
    curves = {
        entry.label: {
            layer: (100 * found[0], 100 * found[1])
            for layer in layers
            if (found := entry.over_seeds(f"{layer}/{kinds[0]}")) is not None
        }
        for entry in groups
    }
    is_imagenet = classes == 1000 and first.n >= 49_000
    published = _published_probes() if first.protocol == "linear-probe" and set(LAYERS) <= set(layers) else {}
    theirs_apart = "" if is_imagenet else "top-1 accuracy, %\n(published: ImageNet, 1,000 classes)"
    shown = LAYERS if published and all(set(LAYERS) & set(curve) for curve in curves.values()) else layers
    accuracy_by_layer(
        plot,
        shown,
        curves,
        f"{_KINDS.get(kinds[0], kinds[0])} accuracy, %\n({where})",
        published,
        theirs_apart,
        outputs.write,
    )
    caption = f"{_KINDS.get(kinds[0], kinds[0])} by layer." + (" Dotted: published figures." if published else "")
    if published and not is_imagenet:
        caption += " The two panels are of different data: their heights cannot be compared."
    yield Figure(plot, caption)
    for kind in kinds:
        rows = [[entry.label, *(entry.cell(f"{layer}/{kind}") for layer in layers)] for entry in groups]
        theirs = []
        if kind == "top1" and is_imagenet:
            theirs = [
                [name, *(f"{curve[layer][0]:.1f}" if layer in curve else "–" for layer in layers)]
                for name, curve in published.items()
            ]
        caption = f"{_KINDS.get(kind, kind)}, %, by layer ({where}{_seeds(groups)})"
        yield Table(caption, ["backbone", *layers], theirs + rows, len(theirs))


def _published_probes() -> dict[str, dict[str, tuple[float, float]]]:
    return {
        f"{name} (published)": {layer: (value, 0.0) for layer, value in zip(LAYERS, values, strict=True)}
        for name, values in IMAGENET_PROBES.items()
    }


def _setting(result: Result, classes: int) -> str:
    return f"{_name(result.data)}, {result.n:,} images" + (f" of {classes} classes" if classes else "")


def _seeds(groups: list[Group]) -> str:
    return "; ± is the standard deviation over seeds" if any(len(entry.runs) > 1 for entry in groups) else ""


def _name(data: str) -> str:
    return data if ":" in data else Path(data).name or data


def _plain_section(groups: list[Group]) -> Iterator[Heading | Table]:
    """Every metric of a protocol that has no picture of its own."""
    first = groups[0].first
    metrics = [m for m in first.metrics if m.count("/") < 2]
    title = _WORDS.get(first.protocol, first.protocol)
    yield Heading(f"{title} on {_name(first.data)}")
    rows = [[entry.label, *(entry.cell(metric, 1, 4) for metric in metrics)] for entry in groups]
    yield Table(f"{title}: {_setting(first, 0)}{_seeds(groups)}", ["run", *metrics], rows)


def _pascal_column(result: Result) -> int | None:
    """The column of the paper's Table 2 that a run belongs to."""
    if result.protocol == "classify":
        return {"fc8": 0, "fc6": 1, "all": 2}.get(str(result.config.get("train_from")))
    return {"detect": 3, "segment": 4}.get(result.protocol)


def _pascal_section(groups: list[Group], is_whole: bool) -> Iterator[Heading | Text | Table]:
    """Runs on the same images; beside the paper's Table 2 where those are all of its images."""
    measured: dict[str, list[str]] = {}
    for entry in groups:
        column = _pascal_column(entry.first)
        if column is not None:
            metric = ("map", "map", "map", "ap50", "mean_iu")[column]
            measured.setdefault(entry.label, ["–"] * len(PASCAL_COLUMNS))[column] = entry.cell(metric)
    first, rows, theirs = groups[0].first, [[label, *cells] for label, cells in measured.items()], []
    caption = f"{_setting(first, 0)}: not comparable with figures on all of PASCAL VOC{_seeds(groups)}"
    if is_whole:
        caption = f"as in the paper's Table 2 ({_name(first.data)}{_seeds(groups)})"
        theirs = [
            [f"{name} (published)", *("–" if value is None else f"{value}" for value in values)]
            for name, values in PASCAL.items()
        ]
    yield Heading(f"PASCAL VOC on {_name(first.data)}")
    yield Text("Mean average precision, and mean intersection over union for segmentation, in percent.")
    yield Table(f"PASCAL VOC, {caption}", ["pretraining", *PASCAL_COLUMNS], theirs + rows, len(theirs))


def _origins(groups: list[Group]) -> Iterator[Text | Listing]:
    """For every run: the command that makes it again, where the weights come from, and the whole config."""
    for entry in groups:
        for path, result in entry.runs:
            program = "crosschannel" if result.protocol == "pretrain" else "transfer"
            lines = [
                f"{program} {result.protocol} --config {path}/config.yaml --out NEW",
                f"backbone: {result.backbone}",
                f"data: {result.data} ({result.n} images scored); seed {result.seed}; version {result.version}",
            ]
            if (path / "backbone.json").is_file():
                lines.append(f"weights: {read_text(path / 'backbone.json').strip()}")
            lines.append(yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True).strip())
            yield Listing(
                f"{result.protocol}: {result.backbone} on {_name(result.data)}, seed {result.seed}", "\n".join(lines)
            )
