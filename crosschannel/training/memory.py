"""malloc settings. They must be made before torch allocates memory, so this module does not import torch."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Keep freed memory in the process (glibc only; a no-op with other C libraries).

    Training on a CPU allocates the same large tensors in every step. Returning them to the system causes page faults
    and zero-filling, which can take longer than the computation itself.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
