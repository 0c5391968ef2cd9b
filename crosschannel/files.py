"""Files: read where they are regular, written whole or not at all, and replaced only where that is ours to do.

What a command has written for a user is noted beside it, in ``.crosschannel.jsonl``, with its digest: what is noted and
unchanged since counts as its own, and nothing else. Standard library only, as the launcher's batch script needs it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from crosschannel.errors import UserError, describe, file_problem

NOTES, LOCK, STUDY = ".crosschannel.jsonl", ".lock", "study.json"
MARKERS = {"config.yaml", STUDY, NOTES}  # every folder that a command has written to contains one of these
CONTENT = "content"  # of a folder while it is written
PART = r"\.crosschannel-[0-9a-f]{12}\.part"  # what a file is called while it is written
Writer = Callable[[Path], contextlib.AbstractContextManager[Path]]  # a path → a new file to write to, which becomes it
RUN_HEADER = "# crosschannel run:"  # how the config.yaml of a run folder begins
_LARGEST = 1 << 31  # bytes of a file that is read at once


def cache_folder() -> Path:
    """Where downloads land: ``$CROSSCHANNEL_CACHE``, or ``~/.cache/crosschannel``."""
    return Path(os.environ.get("CROSSCHANNEL_CACHE") or Path.home() / ".cache" / "crosschannel")


def user_path(text: str | Path) -> Path:
    """Convert a user's path, expanding ``~``.

    Raises:
        UserError: not a path, or the path of an unknown user or one without a home folder.
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(f"a file or folder is named by a string or a path, got {describe(text)}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no such user, or home folder") from None


def read_bytes(path: Path | str, limit: int = _LARGEST) -> bytes:
    """The content of a regular file: pipes and devices, which could keep a reader for ever, are refused.

    Raises:
        OSError: it cannot be read, is not a regular file, or has more than ``limit`` bytes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:  # noqa: PTH123
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if found.st_size > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
        return file.read()


def read_text(path: Path, limit: int = 1 << 28) -> str:
    """Read a UTF-8 file, without its byte order mark.

    Raises:
        UserError: it is not UTF-8, not a regular file, too large, or cannot be read.
    """
    try:
        text = read_bytes(path, limit).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8 text") from None
    if "\0" in text:  # such as UTF-16 without a byte order mark
        raise UserError(f"{path} is damaged: it is not UTF-8 text")
    return text


def is_run_folder(path: Path, command: str = "") -> bool:
    """Whether a folder is one of a run (of that command): its ``config.yaml`` says so."""
    try:
        head = read_bytes(path / "config.yaml").partition(b"\n")[0].partition(b"(")[0].strip().decode(errors="replace")
    except OSError:
        return False
    if (path / "config.yaml").is_symlink():
        return False
    return head == f"{RUN_HEADER} {command}" if command else head.startswith(RUN_HEADER)


def is_output_folder(path: Path) -> bool:
    """Whether a command created the whole folder: a run, a study, or the remains of a killed command."""
    return is_run_folder(path) or _is_study(path) or "" in recorded_files(path)


def _is_study(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        manifest = json.loads(read_bytes(path / STUDY))
        return isinstance(manifest, dict) and {"methods", "photographs", "sha256"} <= manifest.keys()
    return False


def recorded_files(folder: Path) -> set[str]:
    """Names of the files in a folder that commands recorded as theirs; "" stands for the whole folder."""
    names = set()
    with contextlib.suppress(OSError):
        for line in read_bytes(folder / NOTES).splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and "command" in row:
                    names.add(str(row.get("file", "")))
    return names


def digest(path: Path, algorithm: str = "sha256") -> str:
    """SHA-256 (or another checksum) of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, name: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """A new file to write to, which becomes ``path`` once the block has ended well; else nothing is left of it.

    Args:
        path: where it goes; a link is followed: what it names is replaced.
        name: its name there, where that depends on what was written.

    Raises:
        UserError: ``path`` is there and not a regular file, or the disk refuses.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".crosschannel-{secrets.token_hex(6)}.part")
    try:
        _check_regular(path, target)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        with mark_in_use(part):
            mode = stat.S_IMODE((target if target.is_file() else part).stat().st_mode)
            yield part
            part.chmod(mode)  # some writers make a file of their own
            sync(part)
            part.replace(target.with_name(name(part)) if name else target)
            sync(target.parent)
    except UserError:
        raise
    except Exception as error:
        problem = file_problem(error)
        if not problem:
            raise
        raise UserError(f"cannot write {path}: {problem.rpartition(': ')[2]}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _check_regular(path: Path, target: Path) -> None:
    if target.exists() and not target.is_file():
        raise UserError(f"cannot write {path}: it is {'a folder' if target.is_dir() else 'not a regular file'}")


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """A folder to write into; if it was made for this and stays empty, it is removed."""
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def atomic_folder(out: Path, command: str, own: str) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` once the block has ended well; else nothing is left of it.

    It is ``OUT.part/content`` meanwhile, beside the lock and the notes by which the leftover of a killed command is
    known, so that a single rename publishes all that belongs to ``out`` and nothing else.

    Args:
        out: a new folder, or an empty one.
        command: as it is typed.
        own: pattern of what it writes into the folder.

    Raises:
        UserError: ``out`` is something else, or what lies at ``OUT.part`` was not left by this command.
    """
    part = partial_path(out)
    if not (part.exists() and _is_left_by(part, command, own)):
        _check_empty(out)
        if part.exists():
            raise UserError(
                f"{part} already exists and was not left by a killed `{command}`; remove it, or give another --out"
            )
    try:
        with FolderLock(part):
            try:
                _clear(part)
                _check_empty(out)
                append_line(part / NOTES, {"command": command})
                content = part / CONTENT
                content.mkdir()
                yield content
                _check_empty(out)
                for path in (*content.rglob("*"), content):
                    sync(path)
                content.replace(out)
                sync(out.parent)
            finally:
                _clear(part)
    finally:
        with contextlib.suppress(OSError):  # the lock removes a folder only if it made it
            part.rmdir()


