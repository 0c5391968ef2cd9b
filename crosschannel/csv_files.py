"""CSV files that spreadsheets open: text stays text, whatever it begins with."""

import csv
import io
import re
from collections.abc import Iterable
from typing import TextIO

# Spreadsheets take a cell for a formula if it begins so (the last four are full-width forms), after blanks too.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def write_rows(file: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Append rows to a CSV file; text that a spreadsheet would run as a formula gets a leading apostrophe."""
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line).writerow([_cell(value) for value in row])  # it quotes what is part of its line ending, \r\n
        file.write(line.getvalue().removesuffix("\r\n") + "\n")


def cell_text(cell: str) -> str:
    """The text of a cell that :func:`write_rows` has written."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def _cell(value: object) -> object:
    if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
