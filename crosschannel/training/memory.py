"""The allocator of the C library. No torch here: it is set before torch allocates."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees (glibc; elsewhere nothing happens).

    A training step on a CPU asks for the same large arrays again and again; to hand each back to the system and have
    it filled with zeros anew takes longer than much of the arithmetic.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
