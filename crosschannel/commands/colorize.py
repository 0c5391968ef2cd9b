"""`crosschannel colorize`: colour pictures with a trained net."""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageCms, ImageOps

from crosschannel.commands.config import ColorizeConfig
from crosschannel.console import progress, stderr_console
from crosschannel.data.decode import BrokenImage, broken, open_picture, to_rgb
from crosschannel.data.folder import list_files
from crosschannel.data.sample import photographs
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, read_bytes, user_path
from crosschannel.hub import load_colorizer, source_files
from crosschannel.models.colorizer import Colorizer
from crosschannel.training.device import find_device

_OF_THE_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}


def colorize(config: ColorizeConfig) -> list[Path]:
    """Colour every picture named; returns the files written.

    Raises:
        UserError: nothing to colour, a bad key, an output that would replace what is not this command's own; or, after
            all others are done, pictures that could not be read or written.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    pictures = _targets(list(_pictures(config.images)), out, config.format)
    inputs = [*source_files(config.model).values(), *(source for source, _ in pictures if isinstance(source, Path))]
    outputs = Outputs("crosschannel colorize", inputs, config.overwrite, makes_folders=True)
    console, written, failed = stderr_console(), [], []
    with FolderLock(out):
        for _, target in pictures:
            with contextlib.suppress(BrokenImage), _only_this_name():
                outputs.check(target)
        colorizer = load_colorizer(config.model, find_device(config.device))
        colorizer.size = config.size or colorizer.size
        for source, target in progress(pictures, "colouring", len(pictures)):
            try:
                coloured = _colour(colorizer, source, config)
                with _only_this_name():
                    _save(coloured, target, config.format, outputs)
            except BrokenImage as error:
                failed.append(str(source))
                console.print(f"cannot colour {source}: {error}", markup=False)
                continue
            written.append(target)
    console.print(f"{len(written)} coloured in {out}", markup=False)
    if failed:
        raise UserError(f"{len(failed)} of {len(pictures)} pictures could not be coloured, the first is {failed[0]}")
    return written


def _save(picture: Image.Image, target: Path, format: str, outputs: Outputs) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with outputs.write(target) as part:
        try:
            picture.save(part, format, **({"quality": 95} if format == "jpeg" else {}))
        except (OSError, ValueError, SystemError) as error:  # more pixels than the format holds
            if getattr(error, "errno", None):  # the disk's complaint, not the encoder's
                raise
            raise BrokenImage(f"it cannot be written as {format}: {error}") from None


@contextlib.contextmanager
def _only_this_name() -> Iterator[None]:
    """A name that the file system does not take is a fault of this picture alone."""
    try:
        yield
    except (UserError, OSError) as error:
        reason = error.__cause__ if isinstance(error, UserError) else error
        if getattr(reason, "errno", None) not in _OF_THE_NAME:
            raise
        raise BrokenImage(f"it cannot be written: {reason.strerror}") from None


def _pictures(names: list[str]) -> Iterator[tuple[Path | str, str]]:
    """(what to read, relative name without its extension) of every picture."""
    if not names:
        raise UserError("no pictures named: give files or folders")
    for name in names:
        path = user_path(name)
        if name == "builtin:sample":
            yield from ((f"builtin:sample/{photo}", Path(photo).stem) for photo in photographs().names)
        elif path.is_dir():
            files = list_files(path)
            if not files:
                raise UserError(f"no pictures in the folder {name}")
            yield from ((path / file, str(Path(file).with_suffix(""))) for file in files)
        elif path.exists():  # what is no regular file is said when it is read
            yield path, path.stem
        else:
            raise UserError(f"no picture or folder {name!r}")


def _targets(pictures: list[tuple[Path | str, str]], out: Path, format: str) -> list[tuple[Path | str, Path]]:
    """Where each picture goes; names that would collide are numbered."""
    extension = ".png" if format == "png" else ".jpg"
    inputs = {os.path.realpath(source) for source, _ in pictures}
    taken: set[str] = set()  # by what they are once links are followed
    targets = []
    for source, stem in pictures:
        target, number = out / f"{stem}{extension}", 1
        while os.path.realpath(target) in taken:
            target, number = out / f"{stem}-{number}{extension}", number + 1
        if os.path.realpath(target) in inputs:
            raise UserError(f"{target} would overwrite a picture to be coloured; give another --out")
        taken.add(os.path.realpath(target))
        targets.append((source, target))
    return targets


def _colour(colorizer: Colorizer, source: Path | str, config: ColorizeConfig) -> Image.Image:
    """The coloured picture: upright, sRGB, with the alpha of the original (PNG)."""
    upright = _read(source)
    coloured = colorizer(_to_srgb(upright), config.temperature)
    if config.format == "png" and ("A" in upright.getbands() or "transparency" in upright.info):
        coloured.putalpha(upright.convert("RGBA").getchannel("A"))
    return coloured


def _read(source: Path | str) -> Image.Image:
    try:
        if isinstance(source, str):
            names = list(photographs().names)
            data = photographs().read(names.index(source.removeprefix("builtin:sample/")))
        else:
            data = read_bytes(source)
        image = open_picture(data)
        image.load()
        return ImageOps.exif_transpose(image)
    except OSError as error:
        raise BrokenImage(error.strerror) if error.strerror else broken(error) from None
    except Exception as error:  # decoders raise whatever they like on bytes they cannot read
        raise broken(error) from None


def _to_srgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB; an embedded ICC profile is applied, alpha is dropped."""
    icc = image.info.get("icc_profile")
    if "A" in image.getbands():
        image = image.convert("RGB")
    if icc and image.mode in ("RGB", "L", "CMYK"):
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one that does not fit the pixels: take them as they are
    return to_rgb(image)
