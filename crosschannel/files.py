"""File access: reads regular files only, writes atomically, and replaces only files that the same command wrote.

A command records the digests of its output files in ``.crosschannel.jsonl`` in the same folder. A file is replaced only
if it is recorded and has not changed since. This module uses only the standard library, since the launcher's batch
script imports it.
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

RECORDS, LOCK, STUDY = ".crosschannel.jsonl", ".lock", "study.json"
MARKERS = {"config.yaml", STUDY, RECORDS}  # every folder that a command has written to contains one of these
CONTENT = "content"  # subfolder of OUT.part that becomes OUT
PART = r"\.crosschannel-[0-9a-f]{12}\.part"  # name of a file that is being written
Writer = Callable[[Path], contextlib.AbstractContextManager[Path]]  # path → temporary file that finally replaces it
RUN_HEADER = "# crosschannel run:"  # start of the config.yaml of a run folder
_MAX_BYTES = 1 << 31  # maximum size of a file that is read into memory


def cache_folder() -> Path:
    """Return the folder for downloads: ``$CROSSCHANNEL_CACHE``, or ``~/.cache/crosschannel``."""
    return Path(os.environ.get("CROSSCHANNEL_CACHE") or Path.home() / ".cache" / "crosschannel")


def user_path(text: str | Path) -> Path:
    """Convert a user's path to a Path, and expand ``~``.

    Raises:
        UserError: ``text`` is not a path, or its ``~`` refers to an unknown user or a user without a home folder.
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(f"expected a file or folder (a string or a path), got {describe(text)}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: no such user, or no home folder") from None


