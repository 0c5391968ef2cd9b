"""CSV files: text that a spreadsheet would run is written as text and read back unchanged."""

import csv
import io

import pytest

from crosschannel.csv_files import cell_text, write_rows

FORMULAS = ["=1+1", "+cmd", "-cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1"]
FORMULAS += ["＝1+1", "＋1", "－1a", "＠a"]
HARMLESS = [
    "photo.jpg",
    "a=b",
    "'quoted'",
    "'",
    "",
    "größe",
    "a,b",
    'a"b',
    "a\nb",
    "a\rb",
    "-0.25",
    "+1e5",
    "-inf",
    "nan",
]


def written(*cells: object) -> str:
    file = io.StringIO()
    write_rows(file, [cells])
    return file.getvalue()


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_as_a_formula(text):
    (cell,) = next(csv.reader(io.StringIO(written(text), newline="")))
    assert cell == f"'{text}" and cell_text(cell) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_and_numbers_are_unchanged(text):
    (cell,) = next(csv.reader(io.StringIO(written(text), newline="")))
    assert cell == cell_text(cell) == text


def test_other_values_are_written_as_by_csv():
    assert written(-1, -0.5, None, True) == "-1,-0.5,,True\n"


def test_no_other_module_writes_csv():
    """A single module decides how text is written into a cell."""
    from pathlib import Path

    root = Path(__file__).parents[2]
    sources = [path for name in ("crosschannel", "transfer", "slurm") for path in (root / name).rglob("*.py")]
    writers = {path.name for path in sources if "csv.writer(" in path.read_text() or "DictWriter(" in path.read_text()}
    assert len(sources) > 100 and writers == {"csv_files.py"}
