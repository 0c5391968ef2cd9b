"""Pictures that a user names one by one or by the folder, and where what is made of them goes."""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from crosschannel.console import print_stderr
from crosschannel.data.decode import BrokenImage
from crosschannel.data.folder import format_count, list_folder
from crosschannel.data.sample import photographs
from crosschannel.errors import UserError
from crosschannel.files import read_bytes, user_path

Named = tuple[Path | str, str]
SAMPLE = "builtin:sample"
_OF_THE_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}


def named_pictures(names: Sequence[str]) -> list[Named]:
    """List the pictures that a user names: files, folders of them, or builtin:sample. Report skipped files.

    Returns:
        (what to read, its name without the extension, below the folder that was named) of each.

    Raises:
        UserError: no such picture, or none at all.
    """
    found: list[Named] = []
    if not names:
        raise UserError("no pictures named: give files or folders")
    for name in names:
        path = user_path(name)
        if name == SAMPLE:
            found += ((f"{SAMPLE}/{photo}", Path(photo).stem) for photo in photographs().names)
        elif path.is_dir():
            listing = list_folder(path)
            left_out = f"; left out: {listing.left_out()}" if listing.left_out() else ""
            if not listing.files:
                raise UserError(f"no pictures in the folder {name}{left_out}")
            if left_out:
                print_stderr(f"{name}: {format_count(len(listing.files), 'picture')}{left_out}")
            found += ((path / file, str(Path(file).with_suffix(""))) for file in listing.files)
        elif path.exists():  # what is no regular file is said when it is read
            found.append((path, path.stem))
        else:
            raise UserError(f"no picture or folder {name!r}")
    return found


def picture_bytes(source: Path | str) -> bytes:
    """The encoded bytes of a picture of :func:`named_pictures`.

    Raises:
        BrokenImage: the file cannot be read.
    """
    if isinstance(source, Path):
        try:
            return read_bytes(source)
        except OSError as error:
            raise BrokenImage(error.strerror or str(error)) from None
    names = list(photographs().names)
    return photographs().read(names.index(source.removeprefix(f"{SAMPLE}/")))


def targets(pictures: Iterable[tuple[Path | str, Path]], ending: str) -> list[tuple[Path | str, Path]]:
    """Where what is made of each picture goes; names that would collide are numbered.

    Args:
        pictures: what is read, and the path that what is made of it has, without its ending.
        ending: what follows.

    Raises:
        UserError: it would go where a picture is read.
    """
    pictures = list(pictures)
    inputs = {os.path.realpath(source) for source, _ in pictures}
    taken: set[str] = set()  # by what they are once links are followed
    found = []
    for source, stem in pictures:
        target, number = stem.with_name(f"{stem.name}{ending}"), 1
        while os.path.realpath(target) in taken:
            target, number = stem.with_name(f"{stem.name}-{number}{ending}"), number + 1
        if os.path.realpath(target) in inputs:
            raise UserError(f"{target} would overwrite a picture that is read; give another --out")
        taken.add(os.path.realpath(target))
        found.append((source, target))
    return found


@contextlib.contextmanager
def only_this_name() -> Iterator[None]:
    """A name that the file system does not take is a fault of this picture alone."""
    try:
        yield
    except (UserError, OSError) as error:
        reason = error.__cause__ if isinstance(error, UserError) else error
        if getattr(reason, "errno", None) not in _OF_THE_NAME:
            raise
        raise BrokenImage(f"it cannot be written: {reason.strerror}") from None