def _clear(folder: Path) -> None:
    """Remove all but the lock from a folder that is held, its notes last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == NOTES):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def partial_path(out: Path) -> Path:
    """Where a folder is written first.

    Raises:
        UserError: it has no name.
    """
    if not out.name:
        raise UserError(f"out must name a new folder, got {str(out)!r}")
    return out.with_name(f"{out.name}.part")


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder")
    if out.is_symlink() or out.is_mount():
        raise UserError(f"{out} is a link or a mount point; name a new folder")


def _is_left_by(part: Path, command: str, own: str) -> bool:
    """Whether a folder has the note that a command writes into its own, and holds nothing else."""
    names = {path.name for path in part.iterdir()} if part.is_dir() else {""}
    if names <= {LOCK, NOTES}:  # killed before its note was complete, or after all else was removed
        return True
    if not all(re.fullmatch(rf"{CONTENT}|{own}|{PART}", name) for name in names - {NOTES, LOCK}):
        return False
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {json.loads(line).get("command") for line in read_bytes(part / NOTES).splitlines()} == {command}
    return False


@contextlib.contextmanager
def mark_in_use(path: Path) -> Iterator[bool]:
    """Mark a file or folder as being written, so that :func:`remove_partial` leaves it; the mark ends with the process.

    Yields:
        whether it was free (and the file system has locks).
    """
    handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free
    finally:
        os.close(handle)


def remove_partial(folder: Path, pattern: str = PART) -> None:
    """Remove the half-written files (or folders) of killed processes from a folder, but none that is in use."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(pattern, path.name):
            with contextlib.suppress(OSError), mark_in_use(path) as free:
                if free and path.is_dir():
                    shutil.rmtree(path)
                elif free:
                    path.unlink()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before anything else."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Outputs:
    """The files that a command writes where a user says.

    Args:
        command: as it is typed, such as "crosschannel import": another command's files are not this one's.
        inputs: files and folders that it reads; they are never replaced.
        overwrite: replace other files that are not this command's own.
        makes_folders: the folder of a file need not be there.
    """

    def __init__(self, command: str, inputs: Iterable[Path] = (), overwrite: bool = False, makes_folders: bool = False):
        self.command, self.overwrite, self._makes_folders = command, overwrite, makes_folders
        self._inputs = [Path(os.path.realpath(path)) for path in inputs]
        self._input_files = {_identity(path) for path in self._inputs if path.is_file()}
        self._notes: dict[Path, dict[str, set[str]]] = {}  # by folder: digests by file name

    def check(self, path: Path) -> None:
        """Raise a UserError where a file may not be written: to be called before any work is done."""
        target = Path(os.path.realpath(path))
        notes = target.parent / NOTES
        if os.path.lexists(notes) and (notes.is_symlink() or not notes.is_file()):
            raise UserError(f"{notes} is in the way: it is not a regular file")
        if not target.exists():
            if not self._makes_folders and not target.parent.is_dir():
                raise UserError(f"cannot write {path}: no folder {target.parent}")
            return
        _check_regular(path, target)
        own = self._is_own(target)
        inside = any(folder in target.parents for folder in self._inputs if folder.is_dir())
        if _identity(target) in self._input_files or (inside and not own):
            raise UserError(f"{path} is what `{self.command}` reads; it would be overwritten: give another --out")
        if not own and not self.overwrite:
            raise UserError(
                f"{path} exists, and its content is not what `{self.command}` wrote there; "
                "--overwrite replaces it, another --out keeps it"
            )

    @contextlib.contextmanager
    def write(self, path: Path) -> Iterator[Path]:
        """A new file to write to, as of :func:`atomic_write`; it is noted as this command's own."""
        self.check(path)
        with atomic_write(path) as part:
            yield part
            self._note(Path(os.path.realpath(path)), digest(part))

    def write_text(self, path: Path, text: str) -> Path:
        with self.write(path) as part:
            part.write_text(text, encoding="utf-8")
        return path

    def _is_own(self, target: Path) -> bool:
        known = self._known(target)
        return bool(known) and digest(target) in known

    def _known(self, target: Path) -> set[str]:
        """Digests of what this command has written under that name.

        At the first name of a folder, its half-written files of killed commands are removed.
        """
        if target.parent not in self._notes:
            remove_partial(target.parent)
            self._notes[target.parent] = self._read(target.parent / NOTES)
        return self._notes[target.parent].setdefault(target.name, set())

    def _read(self, notes: Path) -> dict[str, set[str]]:
        """What this command noted in a folder; what cannot be read was not written by us."""
        found: dict[str, set[str]] = {}
        with contextlib.suppress(OSError):
            for line in read_bytes(notes).splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    row = json.loads(line)
                    if row["command"] == self.command:
                        found.setdefault(str(row["file"]), set()).add(str(row["sha256"]))
        return found

    def _note(self, target: Path, found: str) -> None:
        if found not in self._known(target):
            self._known(target).add(found)
            append_line(target.parent / NOTES, {"command": self.command, "file": target.name, "sha256": found})


