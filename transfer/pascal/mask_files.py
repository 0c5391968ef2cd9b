"""Mask files: PNGs of the devkit and MATLAB files of SBD. Ambiguous files are rejected, not converted."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crosschannel.errors import UserError
from crosschannel.files import read_bytes

IGNORED = 255  # label of pixels excluded from training and evaluation
_SMALL_DEPTHS = {2: 85, 4: 17}  # bit depth → factor by which Pillow scales grey values of that depth
_ORIENTATION = 0x0112  # EXIF tag


def _palette() -> np.ndarray:
    """Compute PASCAL VOC's colours by label, (256, 3) uint8.

    A label's three lowest bits are bit 7 of the three channels, the next three bits are bit 6, and so on.
    """
    colours = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):
            for channel in range(3):
                colours[label, channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours


PALETTE = _palette()
_LABELS = np.array([*range(21), IGNORED])  # labels that occur in PASCAL's masks


@dataclass(frozen=True)
class MaskFile:
    """A mask file: a PNG like the devkit's or a MATLAB file like SBD's.

    Attributes:
        path: path of the file.
        is_pascal: whether the classes are PASCAL's; if so, PASCAL's colours are accepted as labels.
    """

    path: Path
    is_pascal: bool = True

    def read(self) -> np.ndarray:
        """Read the labels of the pixels, (H, W) integers.

        Raises:
            UserError: the file is missing or damaged, or its values are not labels.
        """
        try:
            data = read_bytes(self.path)
            return self._from_matlab(data) if self.path.suffix == ".mat" else self._from_png(data)
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"the devkit lacks the mask {self.path}") from None
        except PermissionError as error:
            raise UserError(f"could not read the mask {self.path}: {error.strerror}") from None
        except Exception as error:  # decoders raise all kinds of exceptions on unreadable bytes
            raise UserError(f"the mask {self.path} is damaged: {error}") from None

    def _from_png(self, data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            picture.load()
            if picture.getexif().get(_ORIENTATION, 1) != 1:
                raise self._error("has an EXIF orientation: save it upright")
            pixels, mode = np.array(picture), picture.mode
            palette = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        depth = data[24] if data[12:16] == b"IHDR" else 0
        if mode == "P":
            return self._from_palette(pixels, palette)
        if mode == "1":
            return pixels.astype(np.uint8)
        if mode == "L" and depth in (*_SMALL_DEPTHS, 8):
            return pixels // _SMALL_DEPTHS.get(depth, 1)
        if mode.startswith("I"):
            return pixels.astype(np.int64)
        if depth != 8 or mode not in ("LA", "RGB", "RGBA"):
            raise self._error(f"is a {depth}-bit PNG of mode {mode}")
        if mode != "RGB" and (pixels[..., -1] < 255).any():
            raise self._error("is partly transparent")
        return pixels[..., 0] if mode == "LA" else self._from_colours(pixels[..., :3])

    def _from_palette(self, indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
        """Return the labels of a palette PNG: its indices or, if the palette has PASCAL's colours in another order, the
        labels of the colours."""
        padded = np.zeros((256, 3), np.uint8)
        padded[: len(palette)] = palette
        used = np.unique(indices)
        labels = labels_of_colours(padded[used])
        if not self.is_pascal or (labels < 0).any():
            return indices
        by_index = np.zeros(256, np.uint8)
        by_index[used] = labels
        return by_index[indices]

    def _from_colours(self, pixels: np.ndarray) -> np.ndarray:
        if not self.is_pascal:
            raise self._error("is a colour image")
        labels = labels_of_colours(pixels)
        if (labels < 0).any():
            colour = ", ".join(map(str, pixels[labels < 0][0]))
            raise self._error(f"is a colour image, and ({colour}) is not one of PASCAL's colours")
        return labels

    def _from_matlab(self, data: bytes) -> np.ndarray:
        from scipy.io import loadmat

        labels = np.asarray(loadmat(io.BytesIO(data))["GTcls"][0, 0]["Segmentation"])
        if labels.dtype.kind == "f":
            invalid = labels[~np.isfinite(labels) | (labels != np.round(labels)) | (np.abs(labels) > 1 << 16)]
            if invalid.size:
                raise self._error(f"has the label {invalid[0]:g}")
            return labels.astype(np.int64)
        if labels.dtype.kind not in "iub":
            raise self._error(f"contains values of the type {labels.dtype}")
        return labels.astype(np.int64)

    def _error(self, fault: str) -> UserError:
        return UserError(f"the mask {self.path} {fault}; a mask must be a palette or grey PNG whose values are labels")


def labels_of_colours(colours: np.ndarray) -> np.ndarray:
    """Map PASCAL's colours (…, 3) uint8 to labels (…) int64, and all other colours to -1."""
    codes = PALETTE[_LABELS].astype(np.int64) @ [1 << 16, 1 << 8, 1]
    order = np.argsort(codes)
    pixel_codes = colours.astype(np.int64) @ [1 << 16, 1 << 8, 1]
    indices = order[np.searchsorted(codes[order], pixel_codes).clip(max=len(codes) - 1)]
    return np.where(codes[indices] == pixel_codes, _LABELS[indices], -1)
