"""`crosschannel colorize`: colorize pictures with a trained model."""

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
from crosschannel.data.folder import format_count
from crosschannel.data.pictures import SAMPLE, convert_name_errors, list_pictures, output_paths, picture_bytes
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, Outputs, user_path
from crosschannel.hub import load_colorizer, source_files
from crosschannel.training.device import find_device

# EXIF tags to copy, since they describe the picture and not the file. The Exif and GPS groups are copied too.
_COPIED_TAGS = {
    ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software,
    ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright,
}  # fmt: skip


def colorize(config: ColorizeConfig) -> list[Path]:
    """Colorize all pictures of a config and return the files written.

    Raises:
        UserError: no pictures, an invalid key, or an existing output that this command did not write. Pictures that
            cannot be read or written are skipped, and cause this error at the end.
    """
    config = check_config(config, ColorizeConfig)
    pictures, folders, format = _list_outputs(config)
    inputs = [*source_files(config.model).values(), *(source for source, _ in pictures if isinstance(source, Path))]
    outputs = Outputs("crosschannel colorize", inputs, config.overwrite, makes_folders=True)
    console, written_files, failures = stderr_console(), [], []
    with contextlib.ExitStack() as locks:
        for folder in folders:
            try:
                locks.enter_context(FolderLock(folder))
            except UserError as error:
                remedy = "; choose another folder with --out" if config.out is None else ""
                raise UserError(f"{error}{remedy}") from None
        for _, target in pictures:
            with contextlib.suppress(BrokenImage), convert_name_errors():
                outputs.check(target)
        options = {"saturation": config.saturation, "gamut": config.gamut, "upsample": config.upsample}
        colorizer = load_colorizer(config.model, find_device(config.device), config.size, **options)
        for source, target in progress(pictures, "colouring", len(pictures)):
            try:
                coloured = _colour_picture(colorizer, source, config.temperature, format)
                with convert_name_errors():
                    _save(coloured, target, format, outputs)
            except BrokenImage as error:
                failures.append(str(source))
                console.print(f"cannot colour {source}: {error}")
                continue
            written_files.append(target)
    destination = written_files[0] if len(written_files) == 1 else ", ".join(map(str, folders))
    console.print(f"{format_count(len(written_files), 'picture')} colorized: {destination}")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(pictures)} pictures could not be coloured; the first is {failures[0]}"
        )
    return written_files


def _list_outputs(config: ColorizeConfig) -> tuple[list[tuple[Path | str, Path]], list[Path], str]:
    """Return (picture, output file) pairs, the top folders of the output files, and their format.

    Raises:
        UserError: no pictures, a missing picture, or a single output file for several pictures.
    """
    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
    if not config.images:
        raise UserError("no pictures; pass files or folders")
    listings = [(name, list_pictures([name])) for name in config.images]
    pictures = [picture for _, listing in listings for picture in listing]
    out = None if config.out is None else Path(config.out)
    out_format = "" if out is None or out.is_dir() else formats.get(out.suffix.lower(), "")
    format = config.format or out_format or "png"
    extension = ".png" if format == "png" else ".jpg"
    if out_format:
        if len(pictures) > 1:
            raise UserError(f"{out} is a single file, but there are {len(pictures)} pictures; choose a folder as --out")
        if out_format != format:
            raise UserError(f"the extension of {out} does not match --format {format}")
        return output_paths([(pictures[0][0], out.with_suffix(""))], out.suffix), [out.parent], format
    if out is not None:
        if not out.exists() and out.suffix.lower() in Image.registered_extensions():
            raise UserError(f"{out} has an unsupported extension; use .png, .jpg or .jpeg")
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; --out must be a folder, or a name that ends in .png, .jpg or .jpeg")
        return output_paths(((source, out / stem) for source, stem in pictures), extension), [out], format
    output_stems, folders = [], {}
    for name, listing in listings:
        path = Path(name.rpartition(":")[2]) if name == SAMPLE else user_path(name)
        path = path if path.name not in ("", "..") else path.resolve()
        is_file = path.exists() and not path.is_dir() and name != SAMPLE
        folder = path.parent if is_file else path.with_name(f"{path.name}-coloured")
        for source, stem in listing:
            output_stems.append((source, folder / (f"{stem}-coloured" if is_file else stem)))
        folders[folder] = None
    return output_paths(output_stems, extension), list(folders), format


def _save(picture: Image.Image, target: Path, format: str, outputs: Outputs) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with outputs.write(target) as part:
        try:
            metadata = {key: picture.info[key] for key in ("exif", "icc_profile", "dpi") if key in picture.info}
            picture.save(part, format, **metadata, **({"quality": 95} if format == "jpeg" else {}))
        except (OSError, ValueError, OverflowError, SystemError, struct.error) as error:
            if getattr(error, "errno", None):  # a disk error, not an encoder error
                raise
            raise BrokenImage(f"it cannot be written as {format}: {error}") from None


def _colour_picture(colorizer: Colorizer, source: Path | str, temperature: float | None, format: str) -> Image.Image:
    """Return the coloured picture: upright, with the original colour space, alpha (PNG only), EXIF and resolution."""
    data = picture_bytes(source)
    upright, exif = read_picture(data), _descriptive_exif(data)
    coloured = _from_srgb(colorizer(_to_srgb(upright), temperature), upright.info.get("icc_profile"))
    if format == "png" and ("A" in upright.getbands() or "transparency" in upright.info):
        coloured.putalpha(upright.convert("RGBA").getchannel("A"))
    dpi = upright.info.get("dpi", (0, 0))
    if all(1 <= value <= 65535 for value in dpi):  # false for NaN
        coloured.info["dpi"] = dpi
    if 0 < len(exif) < 65_000:  # a JPEG cannot store more
        coloured.info["exif"] = exif
    return coloured


def _descriptive_exif(data: bytes) -> bytes:
    """Return the EXIF tags that describe a picture, without orientation and file layout, or b"" if there are none."""
    try:
        exif, copy = open_picture(data).getexif(), Image.Exif()
        groups = {ifd: dict(exif.get_ifd(ifd)) for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
        for tag in _COPIED_TAGS & exif.keys():
            copy[tag] = exif[tag]
        for ifd, group in groups.items():
            if group:
                copy.get_ifd(ifd).update(group)
        return copy.tobytes() if len(copy) or any(groups.values()) else b""
    except Exception:  # EXIF that Pillow cannot read, or tags that it cannot write
        return b""


def _from_srgb(picture: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert an sRGB picture to an RGB profile, and embed the profile. For other colour spaces, embed sRGB."""
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
        pass  # _to_srgb ignored the damaged profile too
    return picture


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Convert a picture to 8-bit sRGB: apply its embedded ICC profile, and drop alpha."""
    icc = picture.info.get("icc_profile")
    if "A" in picture.getbands():
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    if icc and picture.mode in ("RGB", "L", "CMYK"):
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that is damaged or does not match the pixels is ignored
    try:
        return to_rgb(picture)
    except ValueError as error:
        raise broken_image(error) from None
