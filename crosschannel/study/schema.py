"""Database schema of a study's answers: creation, migration and validation of the tables."""

import sqlite3
from contextlib import closing
from pathlib import Path

from crosschannel.errors import UserError
from crosschannel.study.manifest import MANIFEST, Manifest

_SCHEMA = """
CREATE TABLE study (manifest TEXT NOT NULL);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    token TEXT NOT NULL UNIQUE,
    participant TEXT NOT NULL UNIQUE,
    method TEXT NOT NULL,
    code TEXT NOT NULL,
    begun REAL NOT NULL,
    finished REAL,
    colour_vision TEXT
);
CREATE TABLE trials (
    session INTEGER NOT NULL REFERENCES sessions (id),
    number INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('practice', 'pair', 'check')),
    photograph INTEGER NOT NULL,
    fake TEXT NOT NULL CHECK (fake IN ('left', 'right')),
    first TEXT NOT NULL CHECK (first IN ('left', 'right')),
    token TEXT NOT NULL UNIQUE,
    loads INTEGER NOT NULL DEFAULT 0,
    answer TEXT CHECK (answer IN ('left', 'right')),
    answered REAL,
    first_ms REAL,
    second_ms REAL,
    response_ms REAL,
    hidden INTEGER,
    PRIMARY KEY (session, number)
) WITHOUT ROWID
"""
# Conditions that valid rows fulfil; NULL counts as false.
_SESSION = """
    typeof(id) = 'integer' AND typeof(token) = 'text' AND typeof(participant) = 'text' AND typeof(code) = 'text'
    AND typeof(begun) IN ('real', 'integer') AND typeof(finished) IN ('real', 'integer', 'null')
    AND ({vision} IS NULL OR {vision} IN ('normal', 'deficient', 'unknown')) AND method IN ({methods})
"""
_TRIAL = """
    typeof(number) = 'integer' AND typeof(trials.token) = 'text'
    AND kind IN ({kinds}) AND fake IN ('left', 'right') AND first IN ('left', 'right')
    AND typeof(photograph) = 'integer' AND photograph >= 0 AND photograph < {photographs}
    AND typeof(loads) = 'integer' AND loads >= 0
    AND (
        answer IS NULL
        OR answer IN ('left', 'right') AND first_ms BETWEEN 0 AND 1e7 AND second_ms BETWEEN 0 AND 1e7
        AND response_ms BETWEEN 0 AND 1e7 AND hidden IN (0, 1)
    )
"""


def check_file(path: Path) -> None:
    """Raise a UserError if a file is neither empty nor an SQLite database, since SQLite may overwrite a short file."""
    try:
        with path.open("rb") as file:
            signature = file.read(16)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}") from None
    if signature and signature != b"SQLite format 3\0":
        raise UserError(f"{path} is not an SQLite database; restore a backup")


def create_tables(db: sqlite3.Connection) -> None:
    """Create the tables in an empty database, or add the columns that databases of earlier versions lack."""
    columns = _columns(db)
    if not columns:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
    elif "sessions" in columns and "colour_vision" not in columns["sessions"]:
        db.execute("ALTER TABLE sessions ADD COLUMN colour_vision TEXT")


def check_answers(db: sqlite3.Connection, path: Path, manifest: Manifest, digest: str) -> None:
    """Check that a database contains answers for the pictures of a manifest, with valid tables and values.

    Args:
        db: connection to the database.
        path: file of the database, for messages.
        manifest: manifest of the study.
        digest: SHA-256 of the manifest's file.

    Raises:
        UserError: the answers are for other pictures, a table or column is missing, or a value is out of range.
    """
    columns = _columns(db)
    _check_columns(path, columns)
    row = db.execute("SELECT manifest FROM study").fetchone()
    if row is None and db.execute("SELECT 1 FROM sessions").fetchone():
        raise UserError(f"{path} is damaged: its table study is empty; restore a backup")
    if row is not None and row[0] != digest:
        raise UserError(f"{path} has answers for other pictures than those in {MANIFEST}")
    methods = list(manifest.methods)
    vision = "colour_vision" if "colour_vision" in columns["sessions"] else "NULL"
    condition = _SESSION.format(methods=", ".join("?" * len(methods)), vision=vision)
    row = db.execute(f"SELECT id FROM sessions WHERE NOT IFNULL({condition}, 0)", methods).fetchone()
    if row is not None:
        raise UserError(f"{path} is damaged: session {row[0]} has a value out of range; restore a backup")
    kinds = "'practice', 'pair'" + ", 'check'" * bool(manifest.checks)
    condition = _TRIAL.format(kinds=kinds, photographs=len(manifest.photographs))
    row = db.execute(
        f"SELECT session, number FROM trials JOIN sessions ON session = id WHERE NOT IFNULL({condition}, 0)"
    ).fetchone()
    if row is not None:
        trial = f"pair {row[1]} of session {row[0]}"
        raise UserError(f"{path} is damaged: {trial} has a value out of range; restore a backup")


def _check_columns(path: Path, columns: dict[str, set[str]]) -> None:
    """Raise a UserError if a table or column of the schema is missing."""
    with closing(sqlite3.connect(":memory:")) as db:
        create_tables(db)
        expected = _columns(db)
    expected["sessions"].remove("colour_vision")  # studies of earlier versions lack it
    for table in ("study", "sessions", "trials"):
        if table not in columns:
            raise UserError(f"{path} is damaged or not the database of a study: it has no table {table!r}")
        missing = sorted(expected[table] - columns[table])
        if missing:
            raise UserError(f"{path} is damaged: its table {table!r} has no column {missing[0]!r}; restore a backup")


def _columns(db: sqlite3.Connection) -> dict[str, set[str]]:
    """Return the column names of each table."""
    columns: dict[str, set[str]] = {}
    query = "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c WHERE m.type = 'table'"
    for table, column in db.execute(query):
        columns.setdefault(table, set()).add(column)
    return columns
