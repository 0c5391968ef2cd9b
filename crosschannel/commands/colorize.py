"""`crosschannel colorize`: colour pictures with a trained net."""

import contextlib
import io
import struct
from pathlib import Path

from PIL import ExifTags, Image, ImageCms

from crosschannel.colorize.colorizer import Colorizer
from crosschannel.commands.config import ColorizeConfig
from crosschannel.config.load import check_config
from crosschannel.console import progress, stderr_console
from crosschannel.data.decode import BrokenImage, broken_image, open_picture, read_picture, to_rgb
from crosschannel.data.pictures import SAMPLE, convert_name_errors, list_pictures, output_paths, picture_bytes
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, user_path
from crosschannel.hub import load_colorizer, source_files
from crosschannel.training.device import find_device

# EXIF tags that speak of the picture, whatever its file; so do two groups of more, of the camera and of the place.
_TOLD = {
    ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software,
    ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright,
}  # fmt: skip


def colorize(config: ColorizeConfig) -> list[Path]:
    """Colour every picture named; returns the files written.

    Raises:
        UserError: nothing to colour, a bad key, an output that would replace what is not this command's own; or, after
            all others are done, pictures that could not be read or written.
    """
    config = check_config(config, ColorizeConfig)
    pictures, folders, format = _places(config)
    inputs = [*source_files(config.model).values(), *(source for source, _ in pictures if isinstance(source, Path))]
    outputs = Outputs("crosschannel colorize", inputs, config.overwrite, makes_folders=True)
    console, written, failed = stderr_console(), [], []
    with contextlib.ExitStack() as held:
        for folder in folders:
            try:
                held.enter_context(FolderLock(folder))
            except UserError as error:
                beside = "; give --out another folder" if config.out is None else ""
                raise UserError(f"{error}{beside}") from None
        for _, target in pictures:
            with contextlib.suppress(BrokenImage), convert_name_errors():
                outputs.check(target)
        options = {"saturation": config.saturation, "gamut": config.gamut, "upsample": config.upsample}
        colorizer = load_colorizer(config.model, find_device(config.device), config.size, **options)
        for source, target in progress(pictures, "colouring", len(pictures)):
            try:
                coloured = _colour(colorizer, source, config.temperature, format)
                with convert_name_errors():
                    _save(coloured, target, format, outputs)
            except BrokenImage as error:
                failed.append(str(source))
                console.print(f"cannot colour {source}: {error}")
                continue
            written.append(target)
    where = written[0] if len(written) == 1 else ", ".join(map(str, folders))
    console.print(f"{len(written)} coloured: {where}")
    if failed:
        raise UserError(f"{len(failed)} of {len(pictures)} pictures could not be coloured, the first is {failed[0]}")
    return written


def _places(config: ColorizeConfig) -> tuple[list[tuple[Path | str, Path]], list[Path], str]:
    """(picture, file to write) of each, the folders that these are in or below, and their format.

    Raises:
        UserError: no such picture, none at all, or one file to write for several.
    """
    endings = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
    if not config.images:
        raise UserError("no pictures named: give files or folders")
    listings = [(name, list_pictures([name])) for name in config.images]
    pictures = [picture for _, listing in listings for picture in listing]
    out = None if config.out is None else Path(config.out)
    of_file = "" if out is None or out.is_dir() else endings.get(out.suffix.lower(), "")
    format = config.format or of_file or "png"
    ending = ".png" if format == "png" else ".jpg"
    if of_file:
        if len(pictures) > 1:
            raise UserError(f"{out} is one file, and there are {len(pictures)} pictures; give --out a folder")
        if of_file != format:
            raise UserError(f"{out} does not end as {format} does")
        return output_paths([(pictures[0][0], out.with_suffix(""))], out.suffix), [out.parent], format
    if out is not None:
        if not out.exists() and out.suffix.lower() in Image.registered_extensions():
            raise UserError(f"{out}: pictures are written as .png, .jpg or .jpeg")
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; --out takes a folder, or a name ending in .png or .jpg")
        return output_paths(((source, out / stem) for source, stem in pictures), ending), [out], format
    found, folders = [], {}
    for name, listing in listings:
        path = Path(name.rpartition(":")[2]) if name == SAMPLE else user_path(name)
        path = path if path.name not in ("", "..") else path.resolve()
        is_file = path.exists() and not path.is_dir() and name != SAMPLE
        folder = path.parent if is_file else path.with_name(f"{path.name}-coloured")
        for source, stem in listing:
            found.append((source, folder / (f"{stem}-coloured" if is_file else stem)))
        folders[folder] = None
    return output_paths(found, ending), list(folders), format


def _save(picture: Image.Image, target: Path, format: str, outputs: Outputs) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with outputs.write(target) as part:
        try:
            kept = {key: picture.info[key] for key in ("exif", "icc_profile", "dpi") if key in picture.info}
            picture.save(part, format, **kept, **({"quality": 95} if format == "jpeg" else {}))
        except (OSError, ValueError, OverflowError, SystemError, struct.error) as error:  # more than the format holds
            if getattr(error, "errno", None):  # the disk's complaint, not the encoder's
                raise
            raise BrokenImage(f"it cannot be written as {format}: {error}") from None


def _colour(colorizer: Colorizer, source: Path | str, temperature: float | None, format: str) -> Image.Image:
    """The coloured picture: upright, in the colour space of the original, with its alpha (PNG), EXIF and resolution."""
    data = picture_bytes(source)
    upright, exif = read_picture(data), _exif(data)
    coloured = _from_srgb(colorizer(_to_srgb(upright), temperature), upright.info.get("icc_profile"))
    if format == "png" and ("A" in upright.getbands() or "transparency" in upright.info):
        coloured.putalpha(upright.convert("RGBA").getchannel("A"))
    dpi = upright.info.get("dpi", (0, 0))
    if all(1 <= side <= 65535 for side in dpi):  # NaN is not
        coloured.info["dpi"] = dpi
    if 0 < len(exif) < 65_000:  # a JPEG holds no more
        coloured.info["exif"] = exif
    return coloured


def _exif(data: bytes) -> bytes:
    """What a picture says of itself, but for how its file lies and how it is turned; empty for nothing."""
    try:
        found, kept = open_picture(data).getexif(), Image.Exif()
        groups = {place: dict(found.get_ifd(place)) for place in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
        for tag in _TOLD & found.keys():
            kept[tag] = found[tag]
        for place, group in groups.items():
            if group:
                kept.get_ifd(place).update(group)
        return kept.tobytes() if len(kept) or any(groups.values()) else b""
    except Exception:  # no EXIF that Pillow can read, or tags that it cannot write back
        return b""


def _from_srgb(picture: Image.Image, icc: bytes | None) -> Image.Image:
    """A picture in the space of an RGB profile, which it then has; of profiles of other spaces sRGB's stands for it."""
    if icc is None:
        return picture
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space.strip() == "RGB":
            picture = ImageCms.profileToProfile(picture, srgb, profile)
            picture.info["icc_profile"] = icc
        else:
            picture.info["icc_profile"] = srgb.tobytes()
    except (ImageCms.PyCMSError, OSError):
        pass  # a damaged profile was not applied
    return picture


def _to_srgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB; an embedded ICC profile is applied, alpha is dropped."""
    icc = image.info.get("icc_profile")
    if "A" in image.getbands():
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if icc and image.mode in ("RGB", "L", "CMYK"):
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one that does not fit the pixels: take them as they are
    try:
        return to_rgb(image)
    except ValueError as error:
        raise broken_image(error) from None
