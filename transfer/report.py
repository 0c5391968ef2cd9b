"""`transfer report RUN … --out DIR`: any number of finished runs as one page of tables and plots.

Runs that differ in their seed alone become one row, the mean and standard deviation over seeds. Published figures are
marked as such, and never share an axis with figures of other data. What a protocol's runs look like is the protocol's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from crosschannel.console import stderr_console, stdout_console
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, read_text
from crosschannel.parsing import named
from crosschannel.report import Block, Figure, Heading, Listing, Page, Table
from crosschannel.report.page import FILES
from crosschannel.runs.result import finished_runs
from transfer.config import ReportConfig
from transfer.groups import Group, by_size, called, group, over_seeds, setting
from transfer.protocols import PROTOCOLS, SCORED

Section = Callable[[Sequence[Group], Path], Iterator[Block]]


def main(config: ReportConfig) -> list[Path]:
    """`transfer report`: write the page; returns its files."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if not config.runs:
        raise UserError("no runs named: give run folders")
    runs = finished_runs(dict.fromkeys(config.runs), stderr_console())
    groups = group(runs)
    chapters: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for entry in groups:
        chapters[_chapter(entry.first.protocol)[0], entry.first.data].append(entry)
    page = Page(config.title)
    for number, ((chapter, _), members) in enumerate(chapters.items()):
        _, section = _chapter(members[0].first.protocol)
        page.add(*section(members, out / f"{chapter}-{number}"))
    page.add(Heading("How each was obtained"), *_origins(groups))
    outputs = Outputs("transfer report", [path for path, _ in runs], config.overwrite)
    with FolderLock(out):
        for path in (*(b.path for b in page.blocks if isinstance(b, Figure)), *(out / name for name in FILES)):
            outputs.check(path)
        written = page.write(out, outputs.write)
    stdout_console().print(f"report: {out / 'report.html'} (and report.md, tables.tex)", markup=False)
    return written


def _chapter(protocol: str) -> tuple[str, Section]:
    """Which runs stand together, and how they are shown."""
    if protocol in SCORED:
        return protocol, named(SCORED[protocol].section)
    if protocol not in PROTOCOLS:  # of pretraining, or of a newer version
        return protocol, _plain_section
    loaded = PROTOCOLS[protocol].load()
    return loaded.chapter or protocol, loaded.section


def _plain_section(groups: Sequence[Group], _plots: Path) -> Iterator[Block]:
    """Every metric of runs that have no picture of their own."""
    for members in by_size(groups):
        first = members[0].first
        title = first.protocol.capitalize().replace("Pretrain", "Pretraining")
        metrics = [m for m in first.metrics if m.count("/") < 2]
        yield Heading(f"{title} on {called(first.data)}")
        rows = [[entry.label, *(entry.cell(metric, 1, 4) for metric in metrics)] for entry in members]
        yield Table(f"{title}: {setting(first, 0)}{over_seeds(members)}", ["run", *metrics], rows)


def _origins(groups: list[Group]) -> Iterator[Block]:
    """For every run: the command that makes it again, where the weights come from, and the whole config."""
    for entry in groups:
        for path, result in entry.runs:
            program = "transfer" if result.protocol in PROTOCOLS else "crosschannel"
            lines = [
                f"{program} {result.protocol} --config {path}/config.yaml --out NEW",
                f"backbone: {result.backbone}",
                f"data: {result.data} ({result.n} images scored); seed {result.seed}; version {result.version}",
            ]
            if (path / "backbone.json").is_file():
                lines.append(f"weights: {read_text(path / 'backbone.json').strip()}")
            lines.append(yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True).strip())
            yield Listing(
                f"{result.protocol}: {result.backbone} on {called(result.data)}, seed {result.seed}", "\n".join(lines)
            )
