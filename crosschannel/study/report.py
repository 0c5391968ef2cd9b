"""`crosschannel study report`: write a report page, and CSV files of the fooling rates and of all answers."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crosschannel.console import stdout_console
from crosschannel.csv_files import write_rows
from crosschannel.data.folder import format_count
from crosschannel.errors import UserError
from crosschannel.evaluation.plots import labelled_rows
from crosschannel.evaluation.published import FOOLED
from crosschannel.files import FolderLock, Outputs, Writer
from crosschannel.report import Block, Figure, Heading, Page, Table, Text
from crosschannel.study.answers import DATABASE, read_answers
from crosschannel.study.config import StudyReportConfig
from crosschannel.study.manifest import MANIFEST, PICTURES, TRUTH, Manifest, check_pictures, read_study
from crosschannel.study.metrics import (
    DISPLAY_MS,
    TOLERANCE_MS,
    FoolingRate,
    Participant,
    collect_participants,
    count_by_photograph,
    fooling_rates,
    summarise_timing,
)

RATES, TRIALS = "fooled.csv", "trials.csv"
_EXAMPLES = 6  # photographs to show whose fakes fooled most often, and as many that fooled least often
_MIN_PARTICIPANTS = 10  # with fewer, the bootstrap underestimates the errors


def report(config: StudyReportConfig) -> list[Path]:
    """Write the report page and the CSV files, and return all files.

    Raises:
        UserError: the study is missing or damaged, there are no answers to include, or an output file exists.
    """
    folder, manifest = read_study(config.study)
    sessions, trials = read_answers(folder)
    check_pictures(folder, manifest)
    participants = collect_participants(sessions, trials, config.unfinished)
    normal_vision = [person for person in participants if person.colour_vision in ("normal", None)]
    included = [person for person in normal_vision if person.attention >= config.attention]
    if not included:
        started, finished = len(sessions), sum(session["finished"] is not None for session in sessions)
        raise UserError(
            f"no participants to include: {format_count(started, 'session')} started, {finished} finished, "
            f"{len(participants) - len(included)} excluded"
        )
    rates, p_values = fooling_rates(
        included, list(manifest.methods), config.resamples, config.level, config.seed, config.p_values
    )
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must be a folder")
    inputs = [folder / MANIFEST, folder / DATABASE, folder / PICTURES]
    outputs = Outputs("crosschannel study report", inputs, config.overwrite)
    page = Page("Real or fake")
    page.add(Text(_describe(config, manifest, sessions, participants, normal_vision, included)))
    page.add(*_tables(config, rates, p_values), *_attention(normal_vision, included, config))
    page.add(*_timing(included, trials))
    for method in rates:
        page.add(*_pictures(folder, manifest, included, method, out))
    with FolderLock(out):
        for path in (*page.files(out), out / RATES, out / TRIALS):
            outputs.check(path)
        written = page.write(out, outputs.write)
        written += [outputs.write_text(out / RATES, _fooled_csv(rates))]
        written += [outputs.write_text(out / TRIALS, _trials_csv(manifest, sessions, trials))]
    console = stdout_console()
    for method, rate in rates.items():
        console.print(f"{method}: {_format_rate(rate)} % fooled, {format_count(rate.participants, 'participant')}")
    console.print(f"report: {out / 'report.html'} (and report.md, {RATES}, {TRIALS})")
    return written


def _describe(
    config: StudyReportConfig,
    manifest: Manifest,
    sessions: Sequence[Mapping[str, Any]],
    participants: Sequence[Participant],
    normal_vision: Sequence[Participant],
    included: Sequence[Participant],
) -> str:
    """Summarise the participants and the settings of the study in a paragraph."""
    finished_count = sum(session["finished"] is not None for session in sessions)
    photograph_count = sum(not photograph.practice for photograph in manifest.photographs)
    not_asked_count = sum(person.colour_vision is None for person in included)
    gamut = "moved towards grey" if manifest.gamut == "map" else "clipped channel by channel"
    order = "the left one first" if manifest.first == "left" else "in random order"
    return (
        f"{format_count(len(sessions), 'person', 'people')} started and {finished_count} finished; "
        f"{len(included)} {'is' if len(included) == 1 else 'are'} included"
        + (", even if they did not finish" if config.unfinished else "")
        + f" ({len(normal_vision) - len(included)} recognised fewer than {config.attention:.0%} of the attention "
        f"checks; {len(participants) - len(normal_vision)} did not report normal colour vision"
        + (f"; {not_asked_count} of those included were not asked about it" if not_asked_count else "")
        + f"). Each judged {manifest.pairs} of {photograph_count} photographs of {manifest.data} "
        f"({manifest.size} px), coloured by one method; {manifest.checks} of these pairs were attention checks. "
        f"Pictures were scheduled for one second each, {order}, after pauses of {manifest.before_ms} ms before the "
        f"first and {manifest.between_ms} ms between the two. Colours outside sRGB were {gamut}. Fooled means that "
        "the true photograph was called the fake. A perfect method fools people half of the time; colours that are "
        "more typical than the true ones can fool them more often."
    )


def _format_rate(rate: FoolingRate) -> str:
    return f"{100 * rate.rate:.1f}" + ("" if np.isnan(rate.error) else f" ± {100 * rate.error:.1f}")


def _format_interval(rate: FoolingRate) -> str:
    return "–" if np.isnan(rate.low) else f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _tables(
    config: StudyReportConfig, rates: Mapping[str, FoolingRate], p_values: Mapping[tuple[str, str], float]
) -> list[Block]:
    """Build the tables of fooling rates, published rates and p-values."""
    rows = [
        [name, _format_rate(rate), _format_interval(rate), str(rate.participants), str(rate.pairs)]
        for name, rate in rates.items()
    ]
    head = ["method", "fooled, %", f"{config.level:.0%} interval", "participants", "pairs"]
    published_rows = [[name, f"{rate:.1f}"] for name, rate in FOOLED.items()]
    blocks: list[Block] = [
        Table("Fooling rates; ± is the standard error, bootstrapped over participants and their pairs", head, rows),
    ]
    if any(rate.participants < _MIN_PARTICIPANTS for rate in rates.values()):
        blocks.append(
            Text(f"With fewer than {_MIN_PARTICIPANTS} participants, errors and intervals are underestimated.")
        )
    caption = "Published (Zhang et al. 2016, Table 1)"
    blocks.append(Table(caption, ["method", "fooled, %"], published_rows, published=len(published_rows)))
    if p_values:
        names = [name for name in rates if any(name in pair for pair in p_values)]
        cells = [
            [row, *("" if row == column else _format_p(p_values[row, column]) for column in names)] for row in names
        ]
        question = "Do two methods fool equally often? Two-sided"
        if config.p_values == "one-sided":
            question = "Does the method of the row fool more often than that of the column? One-sided"
        caption = (
            f"{question} p-values from the same bootstrap (ties count half), not corrected for multiple comparisons"
        )
        blocks.append(Table(caption, ["", *names], cells))
    return blocks


def _attention(
    candidates: Sequence[Participant], included: Sequence[Participant], config: StudyReportConfig
) -> list[Block]:
    """Report the pass rate of attention checks, before and after excluding inattentive participants."""

    def pass_rate(participants: Sequence[Participant]) -> str:
        checks = np.concatenate([np.empty(0, bool), *(participant.checks for participant in participants)])
        return f"{100 * checks.mean():.1f} % of {len(checks)}" if len(checks) else "none were shown"

    text = (
        f"Attention checks (fakes with the colours of another photograph) recognised: {pass_rate(candidates)} by all "
        f"participants, {pass_rate(included)} by those included; 87 % in the paper. Participants who recognised fewer "
        f"than {config.attention:.0%} were excluded."
    )
    return [Heading("Attention"), Text(text)]


def _timing(included: Sequence[Participant], trials: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Report the display times of pictures."""
    sessions = {participant.session for participant in included}
    timing = summarise_timing(
        [trial for trial in trials if trial["session"] in sessions and trial["kind"] != "practice"]
    )
    if timing is None:
        return []
    text = (
        f"{100 * timing.within:.1f} % of the {timing.pictures} pictures seen by included participants were displayed "
        f"for {DISPLAY_MS} ± {TOLERANCE_MS} ms, measured by the browser (median {timing.median:.0f} ms, range "
        f"{timing.shortest:.0f} to {timing.longest:.0f} ms). The page was hidden during {timing.hidden} of "
        f"{timing.pairs} pairs, and the pictures of {timing.reloaded} were loaded more than once. All of these pairs "
        "are included."
    )
    return [Heading("Timing"), Text(text)]


