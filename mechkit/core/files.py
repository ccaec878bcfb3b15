"""Writes that are whole or raise; those of `write_atomic` leave the old file where they are not."""

import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np


def write_atomic(path: str | os.PathLike, data: bytes | str) -> Path:
    """Write `data` to `path` by way of a temporary file beside it; returns the path.

    Raises OSError, naming the folder, where it does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write '{path}': it is a folder; name a file inside it")
    raw = data.encode() if isinstance(data, str) else data
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise PermissionError(f"cannot write '{path}': {error.strerror}; choose a folder you may write to") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write a `.npy` file. Raises OSError on a full disk, which `np.save` passes over where the array is small."""
    with Path(path).open("wb") as stream:
        np.lib.format.write_array(_Plain(stream), array, allow_pickle=False)


class _Plain:
    """A stream that NumPy takes for no file of the system, into which it writes unchecked."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.write = stream.write


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
