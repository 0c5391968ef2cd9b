"""CSV files that are safe to open in spreadsheets: no text is run as a formula."""

import csv
import io
import re
from collections.abc import Iterable
from typing import TextIO

# Spreadsheets run a cell that begins like this as a formula, even after blanks. The last four are full-width forms.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def write_rows(file: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Append rows to a CSV file; text that a spreadsheet would run as a formula gets a leading apostrophe."""
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line).writerow([_cell(value) for value in row])  # its line ending makes it quote \r and \n
        file.write(line.getvalue().removesuffix("\r\n") + "\n")


def cell_text(cell: str) -> str:
    """Restore the text of a cell that :func:`write_rows` wrote."""
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
