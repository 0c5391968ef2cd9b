"""`crosschannel colorize`: colour pictures with a trained net."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image, ImageCms, ImageOps

from crosschannel.console import progress, stderr_console
from crosschannel.data.decode import BrokenImage, broken, check_size, to_rgb
from crosschannel.data.folder import list_files
from crosschannel.data.sample import photographs
from crosschannel.errors import UserError
from crosschannel.hub import load_colorizer
from crosschannel.models.colorizer import Colorizer
from crosschannel.training.device import find_device


@dataclass
class ColorizeConfig:
    """Colour pictures: files or folders in, files of the same size out, their lightness kept."""

    model: str
    """a run folder, its colorizer.safetensors, zoo:eccv16, hf-hub:owner/name or an eccv16 .pth"""
    out: str
    """folder for the coloured pictures"""
    images: list[str] = field(
        default_factory=list, metadata={"help": "picture files, folders of them, or builtin:sample"}
    )
    temperature: float | None = None
    """of the annealed mean: lower is more vivid, 1 is the mean; default the net's own (0.38)"""
    size: int = 0
    """short side at which the net looks at a picture; 0 takes the net's own"""
    format: Literal["png", "jpeg"] = "png"
    """of the files written"""
    seed: int = 0
    """taken as by every command; colouring draws nothing at random"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


def colorize(config: ColorizeConfig) -> list[Path]:
    """Colour every picture named; returns the files written.

    Raises:
        UserError: nothing to colour, a bad key, an output that would overwrite an input; or, after all others are
            done, pictures that could not be read.
    """
    if config.temperature is not None and not config.temperature > 0:
        raise UserError(f"temperature must be above 0, got {config.temperature}")
    if config.size < 0:
        raise UserError(f"size must not be negative, got {config.size}")
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    pictures = _targets(list(_pictures(config.images)), out, config.format)
    colorizer = load_colorizer(config.model, find_device(config.device))
    colorizer.size = config.size or colorizer.size
    console, written, failed = stderr_console(), [], []
    for source, target in progress(pictures, "colouring", len(pictures)):
        try:
            _save(_colour(colorizer, source, config), target, config.format)
        except BrokenImage as error:
            failed.append(str(source))
            console.print(f"cannot colour {source}: {error}", markup=False)
            continue
        written.append(target)
    console.print(f"{len(written)} coloured in {out}", markup=False)
    if failed:
        raise UserError(f"{len(failed)} of {len(pictures)} pictures could not be coloured, the first is {failed[0]}")
    return written


def _save(picture: Image.Image, target: Path, format: str) -> None:
    """Write a picture at once or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        picture.save(part, format, **({"quality": 95} if format == "jpeg" else {}))
    except (OSError, ValueError, SystemError) as error:  # more pixels than the format holds
        part.unlink(missing_ok=True)
        if getattr(error, "errno", None):  # the disk's complaint, not the encoder's
            raise
        raise BrokenImage(f"it cannot be written as {format}: {error}") from None
    part.replace(target)


def _pictures(names: list[str]) -> Iterator[tuple[Path | str, str]]:
    """(what to read, relative name without its extension) of every picture."""
    if not names:
        raise UserError("no pictures named: give files or folders")
    for name in names:
        path = Path(name).expanduser()
        if name == "builtin:sample":
            yield from ((f"builtin:sample/{photo}", Path(photo).stem) for photo in photographs().names)
        elif path.is_dir():
            files = list_files(path)
            if not files:
                raise UserError(f"no pictures in the folder {name}")
            yield from ((path / file, str(Path(file).with_suffix(""))) for file in files)
        elif path.is_file():
            yield path, path.stem
        else:
            raise UserError(f"no picture or folder {name!r}")


def _targets(pictures: list[tuple[Path | str, str]], out: Path, format: str) -> list[tuple[Path | str, Path]]:
    """Where each picture goes; names that would collide are numbered."""
    extension = ".png" if format == "png" else ".jpg"
    inputs = {Path(source).resolve() for source, _ in pictures}
    taken: set[Path] = set()
    targets = []
    for source, stem in pictures:
        target, number = out / f"{stem}{extension}", 1
        while target in taken:
            target, number = out / f"{stem}-{number}{extension}", number + 1
        if target.resolve() in inputs:
            raise UserError(f"{target} would overwrite a picture to be coloured; give another --out")
        taken.add(target)
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
            data = source.read_bytes()
        image = Image.open(io.BytesIO(data))
        check_size(image.height, image.width)
        image.load()
        return ImageOps.exif_transpose(image)
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