def read_bytes(path: Path | str, limit: int = _MAX_BYTES) -> bytes:
    """Read a regular file. Pipes and devices are rejected, since reading them could block forever.

    Raises:
        OSError: the file cannot be read, is not a regular file, or has more than ``limit`` bytes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:  # noqa: PTH123
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"more than {limit} bytes", str(path))
        return file.read()


def read_text(path: Path, limit: int = 1 << 28) -> str:
    """Read a UTF-8 file, and drop its byte order mark.

    Raises:
        UserError: the file is not UTF-8, not a regular file, too large, or cannot be read.
    """
    try:
        text = read_bytes(path, limit).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: not UTF-8 text") from None
    if "\0" in text:  # such as UTF-16 without a byte order mark
        raise UserError(f"{path} is damaged: not UTF-8 text")
    return text


def is_run_folder(path: Path, command: str = "") -> bool:
    """Whether the first line of ``config.yaml`` marks a folder as a run folder (of ``command``, if given)."""
    try:
        line = read_bytes(path / "config.yaml").partition(b"\n")[0].partition(b"(")[0].strip().decode(errors="replace")
    except OSError:
        return False
    if (path / "config.yaml").is_symlink():
        return False
    return line == f"{RUN_HEADER} {command}" if command else line.startswith(RUN_HEADER)


def is_output_folder(path: Path) -> bool:
    """Whether a command created the entire folder: a run, a study, or leftovers of a killed command."""
    return is_run_folder(path) or _is_study(path) or "" in recorded_files(path)


def _is_study(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        manifest = json.loads(read_bytes(path / STUDY))
        return isinstance(manifest, dict) and {"methods", "photographs", "sha256"} <= manifest.keys()
    return False


def recorded_files(folder: Path) -> set[str]:
    """Return the names of files in a folder that commands recorded as outputs; "" stands for the entire folder."""
    names = set()
    with contextlib.suppress(OSError):
        for line in read_bytes(folder / RECORDS).splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and "command" in row:
                    names.add(str(row.get("file", "")))
    return names


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file in hex, by default SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, name: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` when the block succeeds, and is removed if it fails.

    Args:
        path: destination. If it is a link, its target is replaced.
        name: function of the written file that returns the final file name, if the name depends on the content.

    Raises:
        UserError: ``path`` exists and is not a regular file, or the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".crosschannel-{secrets.token_hex(6)}.part")
    try:
        _check_regular(path, target)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        with mark_in_use(part):
            mode = stat.S_IMODE((target if target.is_file() else part).stat().st_mode)
            yield part
            part.chmod(mode)  # some writers replace the file, and its mode
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
    """Write a UTF-8 file atomically."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create an output folder if it does not exist. A newly created folder is removed again if it stays empty."""
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def atomic_folder(out: Path, command: str, pattern: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` when the block succeeds, and is removed if it fails.

    The temporary folder is ``OUT.part/content``. ``OUT.part`` also contains the lock and a record of the command, which
    identifies leftovers if the command is killed. Both stay outside ``content``, so that a single rename publishes the
    output and nothing else.

    Args:
        out: new or empty folder.
        command: command as the user types it.
        pattern: regular expression for the names that the command writes into the folder.

    Raises:
        UserError: ``out`` is not a new or empty folder, or ``OUT.part`` exists and was not left by this command.
    """
    part = partial_path(out)
    if not (part.exists() and _is_left_by(part, command, pattern)):
        _check_empty(out)
        if part.exists():
            raise UserError(
                f"{part} already exists and was not left by a killed `{command}`; remove it or choose another --out"
            )
    try:
        with FolderLock(part):
            try:
                _clear(part)
                _check_empty(out)
                append_line(part / RECORDS, {"command": command})
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
        with contextlib.suppress(OSError):  # the lock removes only folders that it created
            part.rmdir()


def _clear(folder: Path) -> None:
    """Remove everything except the lock from a locked folder; the record of the command is removed last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORDS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def partial_path(out: Path) -> Path:
    """Return the path at which an output folder is written before it is renamed.

    Raises:
        UserError: ``out`` has no name, such as "..".
    """
    if not out.name:
        raise UserError(f"out must name a new folder, got {str(out)!r}")
    return out.with_name(f"{out.name}.part")


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder")
    if out.is_symlink() or out.is_mount():
        raise UserError(f"{out} is a link or a mount point; choose a new folder")


def _is_left_by(part: Path, command: str, pattern: str) -> bool:
    """Whether a partial folder has the record of a command and contains only files that the command writes."""
    names = {path.name for path in part.iterdir()} if part.is_dir() else {""}
    if names <= {LOCK, RECORDS}:  # killed before the record was complete, or after everything else was removed
        return True
    if not all(re.fullmatch(rf"{CONTENT}|{pattern}|{PART}", name) for name in names - {RECORDS, LOCK}):
        return False
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {json.loads(line).get("command") for line in read_bytes(part / RECORDS).splitlines()} == {command}
    return False


@contextlib.contextmanager
def mark_in_use(path: Path) -> Iterator[bool]:
    """Mark a file or folder as being written, so that :func:`remove_partial` skips it until the process ends.

    Yields:
        True if no other process had marked it (and the file system supports locks).
    """
    handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError:
            is_free = False
        yield is_free
    finally:
        os.close(handle)


def remove_partial(folder: Path, pattern: str = PART) -> None:
    """Remove partial files or folders that killed processes left in a folder; those in use are skipped."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(pattern, path.name):
            with contextlib.suppress(OSError), mark_in_use(path) as is_free:
                if is_free and path.is_dir():
                    shutil.rmtree(path)
                elif is_free:
                    path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Outputs:
    """Output files of a command, at paths that the user chooses.

    Args:
        command: command as the user types it, such as "crosschannel import". Only its own earlier outputs are replaced.
        inputs: files and folders that the command reads; they are never replaced.
        overwrite: whether to replace other existing files too, except inputs.
        makes_folders: whether the command creates missing folders; if not, the parent folder of an output must exist.
    """

    def __init__(self, command: str, inputs: Iterable[Path] = (), overwrite: bool = False, makes_folders: bool = False):
        self.command, self.overwrite, self._makes_folders = command, overwrite, makes_folders
        self._inputs = [Path(os.path.realpath(path)) for path in inputs]
        self._input_files = {_identity(path) for path in self._inputs if path.is_file()}
        self._digests: dict[Path, dict[str, set[str]]] = {}  # recorded digests by folder and file name

    def check(self, path: Path) -> None:
        """Raise a UserError if a file must not be written. Call this before any work is done."""
        target = Path(os.path.realpath(path))
        records = target.parent / RECORDS
        if os.path.lexists(records) and (records.is_symlink() or not records.is_file()):
            raise UserError(f"{records} is not a regular file; remove it or choose another --out")
        if not target.exists():
            if not self._makes_folders and not target.parent.is_dir():
                raise UserError(f"cannot write {path}: folder {target.parent} does not exist")
            return
        _check_regular(path, target)
        is_own = self._is_own(target)
        is_inside_input = any(folder in target.parents for folder in self._inputs if folder.is_dir())
        if _identity(target) in self._input_files or (is_inside_input and not is_own):
            raise UserError(f"{path} is an input of `{self.command}` and would be overwritten; choose another --out")
        if not is_own and not self.overwrite:
            raise UserError(
                f"{path} already exists, and its content was not written by `{self.command}`; "
                "choose another --out or pass --overwrite"
            )

    @contextlib.contextmanager
    def write(self, path: Path) -> Iterator[Path]:
        """Yield a temporary file like :func:`atomic_write`, and record the result as an output of this command."""
        self.check(path)
        with atomic_write(path) as part:
            yield part
            self._record(Path(os.path.realpath(path)), digest(part))

    def write_text(self, path: Path, text: str) -> Path:
        """Write and record a UTF-8 file."""
        with self.write(path) as part:
            part.write_text(text, encoding="utf-8")
        return path

    def _is_own(self, target: Path) -> bool:
        digests = self._recorded_digests(target)
        return bool(digests) and digest(target) in digests

    def _recorded_digests(self, target: Path) -> set[str]:
        """Return the digests of all files that this command has written under the name of ``target``.

        The first call for a folder also removes the partial files that killed commands left in it.
        """
        if target.parent not in self._digests:
            remove_partial(target.parent)
            self._digests[target.parent] = self._read_records(target.parent / RECORDS)
        return self._digests[target.parent].setdefault(target.name, set())

    def _read_records(self, records: Path) -> dict[str, set[str]]:
        """Read the digests that this command recorded in a folder, by file name. Damaged lines are ignored."""
        digests: dict[str, set[str]] = {}
        with contextlib.suppress(OSError):
            for line in read_bytes(records).splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    row = json.loads(line)
                    if row["command"] == self.command:
                        digests.setdefault(str(row["file"]), set()).add(str(row["sha256"]))
        return digests

    def _record(self, target: Path, sha256: str) -> None:
        if sha256 not in self._recorded_digests(target):
            self._recorded_digests(target).add(sha256)
            append_line(target.parent / RECORDS, {"command": self.command, "file": target.name, "sha256": sha256})


def append_line(path: Path, row: dict[str, object]) -> None:
    """Append a JSON object to a JSON Lines file in a single write, so that lines from different processes do not mix.

    If the last line is incomplete, a new line is started.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        line, size = (json.dumps(row) + "\n").encode(), os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(handle, line) < len(line):  # disk full: a partial line would also corrupt the next one
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


class FolderLock:
    """Exclusive lock of a folder across processes. The folder is created if it does not exist.

    The lock is a POSIX record lock on the file ``.lock`` in the folder. The system releases it when the process ends
    for any reason, and workers do not inherit it.

    Raises:
        UserError: another process holds the lock, the folder is not writable, or ``.lock`` is not a crosschannel file.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self._created_folders: list[Path] = []
        file_existed = os.path.lexists(self.path)
        try:
            self._create_folders()
            self._acquire()
        except OSError as error:
            if not file_existed:
                self._remove()
            raise UserError(f"cannot lock {folder}: {error.strerror}") from None

    def _create_folders(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                self._created_folders.append(path)

    def _remove(self) -> None:
        """Remove the lock file, and the folders that were created for it if they are empty."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            for path in reversed(self._created_folders):
                path.rmdir()

    def _acquire(self) -> None:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(self.path, flags, 0o666)
            self._file = open(handle, "r+", errors="replace")  # noqa: PTH123, SIM115
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                with self._file:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as a file system without locks
                        raise
                    holder = self._file.read(200).strip() or "another process"
                    raise UserError(f"{self.folder} is in use by {holder}") from None
            with contextlib.suppress(OSError):  # the last holder may have removed the file in the meantime
                if os.stat(self.path).st_ino == os.fstat(handle).st_ino:  # noqa: PTH116
                    break
            self._file.close()
        if not re.match(r"process \d|$", self._file.read(200)):
            self._file.close()
            raise UserError(
                f"{self.path} already exists and was not created by crosschannel; choose another folder or remove it"
            )
        self._file.seek(0)
        self._file.truncate(0)
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
        self._file.flush()
        os.fsync(handle)  # so that other nodes can read who holds the lock

    def release(self) -> None:
        """Release the lock. Folders that were created for it are removed if they are empty."""
        if not self._file.closed:
            self._remove()
            self._file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_exc) -> None:
        self.release()