def append_line(path: Path, row: dict[str, object]) -> None:
    """Append a JSON object to a file of lines, in one write, so that lines of several processes do not mix.

    What was cut off before stays a line of its own.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        line, size = (json.dumps(row) + "\n").encode(), os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(handle, line) < len(line):  # the disk is full: half a line would spoil the next one too
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


class FolderLock:
    """Hold a folder against other processes; it is made where there is none.

    A POSIX record lock on ``.lock`` in it: gone with its process however that dies, and not inherited by workers.

    Raises:
        UserError: another process holds it, it cannot be written to, or a file of somebody else's is called so.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self._made: list[Path] = []
        had_one = os.path.lexists(self.path)
        try:
            self._make()
            self._take()
        except OSError as error:
            if not had_one:
                self._remove()
            raise UserError(f"cannot lock {folder}: {error.strerror}") from None

    def _make(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                self._made.append(path)

    def _remove(self) -> None:
        """Remove the lock's file, and the folders that were made for it and hold nothing else."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            for path in reversed(self._made):
                path.rmdir()

    def _take(self) -> None:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(self.path, flags, 0o666)
            self._file = open(handle, "r+", errors="replace")  # noqa: PTH123, SIM115
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                with self._file:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks, say
                        raise
                    holder = self._file.read(200).strip() or "another process"
                    raise UserError(f"{self.folder} is in use by {holder}") from None
            with contextlib.suppress(OSError):  # its last holder may have removed it meanwhile
                if os.stat(self.path).st_ino == os.fstat(handle).st_ino:  # noqa: PTH116
                    break
            self._file.close()
        if not re.match(r"process \d|$", self._file.read(200)):
            self._file.close()
            raise UserError(f"{self.path} is in the way: no command of ours has written it")
        self._file.seek(0)
        self._file.truncate(0)
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
        self._file.flush()
        os.fsync(handle)  # for other nodes to read

    def release(self) -> None:
        """Let go; folders that were made for this lock and hold nothing else are removed."""
        if not self._file.closed:
            self._remove()
            self._file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_exc) -> None:
        self.release()
