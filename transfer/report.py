"""`transfer report RUN … --out DIR`: one page of tables and plots from any number of finished runs.

Runs that differ only in their seed become one row, with the mean and the standard deviation over seeds. Published
results are marked, and never share an axis with results on other data. Each protocol renders its own section.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from crosschannel.config.keys import flatten
from crosschannel.config.load import check_config
from crosschannel.config.training import slug
from crosschannel.console import stderr_console, stdout_console
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, read_text
from crosschannel.pretext import find_task
from crosschannel.report import Block, Heading, Listing, Page, Table, Text
from crosschannel.report.page import copied
from crosschannel.runs.folder import last_pictures
from crosschannel.runs.result import Result, finished_runs
from transfer.comparison import Difference, compare
from transfer.config import ReportConfig
from transfer.groups import Group, data_label, group, over_seeds, recipe_of, test_set_label
from transfer.protocols import is_protocol, load_metric_spec

_DEFINITIONS = {  # metrics of pretraining runs
    "loss": "training objective",
    "loss_constant": "loss of the best constant prediction for these images",
    "loss_share": "ratio of the loss to that of the best constant prediction (0 is perfect)",
    "target_entropy": "entropy of the targets, a lower bound of the loss",
    "kl_share": "ratio of the KL divergence to that of the best constant prediction (0 is perfect)",
    "kl": "KL divergence between predicted and true colours in nats per pixel (0 is perfect)",
    "kl_constant": "KL divergence of the best constant prediction for these images",
    "top1": "top-1 accuracy, as a fraction",
}
Section = Callable[[Sequence[Group], Path], Iterator[Block]]


def main(config: ReportConfig) -> list[Path]:
    """Run `transfer report`: write the page and return its files."""
    config = check_config(config, ReportConfig)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if not config.runs:
        raise UserError("no runs to report; pass at least one run folder")
    runs = finished_runs(dict.fromkeys(config.runs), stderr_console())
    groups = _apply_labels(group(runs), config.label)
    chapters: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for entry in groups:
        chapters[_chapter(entry.first.protocol)[0], entry.first.data].append(entry)
    page = Page(config.title)
    for number, ((chapter, _), members) in enumerate(chapters.items()):
        _, section = _chapter(members[0].first.protocol)
        page.add(*section(members, out / f"{slug(chapter)}-{number}"), *_gains_over_random(members))
    page.add(Heading("How to reproduce these runs"), *_listings(groups))
    outputs = Outputs("transfer report", [path for path, _ in runs], config.overwrite)
    with FolderLock(out):
        for path in page.files(out):
            outputs.check(path)
        files = page.write(out, outputs.write)
    stdout_console().print(f"report: {out / 'report.html'} (and report.md, tables.tex)")
    return files


def _chapter(protocol: str) -> tuple[str, Section]:
    """Return the name of a protocol's report section and the function that renders it."""
    spec = None
    with contextlib.suppress(UserError):  # user code that can no longer be imported
        spec = load_metric_spec(protocol)
    if spec is None:  # pretraining, a protocol of a newer version, or user code that cannot be imported
        return protocol, _generic_section
    return spec.chapter or protocol, spec.section


def _apply_labels(groups: list[Group], labels: Sequence[str]) -> list[Group]:
    """Set the labels of groups in place.

    Args:
        groups: groups of runs.
        labels: RUN=TEXT or BACKBONE=TEXT.

    Raises:
        UserError: a label matches no run, a group has two labels, or two groups have the same label.
    """
    suffixes = {id(entry): entry.label.removeprefix(entry.backbone) for entry in groups}
    texts: dict[int, dict[str, None]] = defaultdict(dict)
    for label in labels:
        positions = [position for position, character in enumerate(label) if character == "="]
        candidates = {label[:position].rstrip("/"): label[position + 1 :] for position in positions}
        matches = [
            (entry, candidates[name])
            for entry in groups
            for name in (entry.backbone.rstrip("/"), *(str(path) for path, _ in entry.runs))
            if name in candidates
        ]
        if not matches:
            raise UserError(f"the label {label!r} matches none of the runs; write RUN=TEXT or BACKBONE=TEXT")
        for entry, text in matches:
            entry.label = text + suffixes[id(entry)]
            texts[id(entry)][text] = None
            if len(texts[id(entry)]) > 1:
                runs, both = ", ".join(str(path) for path, _ in entry.runs), " and ".join(map(repr, texts[id(entry)]))
                raise UserError(f"{runs}: one row of the report has two labels, {both}; keep one of them")
    runs_by_label: dict[tuple[str, str, str], Path] = {}
    for entry in groups:
        key, run = (entry.first.protocol, entry.first.data, entry.label), entry.runs[0][0]
        if labels and key in runs_by_label:
            raise UserError(
                f"{runs_by_label[key]} and {run} have the same label {entry.label!r}; give them different labels"
            )
        runs_by_label[key] = run
    return groups


