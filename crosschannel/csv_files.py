"""CSV files that are safe to open in a spreadsheet: text is never evaluated as a formula."""

import csv
import io
import re
from collections.abc import Iterable
from typing import TextIO

# Start of a cell that spreadsheets evaluate as a formula, even after whitespace. The last four are full-width forms.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def write_rows(file: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Append rows to a CSV file. Text that a spreadsheet would evaluate as a formula gets a leading apostrophe."""
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line).writerow([_escape(value) for value in row])  # the \r\n terminator makes csv quote \r and \n
        file.write(line.getvalue().removesuffix("\r\n") + "\n")


def cell_text(cell: str) -> str:
    """Return the original text of a cell that :func:`write_rows` wrote."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def _escape(value: object) -> object:
    if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
