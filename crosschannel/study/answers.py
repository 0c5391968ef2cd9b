"""Sessions and answers of a study, in SQLite. What was acknowledged is on the disk; a session goes on where it was."""

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
_BUSY_S = 5  # seconds that a request waits for a locked database
_CODE = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # no characters that look alike


class Refused(Exception):
    """A request that cannot be granted; the message is for the participant."""


class Unavailable(Exception):
    """The database is temporarily unusable (locked, or on a full disk); the same request may succeed later."""


@dataclass(frozen=True)
class Timing:
    """What a browser measured of a pair.

    Attributes:
        first_ms, second_ms: how long each picture was there.
        response_ms: from then to the answer.
        hidden: the page was out of sight meanwhile.
    """

    first_ms: float
    second_ms: float
    response_ms: float
    hidden: bool


@dataclass(frozen=True)
class State:
    """Where a session stands; nothing in it tells which picture is fake.

    Attributes:
        number: of the pair that is next, from 0; all of them once the session has ended.
        total, practice: pairs of the session, and how many of them are to practise.
        trial: what the pair is called; empty once the session has ended.
        first: the side whose picture comes first.
    """

    number: int
    total: int
    practice: int
    trial: str
    first: str


class Answers:
    """The database of a study.

    Args:
        folder: of the study.
        manifest: what it holds.

    Attributes:
        digest: of the manifest's file: which pictures the answers are to.

    Raises:
        UserError: the answers are of other pictures, or the file is damaged.
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
            raise UserError(f"{self.path} cannot be used: {error}") from None
        try:
            self._open()
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.Error | Unavailable):
                raise UserError(f"{self.path} cannot be used: {error}") from None
            raise

    def _open(self) -> None:
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA synchronous = FULL")
        with self._writing() as db:
            create_tables(db)
            check_answers(db, self.path, self.manifest, self.digest)
            if db.execute("SELECT 1 FROM study").fetchone() is None:
                db.execute("INSERT INTO study VALUES (?)", (self.digest,))
        self._db.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Merge the write-ahead log into the database file, so that a copy of that file alone is complete."""
        try:
            with self._locked() as db:
                busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                if busy:
                    raise Unavailable("another program reads it")
                with suppress(sqlite3.OperationalError):  # a reader is connected: the empty log goes when it does
                    db.execute("PRAGMA journal_mode = DELETE")
        except Unavailable as error:
            print_stderr(f"{self.path}: {error}; copy {self.path.name}-wal with it")
        finally:
            self._db.close()

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to one thread at a time.

        Raises:
            Unavailable: SQLite failed, or other threads hold the connection too long.
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
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run a block in a transaction: on disk once the block has ended, or rolled back."""
        with self._locked() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # on a full disk SQLite has rolled back already
                    db.execute("ROLLBACK")
                raise

    def begin(self, participant: str, colour_vision: ColourVision | None = None) -> str:
        """Begin a session with the method that has the fewest sessions; return its token.

        A session that has shown nothing yet (its reply was lost) is reused.

        Args:
            participant: code of the participant.
            colour_vision: answer of the participant; None if not asked.

        Raises:
            Refused: this participant has a session already.
            Unavailable: the session cannot be saved at the moment.
        """
        with self._writing() as db:
            known = db.execute(
                "SELECT sessions.token AS token, SUM(loads) AS loads FROM sessions JOIN trials ON session = id "
                "WHERE participant = ? GROUP BY id",
                (participant,),
            ).fetchone()
            if known is not None:
                if not known["loads"]:
                    db.execute("UPDATE sessions SET colour_vision = ? WHERE token = ?", (colour_vision, known["token"]))
                    return known["token"]
                raise Refused(
                    "This code has taken part already. If you were interrupted, go on in the browser you began with."
                )
            sessions = Counter(dict.fromkeys(self.manifest.methods, 0))
            sessions.update(dict(db.execute("SELECT method, COUNT(*) FROM sessions GROUP BY method")))
            method = self._least(self.manifest.methods, sessions, 1)[0]
            token = secrets.token_urlsafe(32)
            code = "-".join("".join(self._random.choices(_CODE, k=4)) for _ in range(3))
            row = (token, participant, method, code, time.time(), colour_vision)
            session = db.execute(
                "INSERT INTO sessions (token, participant, method, code, begun, colour_vision) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            db.executemany(
                "INSERT INTO trials (session, number, kind, photograph, fake, first, token) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(session, number, *trial) for number, trial in enumerate(self._drawn(db, method))],
            )
        return token

    def _drawn(self, db: sqlite3.Connection, method: str) -> Iterator[tuple[str, int, Side, Side, str]]:
        """The pairs of a session: kind, photograph, side of the fake one, side of the first one, token."""
        shown: Counter[int] = Counter()
        shown.update(
            dict(
                db.execute(
                    "SELECT photograph, COUNT(*) FROM trials JOIN sessions ON session = id "
                    "WHERE method = ? AND kind = 'pair' GROUP BY photograph",
                    (method,),
                )
            )
        )
        judged = self._least(self._judged, shown, self.manifest.pairs)
        least = len(judged) - self.manifest.checks  # those that were judged most are checks, which do not count
        kinds = [("pair" if place < least else "check", photograph) for place, photograph in enumerate(judged)]
        self._random.shuffle(kinds)
        practice = self._random.sample(self._practice, self.manifest.practice)
        kinds = [*(("practice", photograph) for photograph in practice), *kinds]
        for kind, photograph in kinds:
            first = "left" if self.manifest.first == "left" else self._random.choice(SIDES)
            yield kind, photograph, self._random.choice(SIDES), first, secrets.token_urlsafe(16)

    def _least(self, items: Any, counts: Counter, number: int) -> list:
        """So many of the items that were had least, those had as often drawn at random."""
        return sorted(items, key=lambda item: (counts[item], self._random.random()))[:number]

    def state(self, session: str) -> State | None:
        """Where a session stands; None where there is no such session."""
        with self._locked():
            return self._state(session)

    def _state(self, session: str) -> State | None:
        rows = self._db.execute(
            "SELECT number, kind, trials.token, first, answer FROM trials JOIN sessions ON session = id "
            "WHERE sessions.token = ? ORDER BY number",
            (session,),
        ).fetchall()
        if not rows:
            return None
        following = next((row for row in rows if row["answer"] is None), None)
        practice = sum(row["kind"] == "practice" for row in rows)
        if following is None:
            return State(len(rows), len(rows), practice, "", "")
        return State(following["number"], len(rows), practice, following["token"], following["first"])

    def picture(self, session: str, trial: str, side: str) -> str | None:
        """The file of a picture of the pair that is next, and of no other; that it was asked for is counted."""
        with self._writing() as db:
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
        """Take the answer to the pair that is next; one that is known already changes nothing.

        Args:
            session: its token.
            trial: the pair's token.
            side: whose picture is said to be fake.
            timing: what the browser measured.

        Returns:
            where the session stands then; and for a pair of practice whether the answer was right.

        Raises:
            Refused: no such session, a pair of another one, or one that is not next.
        """
        with self._writing() as db:
            state = self._state(session)
            row = db.execute(
                "SELECT kind, fake, answer, session FROM trials JOIN sessions ON session = id "
                "WHERE trials.token = ? AND sessions.token = ?",
                (trial, session),
            ).fetchone()
            if state is None or row is None:
                raise Refused("There is no such pair.")
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
        """Whose session this is; None where there is no such session."""
        with self._locked() as db:
            row = db.execute("SELECT participant FROM sessions WHERE token = ?", (session,)).fetchone()
        return row["participant"] if row else None

    def code(self, session: str) -> str | None:
        """What a participant shows who has come to the end."""
        with self._locked() as db:
            row = db.execute(
                "SELECT code FROM sessions WHERE token = ? AND finished IS NOT NULL", (session,)
            ).fetchone()
        return row["code"] if row else None


def read_answers(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the sessions and trials of a study, even while a server writes them.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    folder, manifest = read_study(folder)
    path = folder / DATABASE
    if not path.is_file():
        raise UserError(f"{folder} has no answers yet: crosschannel study serve collects them")
    check_file(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")  # one snapshot of both tables
            check_answers(db, path, manifest, digest(folder / MANIFEST))
            sessions = db.execute("SELECT * FROM sessions ORDER BY id").fetchall()
            trials = db.execute(
                "SELECT trials.* FROM trials JOIN sessions ON session = id ORDER BY session, number"
            ).fetchall()
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return [dict(row) for row in sessions], [dict(row) for row in trials]
