"""Printed text never controls the terminal, however it is printed."""

import io
import re

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from crosschannel.console import print_stderr, stdout_console, table

CLEAR, TITLE, C1, BELL, BIDI = "\x1b[2J", "\x1b]0;title\x07", "\x9b2J", "\x07\x08\r", "\u202egnp.exe"
LINK, MARKUP = "\x1b]8;;javascript:alert(1)\x1b\\here", "[red]a[/red] [/] :warning: [link=javascript:1]b[/link]"
ALL = [CLEAR, TITLE, C1, BELL, BIDI, LINK, "\x00\x7f", "\ud800", "\u200b\ufeff"]


def shown(print_it) -> str:
    """Output to a terminal, without rich's own styles."""
    console = stdout_console(file=io.StringIO(), force_terminal=True, width=300, color_system="standard")
    print_it(console)
    return re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())


def in_a_cell(text, make=str):
    grid = Table(title=text)
    grid.add_column(text)
    grid.add_row(make(text))
    return lambda console: console.print(grid)


WAYS = {
    "a line": lambda text: lambda console: console.print(text),
    "a styled line": lambda text: lambda console: console.print(text, style="bold"),
    "a text": lambda text: lambda console: console.print(Text(text, "bold")),
    "a rule": lambda text: lambda console: console.rule(text),
    "a cell": in_a_cell,
    "a cell of text": lambda text: in_a_cell(text, Text),
    "our table": lambda text: lambda console: console.print(table({text: [text]}, ["a", text])),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_no_control_character_reaches_the_terminal(text, way):
    out = shown(way(f"before{text}after"))
    assert "before" in out and "after" in out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\ufeff\ud800-\udfff]", out)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_markup_is_printed_literally(way):
    assert MARKUP in shown(way(MARKUP))


def test_a_progress_bar_prints_its_description_literally():
    def with_bar(console):
        with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
            bar.add_task(f"{MARKUP}\x1b]0;title\x07")

    out = shown(with_bar)
    assert MARKUP in out and "\x1b]" not in out and "\x07" not in out


def test_a_line_on_stderr_has_no_control_characters(capsys):
    print_stderr("a" + "".join(ALL) + "b")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", capsys.readouterr().err)
