"""Input pictures of a command, passed as files or folders, and the paths of its outputs."""

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

PictureSource = tuple[Path | str, str]  # (path or sample, name without extension)
SAMPLE = "builtin:sample"
_NAME_ERRORS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}


def list_pictures(names: Sequence[str]) -> list[PictureSource]:
    """List the pictures that a user passes: files, folders or builtin:sample. Also print the number of skipped files.

    Returns:
        (source, name) of each picture; the name has no extension and is relative to the folder that was passed.

    Raises:
        UserError: a file or folder does not exist, or there are no pictures.
    """
    pictures: list[PictureSource] = []
    if not names:
        raise UserError("no pictures; pass files or folders")
    for name in names:
        path = user_path(name)
        if name == SAMPLE:
            pictures += ((f"{SAMPLE}/{photo}", Path(photo).stem) for photo in photographs().names)
        elif path.is_dir():
            listing = list_folder(path)
            skipped = f"; skipped: {listing.skipped()}" if listing.skipped() else ""
            if not listing.files:
                raise UserError(f"no pictures in the folder {name}{skipped}")
            if skipped:
                print_stderr(f"{name}: {format_count(len(listing.files), 'picture')}{skipped}")
            pictures += ((path / file, str(Path(file).with_suffix(""))) for file in listing.files)
        elif path.exists():  # if it is not a regular file, reading it fails
            pictures.append((path, path.stem))
        else:
            raise UserError(f"no such picture or folder: {name!r}")
    return pictures


def picture_bytes(source: Path | str) -> bytes:
    """Return the encoded bytes of a picture listed by :func:`list_pictures`.

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


def output_paths(pictures: Iterable[tuple[Path | str, Path]], suffix: str) -> list[tuple[Path | str, Path]]:
    """Return (source, output path) of each picture; colliding paths are numbered.

    Args:
        pictures: (source, output path without suffix) of each picture.
        suffix: suffix to append, including the extension.

    Raises:
        UserError: an output would overwrite one of the pictures.
    """
    pictures = list(pictures)
    inputs = {os.path.realpath(source) for source, _ in pictures}
    used_paths: set[str] = set()  # output paths with links resolved
    outputs = []
    for source, stem in pictures:
        target, number = stem.with_name(f"{stem.name}{suffix}"), 1
        while os.path.realpath(target) in used_paths:
            target, number = stem.with_name(f"{stem.name}-{number}{suffix}"), number + 1
        if os.path.realpath(target) in inputs:
            raise UserError(f"{target} would overwrite an input picture; choose another --out")
        used_paths.add(os.path.realpath(target))
        outputs.append((source, target))
    return outputs


@contextlib.contextmanager
def convert_name_errors() -> Iterator[None]:
    """Convert errors caused by the file name to BrokenImage, so that only this picture fails."""
    try:
        yield
    except (UserError, OSError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if getattr(cause, "errno", None) not in _NAME_ERRORS:
            raise
        raise BrokenImage(f"could not be written: {cause.strerror}") from None
