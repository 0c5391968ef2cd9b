"""Sessions and answers of a study, in SQLite.

An answer is on disk before it is acknowledged, and interrupted sessions can be resumed.
"""

import random
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crosschannel.console import print_stderr
from crosschannel.errors import UserError
from crosschannel.files import digest
from crosschannel.study.manifest import CHECK, MANIFEST, TRUTH, Manifest, read_study
from crosschannel.study.schema import check_answers, check_file, create_tables

DATABASE = "answers.db"
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
ColourVision = Literal["normal", "deficient", "unknown"]
_BUSY_S = 5  # seconds to wait for a locked database
_CODE_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # without characters that look alike


class Refused(Exception):
    """The request is not allowed; the message is shown to the participant."""


class Unavailable(Exception):
    """The database is temporarily not usable (locked, or the disk is full); the same request may succeed later."""


@dataclass(frozen=True)
class Timing:
    """Times that a browser measured for a pair.

    Attributes:
        first_ms, second_ms: display time of each picture.
        response_ms: time from the end of the second picture to the answer.
        hidden: whether the page was hidden at any time.
    """

    first_ms: float
    second_ms: float
    response_ms: float
    hidden: bool


@dataclass(frozen=True)
class State:
    """Progress of a session. It does not reveal which picture is fake.

    Attributes:
        number: index of the next pair, from 0; equal to ``total`` at the end of the session.
        total: number of pairs of the session, including practice.
        practice: number of practice pairs.
        trial: token of the next pair; "" at the end of the session.
        first: side whose picture is shown first; "" at the end of the session.
    """

    number: int
    total: int
    practice: int
    trial: str
    first: str


