"""`transfer report RUN … --out DIR`: any number of finished runs as one page of tables and plots.

Runs that differ in their seed alone become one row, the mean and standard deviation over seeds. Published figures are
marked as such, and never share an axis with figures of other data. What a protocol's runs look like is the protocol's.
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
from transfer.groups import Group, data_label, group, over_seeds, science_of, test_set_label
from transfer.protocols import is_protocol, load_metric_spec

_MEANINGS = {  # of what pretraining is judged by
    "loss": "what the task is trained to lower",
    "loss_constant": "the loss of the one prediction that fits these images best",
    "loss_share": "loss as a share of that: 1 is knowing nothing of the pictures, 0 everything",
    "target_entropy": "the part of the loss that no net can avoid",
    "kl_share": "kl as a share of kl_constant: 1 is knowing nothing of the pictures, 0 everything",
    "kl": "how far predicted colours are from the true ones, in nats a pixel; 0 for a perfect net",
    "kl_constant": "the same for the one prediction that fits these images best",
    "top1": "share of the images in their class",
}
Section = Callable[[Sequence[Group], Path], Iterator[Block]]


def main(config: ReportConfig) -> list[Path]:
    """`transfer report`: write the page; returns its files."""
    config = check_config(config, ReportConfig)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if not config.runs:
        raise UserError("no runs named: give run folders")
    runs = finished_runs(dict.fromkeys(config.runs), stderr_console())
    groups = _labelled(group(runs), config.label)
    chapters: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for entry in groups:
        chapters[_chapter(entry.first.protocol)[0], entry.first.data].append(entry)
    page = Page(config.title)
    for number, ((chapter, _), members) in enumerate(chapters.items()):
        _, section = _chapter(members[0].first.protocol)
        page.add(*section(members, out / f"{slug(chapter)}-{number}"), *_less_random(members))
    page.add(Heading("How each was obtained"), *_origins(groups))
    outputs = Outputs("transfer report", [path for path, _ in runs], config.overwrite)
    with FolderLock(out):
        for path in page.files(out):
            outputs.check(path)
        written = page.write(out, outputs.write)
    stdout_console().print(f"report: {out / 'report.html'} (and report.md, tables.tex)")
    return written


def _chapter(protocol: str) -> tuple[str, Section]:
    """Which runs stand together, and how they are shown."""
    spec = None
    with contextlib.suppress(UserError):  # a user's code that is not here any more
        spec = load_metric_spec(protocol)
    if spec is None:  # of pretraining, of a newer version, or of code that is gone
        return protocol, _plain_section
    return spec.chapter or protocol, spec.section


def _labelled(groups: list[Group], labels: Sequence[str]) -> list[Group]:
    """Groups by the labels that a user gives: RUN=TEXT or BACKBONE=TEXT.

    Raises:
        UserError: a label of nothing that is shown.
    """
    more = {id(entry): entry.label.removeprefix(entry.backbone) for entry in groups}
    texts: dict[int, dict[str, None]] = defaultdict(dict)
    for label in labels:
        places = [place for place, mark in enumerate(label) if mark == "="]
        meant = {label[:place].rstrip("/"): label[place + 1 :] for place in places}
        named = [
            (entry, meant[name])
            for entry in groups
            for name in (entry.backbone.rstrip("/"), *(str(path) for path, _ in entry.runs))
            if name in meant
        ]
        if not named:
            raise UserError(f"the label {label!r} is of none of the runs; write RUN=TEXT or BACKBONE=TEXT")
        for entry, text in named:
            entry.label = text + more[id(entry)]
            texts[id(entry)][text] = None
            if len(texts[id(entry)]) > 1:
                runs, both = ", ".join(str(path) for path, _ in entry.runs), " and ".join(map(repr, texts[id(entry)]))
                raise UserError(f"{runs}: one row of the page has two labels, {both}; give it one")
    seen: dict[tuple[str, str, str], Path] = {}
    for entry in groups:
        place, run = (entry.first.protocol, entry.first.data, entry.label), entry.runs[0][0]
        if labels and place in seen:
            raise UserError(f"{seen[place]} and {run} are both called {entry.label!r}; give them different labels")
        seen[place] = run
    return groups


def _less_random(groups: Sequence[Group]) -> Iterator[Block]:
    """What each backbone has over its random twin, of the same recipe and images, with paired intervals."""
    rows: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for entry in groups:
        for twin in groups:
            if twin.backbone == f"random:{entry.backbone}" and science_of(twin.first) == science_of(entry.first):
                seeds = {result.seed: result for _, result in twin.runs}
                mine = next((result for _, result in entry.runs if result.seed in seeds), entry.first)
                found = _differences(mine, seeds.get(mine.seed, twin.first))
                if found:
                    spec, cells = load_metric_spec(entry.first.protocol), []
                    for d in found:
                        show = spec.format_of(d.metric)
                        cells.append(f"{show(d.first - d.second, '+')} ({show(d.low, '+')} to {show(d.high, '+')})")
                    units = {spec.format_of(d.metric).unit for d in found}
                    unit = units.pop() if len(units) == 1 else ""
                    unit = {"%": ", in points", "": ""}.get(unit, f", in {unit}")
                    rows[entry.first.protocol, unit, *(d.metric for d in found)].append([entry.label, *cells])
    for (protocol, unit, *metrics), lines in rows.items():
        caption = f"{protocol}: less its random twin{unit}, with paired 95 % intervals over images (one seed)"
        yield Table(caption, ["backbone", *metrics], lines)


def _differences(first: Result, second: Result) -> list[Difference]:
    """Of the first kind of figure; none where a run has no rows."""
    try:
        found = compare(first, second, resamples=1000)
    except UserError:
        return []
    kind = found[0].metric.partition("/")[2]
    return [d for d in found if d.metric.partition("/")[2] == kind]


def _plain_section(groups: Sequence[Group], plots: Path) -> Iterator[Block]:
    """Every metric of runs that have no section of their own, and the last held-out pictures of each."""
    parts: dict[tuple, list[Group]] = defaultdict(list)
    for entry in groups:
        config = flatten(entry.first.config)  # objectives of one task have losses of their own
        parts[entry.first.n, config.get("task", ""), config.get("objective.kind", "")].append(entry)
    for (_, task, kind), members in parts.items():
        first = members[0].first
        title = first.protocol.capitalize().replace("Pretrain", "Pretraining")
        title += f" by the task {task}" if task else ""
        title += f" ({kind})" if kind else ""
        metrics = list(dict.fromkeys(m for entry in members for m in entry.first.metrics if m.count("/") < 2))
        yield Heading(f"{title} on {data_label(first.data)}")
        rows = [[entry.label, *(entry.cell(metric, 1, 4) for metric in metrics)] for entry in members]
        meant = [f"{metric}: {_MEANINGS[metric]}" for metric in metrics if metric in _MEANINGS]
        yield Table(f"{title}: {test_set_label(first, 0)}{over_seeds(members)}", ["run", *metrics], rows)
        yield from [Text("; ".join(meant))] * bool(meant)
        start = plots.with_name("-".join([plots.name, "pictures", *filter(None, (task, kind)), str(first.n)]))
        seen = f": {rows}" if (rows := _picture_row_labels(task)) else ""
        for number, entry in enumerate(members):
            pictures = last_pictures(entry.runs[0][0])
            if pictures:
                path = start.with_name(f"{start.name}-{number}.png")
                yield copied(pictures, path, f"{entry.label}: held-out images{seen}.")


def _picture_row_labels(task: str) -> str:
    """Labels of the rows in a task's sample pictures; empty if the task cannot be imported."""
    with contextlib.suppress(UserError):
        return ", ".join(find_task(task).load().rows)
    return ""


def _origins(groups: list[Group]) -> Iterator[Block]:
    """For every run: the command that makes it again, where the weights come from, and the whole config."""
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
