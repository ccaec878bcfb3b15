"""Parts of a scan: what one stretch of the corpus gave, one file each, named after what is in it.

A part is written whole or not at all, so a scan that was killed goes on with the stretches that have none. A part whose
bytes do not hash to its name is damaged; its stretch is scanned again.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mechkit.core.files import write_atomic

FOLDER = "parts"


def packed(tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a part."""
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def write_part(folder: Path, shard: int, raw: bytes) -> Path:
    """Write one part; returns its path."""
    path = folder / FOLDER / f"{shard:06d}-{hashlib.sha256(raw).hexdigest()[:32]}.safetensors"
    return write_atomic(path, raw)


def find_parts(folder: Path) -> dict[int, Path]:
    """The whole parts, by stretch; damaged ones and leftovers of writes that were cut short are deleted."""
    found = {}
    for path in sorted((folder / FOLDER).glob("*")):
        shard, _, name = path.stem.partition("-")
        if path.name.startswith(".") or hashlib.sha256(path.read_bytes()).hexdigest()[:32] != name:
            path.unlink()
        else:
            found[int(shard)] = path
    return found


def read_part(path: Path) -> dict[str, Tensor]:
    """The tensors of a part. Raises ValueError where it is damaged."""
    raw = path.read_bytes()
    try:
        if hashlib.sha256(raw).hexdigest()[:32] == path.stem.partition("-")[2]:
            return load(raw)
    except SafetensorError:
        pass
    raise ValueError(f"'{path}' is damaged; scan into the same folder again, which makes it anew")


def of_sae(tensors: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Those tensors of a part that belong to the SAE of that number."""
    start = f"{number}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def empty(tensors: dict[str, Tensor], name: str) -> Tensor:
    """A tensor of a part; an empty one where it holds none."""
    return tensors.get(name, torch.zeros(0, dtype=torch.long))
