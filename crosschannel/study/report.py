"""`crosschannel study report`: a page, and tables for others, of what the answers say."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crosschannel.console import stdout_console
from crosschannel.csv_files import write_rows
from crosschannel.errors import UserError
from crosschannel.evaluation.plots import labelled_rows
from crosschannel.evaluation.published import FOOLED
from crosschannel.files import FolderLock, Outputs, Writer
from crosschannel.report import Block, Figure, Heading, Page, Table, Text
from crosschannel.study.answers import DATABASE, read_answers
from crosschannel.study.config import StudyReportConfig
from crosschannel.study.figures import (
    SHOWN_MS,
    TOLERANCE_MS,
    Fooled,
    Participant,
    by_photograph,
    participants_of,
    rates,
    timing_of,
)
from crosschannel.study.manifest import MANIFEST, PICTURES, TRUTH, Manifest, check_pictures, read_study

FIGURES, TRIALS = "fooled.csv", "trials.csv"
_SHOWN = 6  # pictures at either end
_FEW = 10  # participants: of fewer, the bootstrap is too sure


def report(config: StudyReportConfig) -> list[Path]:
    """Write the page and its tables; returns the files.

    Raises:
        UserError: no study, no answers to count, or files in the way.
    """
    folder, manifest = read_study(config.study)
    sessions, trials = read_answers(folder)
    check_pictures(folder, manifest)
    everyone = participants_of(sessions, trials, config.unfinished)
    normal_vision = [person for person in everyone if person.colour_vision in ("normal", None)]
    kept = [person for person in normal_vision if person.attention >= config.attention]
    if not kept:
        begun, ended = len(sessions), sum(session["finished"] is not None for session in sessions)
        raise UserError(
            f"nobody to count: {begun} sessions begun, {ended} finished, {len(everyone) - len(kept)} excluded"
        )
    found, p = rates(kept, list(manifest.methods), config.resamples, config.level, config.seed, config.p_values)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    inputs = [folder / MANIFEST, folder / DATABASE, folder / PICTURES]
    outputs = Outputs("crosschannel study report", inputs, config.overwrite)
    page = Page("Real or fake")
    page.add(Text(_setting(config, manifest, sessions, everyone, normal_vision, kept)))
    page.add(*_tables(config, found, p), *_attention(normal_vision, kept, config))
    page.add(*_timing(kept, trials))
    for method in found:
        page.add(*_pictures(folder, manifest, kept, method, out))
    with FolderLock(out):
        for path in (*page.files(out), out / FIGURES, out / TRIALS):
            outputs.check(path)
        written = page.write(out, outputs.write)
        written += [outputs.write_text(out / FIGURES, _fooled_csv(found))]
        written += [outputs.write_text(out / TRIALS, _trials_csv(manifest, sessions, trials))]
    console = stdout_console()
    for method, one in found.items():
        console.print(f"{method}: {_cell(one)} % fooled, {one.participants} participants")
    console.print(f"report: {out / 'report.html'} (and report.md, {FIGURES}, {TRIALS})")
    return written


def _setting(
    config: StudyReportConfig,
    manifest: Manifest,
    sessions: Sequence[Mapping[str, Any]],
    everyone: Sequence[Participant],
    normal_vision: Sequence[Participant],
    kept: Sequence[Participant],
) -> str:
    finished = sum(session["finished"] is not None for session in sessions)
    judged = sum(not photograph.practice for photograph in manifest.photographs)
    unasked = sum(person.colour_vision is None for person in kept)
    gamut = "moved towards grey" if manifest.gamut == "map" else "clipped channel by channel"
    order = "the left one first" if manifest.first == "left" else "in random order"
    return (
        f"{len(sessions)} people began and {finished} finished; {len(kept)} are counted"
        + (", those who did not finish too" if config.unfinished else "")
        + f" ({len(normal_vision) - len(kept)} recognised fewer than {config.attention:.0%} of the attention checks; "
        f"{len(everyone) - len(normal_vision)} did not report normal colour vision"
        + (f"; {unasked} of those counted were not asked about it" if unasked else "")
        + f"). Each judged {manifest.pairs} of {judged} photographs of {manifest.data} "
        f"({manifest.size} px), {manifest.checks} of these pairs being attention checks, by one method; each picture "
        f"was to be shown for one second, {order}, after pauses of {manifest.before_ms} and {manifest.between_ms} ms. "
        f"Colours outside sRGB were {gamut}. Fooled: the true photograph was said to be the fake one. A perfect "
        "method fools half of the time; colours more typical than the true ones can fool more often."
    )


def _cell(one: Fooled) -> str:
    return f"{100 * one.rate:.1f}" + ("" if np.isnan(one.error) else f" ± {100 * one.error:.1f}")


def _interval(one: Fooled) -> str:
    return "–" if np.isnan(one.low) else f"{100 * one.low:.1f} to {100 * one.high:.1f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _tables(config: StudyReportConfig, found: Mapping[str, Fooled], p: Mapping[tuple[str, str], float]) -> list[Block]:
    rows = [[name, _cell(one), _interval(one), str(one.participants), str(one.pairs)] for name, one in found.items()]
    head = ["method", "fooled, %", f"{config.level:.0%} interval", "participants", "pairs"]
    theirs = [[name, f"{rate:.1f}"] for name, rate in FOOLED.items()]
    blocks: list[Block] = [
        Table("People fooled; ± is the standard error, bootstrapped over participants and their pairs", head, rows),
    ]
    if any(one.participants < _FEW for one in found.values()):
        blocks.append(Text(f"Of fewer than {_FEW} participants, errors and intervals come out too small."))
    published = "Published (Zhang et al. 2016, Table 1)"
    blocks.append(Table(published, ["method", "fooled, %"], theirs, published=len(theirs)))
    if p:
        names = [name for name in found if any(name in pair for pair in p)]
        cells = [[one, *("" if one == other else _p_value(p[one, other]) for other in names)] for one in names]
        question = "Could two methods fool equally often? Two-sided"
        if config.p_values == "one-sided":
            question = "Does the method of the row fool more often than that of the column? One-sided"
        caption = f"{question} p by the same bootstrap (ties count half), not corrected for multiple comparisons"
        blocks.append(Table(caption, ["", *names], cells))
    return blocks


def _attention(everyone: Sequence[Participant], kept: Sequence[Participant], config: StudyReportConfig) -> list[Block]:
    def share(of: Sequence[Participant]) -> str:
        checks = np.concatenate([np.empty(0, bool), *(one.checks for one in of)])
        return f"{100 * checks.mean():.1f} % of {len(checks)}" if len(checks) else "none were shown"

    words = (
        f"Attention checks (another photograph's colours) recognised: {share(everyone)} by all, {share(kept)} by those "
        f"who are counted; the paper's participants recognised 87 %. Left out: who recognised fewer than "
        f"{config.attention:.0%}."
    )
    return [Heading("Attention"), Text(words)]


def _timing(kept: Sequence[Participant], trials: Sequence[Mapping[str, Any]]) -> list[Block]:
    sessions = {one.session for one in kept}
    found = timing_of([trial for trial in trials if trial["session"] in sessions and trial["kind"] != "practice"])
    if found is None:
        return []
    words = (
        f"Of those who are counted: {100 * found.within:.1f} % of {found.pictures} pictures were there for {SHOWN_MS} "
        f"± {TOLERANCE_MS} ms by the browser's own clock (median {found.median:.0f}, {found.least:.0f} to "
        f"{found.most:.0f} ms). The page was out of sight during {found.hidden} of {found.pairs} pairs; the pictures "
        f"of {found.again} were loaded more than once. All of these pairs are counted."
    )
    return [Heading("Timing"), Text(words)]


def _pictures(folder: Path, manifest: Manifest, kept: Sequence[Participant], method: str, out: Path) -> Iterator[Block]:
    """The photographs whose fakes fooled most and least often, as the paper's Fig. 6."""
    judged = by_photograph(kept, method)
    share = {number: fooled / of for number, (fooled, of) in judged.items()}
    count = min(_SHOWN, len(judged) // 2)
    if not count:
        return
    most = sorted(judged, key=lambda n: (-share[n], -judged[n][1]))[:count]  # of equals, those judged most often
    least = sorted(judged.keys() - set(most), key=lambda n: (share[n], -judged[n][1]))[:count]

    def label(number: int) -> str:
        fooled, of = judged[number]
        return f"{Path(manifest.photographs[number].name).name}: fooled {fooled} of {of}"

    labels, rows = [], []
    for pair in zip(most, least, strict=True):
        labels.append(";  ".join(map(label, pair)))
        files = [manifest.photographs[number].files[key] for number in pair for key in (TRUTH, method)]
        rows.append([_pixels(folder / PICTURES / file) for file in files])
    path = out / f"fooled-{method}.png"

    def draw(write: Writer) -> None:
        labelled_rows(path, rows, ["true", method, "true", method], labels, write)

    yield Heading(f"What fooled: {method}")
    yield Figure(
        path,
        f"On the left the {count} pictures that fooled the largest share of those who saw them, on the right the "
        f"{count} that fooled the smallest; beside each the true photograph.",
        draw,
    )


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _as_csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    write_rows(file, [head, *rows])
    return file.getvalue()


def _fooled_csv(found: Mapping[str, Fooled]) -> str:
    """What `crosschannel evaluate --realism` reads."""
    head = ["method", "fooled", "standard_error", "low", "high", "participants", "pairs"]
    rows = []
    for name, one in found.items():
        spread = ["" if np.isnan(value) else value for value in (one.error, one.low, one.high)]
        rows.append([name, one.rate, *spread, one.participants, one.pairs])
    return _as_csv(head, rows)


def _trials_csv(manifest: Manifest, sessions: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> str:
    """Every answer, without the codes of participants: they are numbers here."""
    methods = {session["id"]: session["method"] for session in sessions}
    finished = {session["id"]: session["finished"] is not None for session in sessions}
    vision = {session["id"]: session.get("colour_vision") or "" for session in sessions}
    head = ["participant", "finished", "colour_vision", "method", "number", "kind", "photograph", "fake", "first"]
    head += ["answer", "fooled", "first_ms", "second_ms", "response_ms", "hidden", "loads"]
    rows = [
        [
            trial["session"],
            int(finished[trial["session"]]),
            vision[trial["session"]],
            methods[trial["session"]],
            trial["number"],
            trial["kind"],
            manifest.photographs[trial["photograph"]].name,
            trial["fake"],
            trial["first"],
            trial["answer"],
            int(trial["answer"] != trial["fake"]),
            *(trial[key] for key in ("first_ms", "second_ms", "response_ms", "hidden", "loads")),
        ]
        for trial in trials
        if trial["answer"] is not None
    ]
    return _as_csv(head, rows)
