"""How much room an index takes, asked before the work begins, and what is said where it runs out after all."""

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FIRING = 24
"""Bytes of one activation among all: its feature or place and its value, in two orders and once in a part."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What systems call a full disk, a spent quota and a file over a limit."""


def bytes_needed(sizes: Mapping[str, int], n_left: int, n_tokens: int) -> int:
    """Bytes that are still to be written, at most about. `sizes` is what `Scan.sizes` counts."""
    fixed = sizes["features"] * (2 * sizes["example"] + 2048) + sizes["weights"] + sizes["unembed"]
    fixed += 12 * sizes["decoder"]
    return fixed + sizes["firings_per_1000_tokens"] * FIRING * n_tokens // 1000 + 16 * n_left


def require_room(folder: Path, sizes: Mapping[str, int], n_left: int, n_tokens: int) -> None:
    """Raise ValueError where the disk has less room than the index will take."""
    needed, free = bytes_needed(sizes, n_left, n_tokens), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the index will take about {needed >> 20:,} MiB and '{folder}' has {free >> 20:,} MiB left; "
            'keep="examples" takes less, and so do smaller top=, sample= and window='
        )


@contextmanager
def full_disk_said(folder: Path) -> Iterator[None]:
    """Errors of a full disk, with what to do about it: what was scanned is kept in the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"no room left on the disk of '{folder}'; what was scanned before is kept: make room and scan into the "
            "same folder again to go on"
        ) from error
