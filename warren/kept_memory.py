"""Memory that was freed stays with the process for what comes next.

An answer with tokens, a result, a batch of rows are blocks of 0.1 to 1 MB, made and dropped many
times a second. glibc hands such blocks back to the kernel soon, which gives zeroed pages for the
next one: a hundred page faults per model call of 4,000 tokens, a sixth of the gateway's time.
"""

import ctypes
from typing import Final

#: mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
#: Larger blocks are rare, and go back to the kernel when they are freed.
_KEPT_BLOCK_BYTES: Final = 8 * 1024 * 1024
#: What may lie unused at the end of the heap.
_KEPT_BYTES: Final = 32 * 1024 * 1024


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to 32 MiB; other C libraries are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


__all__ = ["keep_freed_memory"]
