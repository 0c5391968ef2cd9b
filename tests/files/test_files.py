"""Written whole or not at all, replaced only where that is ours, held by one process at a time."""

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path

import pytest
import torch
from forked import Forked
from safetensors.torch import save_file
from tree import snapshot

from crosschannel import UserError
from crosschannel.files import (
    LOCK,
    RECORDS,
    FolderLock,
    Outputs,
    append_line,
    atomic_write,
    is_run_folder,
    read_bytes,
    read_text,
    user_path,
)


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as part:
        part.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_rights_and_links_outlive_a_replacement(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to("a.txt")
    with atomic_write(link) as part:
        save_file({"x": torch.zeros(1)}, part)  # a writer that makes a file with rights of its own
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640 and path.read_bytes() != b"before"
    mask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "new") as part:
            save_file({"x": torch.zeros(1)}, part)
    finally:
        os.umask(mask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a device"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    else:
        path.symlink_to("/dev/null")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="cannot write"), atomic_write(path) as part:
        part.write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        Outputs("crosschannel test", overwrite=True).check(path)
    assert snapshot(tmp_path) == before and Path("/dev/null").is_char_device()


def full_disk(part):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))


def torch_on_a_full_disk(part):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    torch.save({"x": torch.zeros(1000)}, Full())


def rust_on_a_full_disk(part):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [full_disk, torch_on_a_full_disk, rust_on_a_full_disk])
def test_a_full_disk_is_one_sentence_whoever_wrote(tmp_path, write):
    path = tmp_path / "a.bin"
    with pytest.raises(UserError, match=r"cannot write .*a\.bin: No space left on device"), atomic_write(path) as part:
        write(part)
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_name(tmp_path):
    with pytest.raises(UserError, match="File name too long"), atomic_write(tmp_path / ("n" * 300)) as part:
        part.write_text("x")
    with pytest.raises(UserError, match="No such file"), atomic_write(tmp_path / "gone" / "x") as part:
        part.write_text("x")
    assert list(tmp_path.iterdir()) == []


def write(path, text, command="crosschannel one", **options):
    Outputs(command, **options).write_text(path, text)
    return path.read_text()


def test_a_command_replaces_its_own_output_and_nobody_elses(tmp_path):
    path = tmp_path / "a.txt"
    assert write(path, "first") == "first" and write(path, "second") == "second"
    with pytest.raises(UserError, match="its content was not written by `crosschannel two`"):
        write(path, "theirs", command="crosschannel two")
    path.write_text("edited by hand")
    with pytest.raises(UserError, match="--overwrite"):
        write(path, "third")
    assert path.read_text() == "edited by hand"
    assert write(path, "third", overwrite=True) == "third" and write(path, "fourth") == "fourth"
    (tmp_path / "b.txt").write_text("mine")
    with pytest.raises(UserError):
        write(tmp_path / "b.txt", "x")
    assert (tmp_path / "b.txt").read_text() == "mine"


def test_what_a_command_reads_is_never_replaced(tmp_path):
    path, alias, hard = tmp_path / "in.txt", tmp_path / "alias", tmp_path / "hard"
    write(path, "precious")  # even where it is the command's own
    alias.symlink_to("in.txt")
    hard.hardlink_to(path)
    for name in (path, alias, hard, tmp_path / "." / "in.txt"):
        with pytest.raises(UserError, match="is an input of"):
            write(name, "x", inputs=[path], overwrite=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="is an input of"):
        write(tmp_path / "run" / "result.json", "x", inputs=[tmp_path / "run"], overwrite=True)
    assert path.read_text() == "precious" and (tmp_path / "run" / "result.json").read_text() == "{}"


@pytest.mark.parametrize(
    "notes", ["", "nonsense\n[1]\n", '{"command": 3}\n', '{"command": "crosschannel one"}\n', "\xff\x00"]
)
def test_damaged_notes_prove_nothing(tmp_path, notes):
    (tmp_path / RECORDS).write_bytes(notes.encode("latin-1"))
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(UserError):
        write(tmp_path / "a.txt", "x")
    assert write(tmp_path / "b.txt", "1") == "1" and write(tmp_path / "b.txt", "2") == "2"


def test_lines_are_appended_whole_and_to_regular_files_only(tmp_path):
    append_line(tmp_path / "a.jsonl", {"x": 1})
    append_line(tmp_path / "a.jsonl", {"x": 2})
    assert [json.loads(line)["x"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [1, 2]
    with pytest.raises(OSError, match="not a regular file"):
        append_line(Path("/dev/null"), {})


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(path)
        with pytest.raises(UserError, match="not a regular file"):
            read_text(path)
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_text(tmp_path / "latin")
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_bytes(tmp_path / "large", 99)


def test_a_home_that_is_not_there():
    with pytest.raises(UserError, match="no such user"):
        user_path("~nosuchuser/x")


def test_run_folders_are_known_by_their_config(tmp_path):
    assert not is_run_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("# crosschannel run: pretrain (crosschannel 0.1.0)\na: 1\n")
    assert is_run_folder(tmp_path) and is_run_folder(tmp_path, "pretrain") and not is_run_folder(tmp_path, "knn")
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert not is_run_folder(tmp_path)


def test_a_lock_leaves_nothing_of_its_own(tmp_path):
    with FolderLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    with FolderLock(tmp_path / "kept"):
        (tmp_path / "kept" / "x").write_text("x")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["x"]


def test_a_file_that_is_called_as_the_lock_is_not_ours(tmp_path):
    (tmp_path / LOCK).write_text("[[package]]\nname = 'mine'\n")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="was not created by crosschannel"):
        FolderLock(tmp_path)
    assert snapshot(tmp_path) == before
    (tmp_path / LOCK).write_text("process 1 on a machine that lost its power")
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_the_same_output_is_noted_once(tmp_path):
    for _ in range(3):
        write(tmp_path / "a.txt", "x")
    assert len((tmp_path / RECORDS).read_text().splitlines()) == 1


def take_turns(folder: Path, seconds: float) -> int:
    """Hold a folder again and again; two holders at once would see each other's file."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with FolderLock(folder):
                mark = folder / "held"
                mark.touch(exist_ok=False)
                mark.unlink()
        except UserError:
            continue
        except FileExistsError:
            (folder / "both").touch()
    return 0


def test_processes_that_take_turns_never_hold_it_together(tmp_path):
    """Though each removes the lock's file when it lets go."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(Forked(lambda: take_turns(tmp_path, 1.5))) for _ in range(4)]
        assert [process.wait_and_read() for process in processes] == [(0, "")] * 4
    assert not (tmp_path / "both").exists()


def test_a_file_system_without_locks_leaves_nothing_either(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match="No locks available"):
        FolderLock(tmp_path / "a")
