"""`crosschannel colorize`: colour pictures with a trained net."""

import contextlib
import io
from pathlib import Path

from PIL import Image, ImageCms, ImageOps

from crosschannel.commands.config import ColorizeConfig
from crosschannel.console import progress, stderr_console
from crosschannel.data.decode import BrokenImage, broken, open_picture, to_rgb
from crosschannel.data.pictures import named_pictures, only_this_name, picture_bytes, targets
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs
from crosschannel.hub import load_colorizer, source_files
from crosschannel.pretext.colorizer import Colorizer
from crosschannel.training.device import find_device


def colorize(config: ColorizeConfig) -> list[Path]:
    """Colour every picture named; returns the files written.

    Raises:
        UserError: nothing to colour, a bad key, an output that would replace what is not this command's own; or, after
            all others are done, pictures that could not be read or written.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    pictures = targets(named_pictures(config.images), out, ".png" if config.format == "png" else ".jpg")
    inputs = [*source_files(config.model).values(), *(source for source, _ in pictures if isinstance(source, Path))]
    outputs = Outputs("crosschannel colorize", inputs, config.overwrite, makes_folders=True)
    console, written, failed = stderr_console(), [], []
    with FolderLock(out):
        for _, target in pictures:
            with contextlib.suppress(BrokenImage), only_this_name():
                outputs.check(target)
        colorizer = load_colorizer(config.model, find_device(config.device))
        colorizer.size = config.size or colorizer.size
        colorizer.saturation, colorizer.upsample, colorizer.gamut = config.saturation, config.upsample, config.gamut
        for source, target in progress(pictures, "colouring", len(pictures)):
            try:
                coloured = _colour(colorizer, source, config)
                with only_this_name():
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


def _colour(colorizer: Colorizer, source: Path | str, config: ColorizeConfig) -> Image.Image:
    """The coloured picture: upright, sRGB, with the alpha of the original (PNG)."""
    upright = _read(source)
    coloured = colorizer(_to_srgb(upright), config.temperature)
    if config.format == "png" and ("A" in upright.getbands() or "transparency" in upright.info):
        coloured.putalpha(upright.convert("RGBA").getchannel("A"))
    return coloured


def _read(source: Path | str) -> Image.Image:
    try:
        image = open_picture(picture_bytes(source))
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
        image = image.convert("L" if image.mode == "LA" else "RGB")
    elif image.mode.startswith("I"):
        image = to_rgb(image).convert("L")
    if icc and image.mode in ("RGB", "L", "CMYK"):
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one that does not fit the pixels: take them as they are
    return to_rgb(image)
