"""Freed memory that is kept for the next tensor on the CPU, where the system's allocator can be told to."""

import ctypes
import gc
import platform
import sys
from collections.abc import Callable
from functools import cache

# Names and values of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = -1
LARGEST, BY_ITSELF = 1 << 30, 1 << 25
"""Bytes of the largest block that is kept, and of the largest that glibc takes from its heap by itself; older releases
accept no more than that either."""


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether the allocator was told.

    By itself the allocator of glibc gives large blocks back to the system at once, which fills each page of the next
    one with zeros: a tenth of the time of a forward pass on the CPU (``docs/decisions/0006-freed-memory.md``). The
    process then holds, until it ends, the most that it needed at once. Blocks beyond 1 GiB (beyond 32 MiB in releases
    of glibc that accept no more) are given back as before.

    Nothing is done where the C library is not glibc; an allocator that is preloaded in its stead, as jemalloc, is not
    changed. Every command of ``comvex`` calls this first; a program of your own may.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    return tell(ctypes.CDLL(None).mallopt)


def tell(mallopt: Callable[[int, int], int]) -> bool:
    """Give the C library's ``mallopt`` the largest threshold that it accepts; returns whether there is one."""
    is_accepted = any(mallopt(M_MMAP_THRESHOLD, size) for size in (LARGEST, BY_ITSELF))
    return is_accepted and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def give_back_freed_memory() -> None:
    """Give the system what is freed by now, for other processes that need it; what is freed later is kept again."""
    if is_freed_memory_kept():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def keep_blocks_up_to(size: int) -> None:
    """Of freed memory keep blocks of at most so many bytes from now on, in a process that keeps it.

    Kept blocks of many sizes fit badly between each other: where most are larger than 100 MB, a process may hold twice
    what it needs.
    """
    if is_freed_memory_kept():
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, size)


def is_freed_memory_kept() -> bool:
    """Whether ``keep_freed_memory`` was called in this process and could do it."""
    return keep_freed_memory.cache_info().currsize > 0 and keep_freed_memory()
