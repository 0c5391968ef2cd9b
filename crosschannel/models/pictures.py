"""Validation of batches of RGB pictures."""

import torch
from torch import Tensor

from crosschannel.errors import UserError, describe

_MIN, _MAX = -0.25, 1.25  # accepted range of floats: bicubic and Lanczos resizing overshoot [0, 1] slightly


def check_pictures(rgb: object, check_range: bool = True) -> None:
    """Raise a UserError unless the argument is a batch of RGB pictures, (N, 3, H, W), uint8 or float in [0, 1].

    Args:
        rgb: value to check.
        check_range: whether to check the range of floats, which synchronises with a GPU. The range is never checked
            while a graph is traced or captured.
    """
    if not isinstance(rgb, Tensor):
        raise UserError(
            f"a batch of pictures must be a tensor (N, 3, H, W), not {describe(rgb)}; convert a PIL image with "
            "torchvision.transforms.functional.pil_to_tensor(picture)[None]"
        )
    if rgb.ndim != 4 or rgb.shape[1] != 3:
        raise UserError(f"a batch of RGB pictures must be (N, 3, H, W), got {tuple(rgb.shape)}{_remedy(rgb)}")
    if rgb.dtype != torch.uint8 and not rgb.is_floating_point():
        raise UserError(f"a batch of pictures must be uint8 or float in [0, 1], got {rgb.dtype}; convert it with .to()")
    if is_traced(rgb):
        return
    if 0 in rgb.shape[2:]:
        raise UserError(f"pictures must have at least one pixel, got {tuple(rgb.shape)}")
    if check_range and rgb.is_floating_point() and rgb.numel():
        _check_range(rgb.detach())


def is_traced(x: Tensor) -> bool:
    """Return whether a tensor has no values to check, because a graph is being traced or captured."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.jit.is_scripting():
        return True
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    is_transformed = torch._C._functorch.is_functorch_wrapped_tensor(x)  # by vmap or grad
    return x.is_meta or is_transformed or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__


def _check_range(rgb: Tensor) -> None:
    low, high = torch.stack(rgb.aminmax()).tolist()
    if low >= _MIN and high <= _MAX:
        return
    problem = f"float pictures must be RGB in [0, 1], got {low:.4g} … {high:.4g}"
    if low != low or high != high:
        raise UserError("float pictures must be RGB in [0, 1], got NaN")
    if low < _MIN:
        raise UserError(f"{problem}: pass pictures that are not normalised; preprocess() normalises them")
    raise UserError(f"{problem}: divide by 255, or pass uint8")


def _remedy(rgb: Tensor) -> str:
    if rgb.ndim == 3 and rgb.shape[0] == 3:
        return "; add a dimension with [None]"
    if rgb.ndim == 4 and rgb.shape[3] == 3:
        return "; permute it with .permute(0, 3, 1, 2)"
    if rgb.ndim == 4 and rgb.shape[1] == 1:
        return "; repeat the channel with .expand(-1, 3, -1, -1)"
    return ""
