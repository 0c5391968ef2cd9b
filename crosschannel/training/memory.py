"""Settings of malloc. Does not import torch: they are set before torch allocates."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Keep freed memory in the process (glibc only; a no-op elsewhere).

    Training on a CPU allocates the same large arrays in every step. Returning them to the system means page faults and
    zero-filling, which can cost more than the arithmetic.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