def _gains_over_random(groups: Sequence[Group]) -> Iterator[Block]:
    """Yield tables of the gain of each backbone over the same architecture with random weights, if the report has
    runs of both with the same settings and images."""
    rows: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for entry in groups:
        for baseline in groups:
            if baseline.backbone == f"random:{entry.backbone}" and recipe_of(baseline.first) == recipe_of(entry.first):
                by_seed = {result.seed: result for _, result in baseline.runs}
                trained = next((result for _, result in entry.runs if result.seed in by_seed), entry.first)
                differences = _differences(trained, by_seed.get(trained.seed, baseline.first))
                if differences:
                    spec, cells = load_metric_spec(entry.first.protocol), []
                    for d in differences:
                        number_format = spec.format_of(d.metric)
                        cells.append(
                            f"{number_format(d.first - d.second, '+')} "
                            f"({number_format(d.low, '+')} to {number_format(d.high, '+')})"
                        )
                    units = {spec.format_of(d.metric).unit for d in differences}
                    unit = units.pop() if len(units) == 1 else ""
                    unit = {"%": ", percentage points", "": ""}.get(unit, f", {unit}")
                    rows[entry.first.protocol, unit, *(d.metric for d in differences)].append([entry.label, *cells])
    for (protocol, unit, *metrics), table_rows in rows.items():
        caption = f"Gain over random initialisation{unit}, 95 % CI ({protocol}; paired bootstrap over images, one seed)"
        yield Table(caption, ["backbone", *metrics], table_rows)


def _differences(first: Result, second: Result) -> list[Difference]:
    """Compare the first kind of metric of two results; empty if the results cannot be paired."""
    try:
        differences = compare(first, second, resamples=1000)
    except UserError:
        return []
    kind = differences[0].metric.partition("/")[2]
    return [d for d in differences if d.metric.partition("/")[2] == kind]


def _generic_section(groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Yield tables of all metrics and the latest sample pictures, for commands without a report section."""
    subsections: dict[tuple, list[Group]] = defaultdict(list)
    for entry in groups:
        config = flatten(entry.first.config)  # losses of different objectives are not comparable
        subsections[entry.first.n, config.get("task", ""), config.get("objective.kind", "")].append(entry)
    for (_, task, kind), members in subsections.items():
        first = members[0].first
        title = first.protocol.capitalize().replace("Pretrain", "Pretraining")
        title += f" with the task {task}" if task else ""
        title += f" ({kind})" if kind else ""
        metrics = list(dict.fromkeys(m for entry in members for m in entry.first.metrics if m.count("/") < 2))
        yield Heading(f"{title} on {data_label(first.data)}")
        rows = [[entry.label, *(entry.cell(metric, 1, 4) for metric in metrics)] for entry in members]
        definitions = [f"{metric}: {_DEFINITIONS[metric]}" for metric in metrics if metric in _DEFINITIONS]
        yield Table(f"{title}: {test_set_label(first, 0)}{over_seeds(members)}", ["run", *metrics], rows)
        yield from [Text("; ".join(definitions))] * bool(definitions)
        prefix = plots.with_name("-".join([plots.name, "pictures", *filter(None, (task, kind)), str(first.n)]))
        row_labels = f", rows: {rows}" if (rows := _picture_row_labels(task)) else ""
        for number, entry in enumerate(members):
            pictures = last_pictures(entry.runs[0][0])
            if pictures:
                path = prefix.with_name(f"{prefix.name}-{number}.png")
                yield copied(pictures, path, f"{entry.label}: held-out images{row_labels}.")


def _picture_row_labels(task: str) -> str:
    """Return the row labels of a task's sample pictures; empty if the task cannot be imported."""
    with contextlib.suppress(UserError):
        return ", ".join(find_task(task).load().rows)
    return ""


def _listings(groups: list[Group]) -> Iterator[Block]:
    """Yield the command that repeats each run, the provenance of the weights, and the config."""
    for entry in groups:
        for path, result in entry.runs:
            program = "transfer" if is_protocol(result.protocol) else "crosschannel"
            lines = [
                f"{program} {result.protocol} --config {path}/config.yaml --out NEW",
                f"backbone: {result.backbone}",
                f"data: {result.data} ({result.n} images scored); seed {result.seed}; version {result.version}",
            ]
            if (path / "backbone.json").is_file():
                lines.append(f"weights: {read_text(path / 'backbone.json').strip()}")
            lines.append(yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True).strip())
            yield Listing(
                f"{result.protocol}: {entry.label} on {data_label(result.data)}, seed {result.seed}", "\n".join(lines)
            )