def _pictures(
    folder: Path, manifest: Manifest, included: Sequence[Participant], method: str, out: Path
) -> Iterator[Block]:
    """Show the photographs whose fakes fooled participants most and least often, like the paper's Fig. 6."""
    counts = count_by_photograph(included, method)
    rates = {index: fooled / judged for index, (fooled, judged) in counts.items()}
    count = min(_EXAMPLES, len(counts) // 2)
    if not count:
        return
    # Among equal rates, photographs that were judged more often come first.
    most_fooling = sorted(counts, key=lambda n: (-rates[n], -counts[n][1]))[:count]
    least_fooling = sorted(counts.keys() - set(most_fooling), key=lambda n: (rates[n], -counts[n][1]))[:count]

    def label(index: int) -> str:
        fooled, judged = counts[index]
        return f"{Path(manifest.photographs[index].name).name}: fooled {fooled} of {judged}"

    labels, rows = [], []
    for pair in zip(most_fooling, least_fooling, strict=True):
        labels.append(";  ".join(map(label, pair)))
        files = [manifest.photographs[index].files[key] for index in pair for key in (TRUTH, method)]
        rows.append([_read_picture(folder / PICTURES / file) for file in files])
    path = out / f"fooled-{method}.png"

    def draw(write: Writer) -> None:
        labelled_rows(path, rows, ["true", method, "true", method], labels, write)

    yield Heading(f"Pictures that fooled participants most and least often: {method}")
    yield Figure(
        path,
        f"Left: the {format_count(count, 'picture')} that fooled participants most often. Right: the {count} that "
        "fooled them least often. Each fake is next to its true photograph.",
        draw,
    )


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _format_csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    write_rows(file, [head, *rows])
    return file.getvalue()


def _fooled_csv(rates: Mapping[str, FoolingRate]) -> str:
    """Format the fooling rates as CSV, as input for `crosschannel evaluate --realism`."""
    head = ["method", "fooled", "standard_error", "low", "high", "participants", "pairs"]
    rows = []
    for name, rate in rates.items():
        uncertainty = ["" if np.isnan(value) else value for value in (rate.error, rate.low, rate.high)]
        rows.append([name, rate.rate, *uncertainty, rate.participants, rate.pairs])
    return _format_csv(head, rows)


def _trials_csv(manifest: Manifest, sessions: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> str:
    """Format all answers as CSV, with session ids in place of participant codes."""
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
    return _format_csv(head, rows)