class Answers:
    """Database of a study.

    Args:
        folder: study folder.
        manifest: manifest of the study.

    Attributes:
        digest: SHA-256 of the manifest's file, which identifies the pictures.

    Raises:
        UserError: the answers are for other pictures, or the file is damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.manifest, self._lock, self._random = manifest, threading.Lock(), random.SystemRandom()
        self._practice = [n for n, photograph in enumerate(manifest.photographs) if photograph.practice]
        self._judged = [n for n, photograph in enumerate(manifest.photographs) if not photograph.practice]
        self.digest = digest(folder / MANIFEST)
        self.path = folder / DATABASE
        check_file(self.path)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
        except sqlite3.Error as error:
            raise UserError(f"could not open {self.path}: {error}") from None
        try:
            self._open()
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.Error | Unavailable):
                raise UserError(f"could not open {self.path}: {error}") from None
            raise

    def _open(self) -> None:
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA synchronous = FULL")
        with self._transaction() as db:
            create_tables(db)
            check_answers(db, self.path, self.manifest, self.digest)
            if db.execute("SELECT 1 FROM study").fetchone() is None:
                db.execute("INSERT INTO study VALUES (?)", (self.digest,))
        self._db.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Merge the write-ahead log into the database file, so that a copy of this file is complete."""
        try:
            with self._connection() as db:
                busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                if busy:
                    raise Unavailable("another program is reading it")
                # If a reader is still connected, the empty log is removed when it disconnects.
                with suppress(sqlite3.OperationalError):
                    db.execute("PRAGMA journal_mode = DELETE")
        except Unavailable as error:
            print_stderr(f"{self.path}: {error}; copy it together with {self.path.name}-wal")
        finally:
            self._db.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Give one thread at a time access to the connection.

        Raises:
            Unavailable: SQLite failed, or other threads held the connection for too long.
        """
        if not self._lock.acquire(timeout=2 * _BUSY_S):
            raise Unavailable("database is locked")
        try:
            yield self._db
        except sqlite3.Error as error:
            raise Unavailable(str(error)) from error
        finally:
            self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block in a transaction: its changes are on disk afterwards, or rolled back if it raises."""
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # if the disk is full, SQLite has already rolled back
                    db.execute("ROLLBACK")
                raise

    def begin(self, participant: str, colour_vision: ColourVision | None = None) -> str:
        """Begin a session with the method that has the fewest sessions, and return its token.

        A session that has not loaded a picture yet is reused, since the response with its token may have been lost.

        Args:
            participant: code of the participant.
            colour_vision: reported colour vision; None if not asked.

        Raises:
            Refused: the participant already has a session.
            Unavailable: the session cannot be saved at the moment.
        """
        with self._transaction() as db:
            existing = db.execute(
                "SELECT sessions.token AS token, SUM(loads) AS loads FROM sessions JOIN trials ON session = id "
                "WHERE participant = ? GROUP BY id",
                (participant,),
            ).fetchone()
            if existing is not None:
                if not existing["loads"]:
                    db.execute(
                        "UPDATE sessions SET colour_vision = ? WHERE token = ?", (colour_vision, existing["token"])
                    )
                    return existing["token"]
                raise Refused(
                    "This code has already taken part. If you were interrupted, continue in the browser you started in."
                )
            sessions = Counter(dict.fromkeys(self.manifest.methods, 0))
            sessions.update(dict(db.execute("SELECT method, COUNT(*) FROM sessions GROUP BY method")))
            method = self._select_least_frequent(self.manifest.methods, sessions, 1)[0]
            token = secrets.token_urlsafe(32)
            code = "-".join("".join(self._random.choices(_CODE_ALPHABET, k=4)) for _ in range(3))
            row = (token, participant, method, code, time.time(), colour_vision)
            session = db.execute(
                "INSERT INTO sessions (token, participant, method, code, begun, colour_vision) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            db.executemany(
                "INSERT INTO trials (session, number, kind, photograph, fake, first, token) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(session, number, *trial) for number, trial in enumerate(self._draw_trials(db, method))],
            )
        return token

    def _draw_trials(self, db: sqlite3.Connection, method: str) -> Iterator[tuple[str, int, Side, Side, str]]:
        """Draw the pairs of a session: kind, photograph, side of the fake, side of the first picture, and token."""
        judgements: Counter[int] = Counter()
        judgements.update(
            dict(
                db.execute(
                    "SELECT photograph, COUNT(*) FROM trials JOIN sessions ON session = id "
                    "WHERE method = ? AND kind = 'pair' GROUP BY photograph",
                    (method,),
                )
            )
        )
        selected = self._select_least_frequent(self._judged, judgements, self.manifest.pairs)
        pair_count = len(selected) - self.manifest.checks  # the photographs judged most often become attention checks
        trials = [("pair" if rank < pair_count else "check", photograph) for rank, photograph in enumerate(selected)]
        self._random.shuffle(trials)
        practice = self._random.sample(self._practice, self.manifest.practice)
        trials = [*(("practice", photograph) for photograph in practice), *trials]
        for kind, photograph in trials:
            first = "left" if self.manifest.first == "left" else self._random.choice(SIDES)
            yield kind, photograph, self._random.choice(SIDES), first, secrets.token_urlsafe(16)

    def _select_least_frequent(self, items: Any, counts: Counter, size: int) -> list:
        """Return the ``size`` items with the lowest counts, in ascending order; ties are broken at random."""
        return sorted(items, key=lambda item: (counts[item], self._random.random()))[:size]

    def state(self, session: str) -> State | None:
        """Return the progress of a session; None if it does not exist."""
        with self._connection():
            return self._state(session)

    def _state(self, session: str) -> State | None:
        rows = self._db.execute(
            "SELECT number, kind, trials.token, first, answer FROM trials JOIN sessions ON session = id "
            "WHERE sessions.token = ? ORDER BY number",
            (session,),
        ).fetchall()
        if not rows:
            return None
        next_row = next((row for row in rows if row["answer"] is None), None)
        practice = sum(row["kind"] == "practice" for row in rows)
        if next_row is None:
            return State(len(rows), len(rows), practice, "", "")
        return State(next_row["number"], len(rows), practice, next_row["token"], next_row["first"])

    def picture(self, session: str, trial: str, side: str) -> str | None:
        """Return the file of a picture and count the request; None if the picture is not part of the next pair."""
        with self._transaction() as db:
            state = self._state(session)
            if state is None or not trial or state.trial != trial or side not in SIDES:
                return None
            row = db.execute(
                "SELECT kind, photograph, fake, method FROM trials JOIN sessions ON session = id "
                "WHERE trials.token = ?",
                (trial,),
            ).fetchone()
            db.execute("UPDATE trials SET loads = loads + 1 WHERE token = ?", (trial,))
        fake = CHECK if row["kind"] == "check" else row["method"]
        return self.manifest.photographs[row["photograph"]].files[fake if row["fake"] == side else TRUTH]

    def answer(self, session: str, trial: str, side: Side, timing: Timing) -> tuple[State, bool | None]:
        """Record the answer to the next pair. Repeating the answer to an earlier pair has no effect.

        Args:
            session: token of the session.
            trial: token of the pair.
            side: side of the picture that the participant called fake.
            timing: times measured by the browser.

        Returns:
            the progress of the session, and whether the answer was right (None unless the pair is for practice).

        Raises:
            Refused: the session does not exist, or the pair is not its next one.
        """
        with self._transaction() as db:
            state = self._state(session)
            row = db.execute(
                "SELECT kind, fake, answer, session FROM trials JOIN sessions ON session = id "
                "WHERE trials.token = ? AND sessions.token = ?",
                (trial, session),
            ).fetchone()
            if state is None or row is None:
                raise Refused("This pair does not exist.")
            if row["answer"] is None:
                if state.trial != trial:
                    raise Refused("This pair is not the next one.")
                db.execute(
                    "UPDATE trials SET answer = ?, answered = ?, first_ms = ?, second_ms = ?, response_ms = ?, "
                    "hidden = ? WHERE token = ?",
                    (
                        side,
                        time.time(),
                        timing.first_ms,
                        timing.second_ms,
                        timing.response_ms,
                        int(timing.hidden),
                        trial,
                    ),
                )
                state = self._state(session)
                if not state.trial:
                    db.execute("UPDATE sessions SET finished = ? WHERE token = ?", (time.time(), session))
            right = (row["answer"] or side) == row["fake"]
        return state, right if row["kind"] == "practice" else None

    def participant(self, session: str) -> str | None:
        """Return the participant code of a session; None if it does not exist."""
        with self._connection() as db:
            row = db.execute("SELECT participant FROM sessions WHERE token = ?", (session,)).fetchone()
        return row["participant"] if row else None

    def code(self, session: str) -> str | None:
        """Return the completion code of a session; None if it has not finished."""
        with self._connection() as db:
            row = db.execute(
                "SELECT code FROM sessions WHERE token = ? AND finished IS NOT NULL", (session,)
            ).fetchone()
        return row["code"] if row else None


def read_answers(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the sessions and trials of a study. A server may be writing to the database at the same time.

    Returns:
        the rows of the tables ``sessions`` and ``trials``.

    Raises:
        UserError: there are no answers, or they cannot be read.
    """
    folder, manifest = read_study(folder)
    path = folder / DATABASE
    if not path.is_file():
        raise UserError(f"{folder} has no answers yet; collect answers with `crosschannel study serve`")
    check_file(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")  # one consistent snapshot of both tables
            check_answers(db, path, manifest, digest(folder / MANIFEST))
            sessions = db.execute("SELECT * FROM sessions ORDER BY id").fetchall()
            trials = db.execute(
                "SELECT trials.* FROM trials JOIN sessions ON session = id ORDER BY session, number"
            ).fetchall()
    except sqlite3.Error as error:
        raise UserError(f"could not read {path}: {error}") from None
    return [dict(row) for row in sessions], [dict(row) for row in trials]
