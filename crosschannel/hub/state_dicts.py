"""Other people's state dicts, read off ``.pth`` and ``.safetensors`` files: tensors by name, and nothing else."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crosschannel.errors import UserError


def read_state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a ``.safetensors`` file or of a ``.pth``, of which nothing but tensors is unpickled.

    Wrappers (``state_dict``, ``model``, ``network``) and the prefix ``module.`` are taken off.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":
            raise UserError(f"{path} is not a weights file but a web page: the download did not work")
    if _is_bomb(path):
        raise UserError(f"{path} is not a weights file: unpacked it would be larger than it says")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they like on bytes they cannot read
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than tensors, and nothing else is unpickled"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a weights file: {reason}") from None
    for wrapper in ("state_dict", "model", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {
        key.removeprefix("module.").replace(".module.", "."): value
        for key, value in items
        if isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)
    }
    if len(tensors) < sum(isinstance(v, Tensor) and isinstance(k, str) and _is_plain(v) for k, v in items):
        raise UserError(f"{path} holds two tensors of one name, with and without 'module.'")
    if not tensors:
        raise UserError(f"{path} holds no named tensors")
    return tensors


def _is_bomb(path: Path) -> bool:
    """Whether a zip file has compressed members: torch stores tensors as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False  # not a zip file, or one that torch will not read either


def _is_plain(tensor: Tensor) -> bool:
    """Real numbers that are all in the file: not sparse, quantised, complex, without data, or repeated by strides."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
