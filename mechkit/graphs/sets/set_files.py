"""A folder of slim graphs: parts as Parquet tables, and what made them.

`meta.json` holds the model's and the dictionaries' fingerprints and the options; `part_00000.prompts.parquet` and so on
the graphs, `PART` prompts each. A part is whole where its table of prompts is there.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechkit.core.files import write_atomic
from mechkit.graphs.sets.slim import Part

META = "meta.json"


@dataclass(frozen=True)
class SetFiles:
    """The folder of a set of graphs that is being made."""

    folder: Path
    """Where it is."""

    @classmethod
    def at(cls, folder: str | PathLike, model, bases: Sequence, options: dict[str, Any]) -> "SetFiles":
        """The folder, made where it is not there.

        Raises ValueError where it holds graphs of another model, other dictionaries or other options.
        """
        path, made_by = Path(folder), _made_by(model, bases, options)
        path.mkdir(parents=True, exist_ok=True)
        if not (path / META).is_file():
            write_atomic(path / META, json.dumps({"made_by": made_by}, indent=1))
        kept = read_meta(path).get("made_by")
        differing = [name for name in made_by if not isinstance(kept, dict) or kept.get(name) != made_by[name]]
        if differing:
            raise ValueError(
                f"'{path}' holds graphs made with another {', another '.join(differing)}; "
                "give what they were made with, or another folder"
            )
        return cls(path)

    def read(self, number: int, asked: Sequence) -> Part | None:
        """A part that is there, with the classes asked for; None where it is not.

        Raises ValueError where it holds other prompts than those.
        """
        if not (self.folder / f"{_name(number)}.prompts.parquet").is_file():
            return None
        part = Part.read(self.folder, _name(number))
        texts = [one.text for one in asked]
        n = min(len(texts), len(part.prompts))
        if part.prompts["text"].tolist()[:n] != texts[:n]:
            raise ValueError(
                f"'{self.folder}' holds graphs of other prompts than {texts[0][:60]!r} and those after it; "
                "give the same prompts in the same order, or another folder"
            )
        if len(texts) != len(part.prompts):  # the last part of a shorter or longer list
            return None
        return Part(part.prompts.assign(label=[one.label for one in asked]), part.nodes, part.edges)

    def write(self, number: int, part: Part) -> None:
        """Write a part."""
        part.write(self.folder, _name(number))

    def finish(self, meta: dict[str, Any]) -> None:
        """Say what made the graphs."""
        write_atomic(self.folder / META, json.dumps(read_meta(self.folder) | {"meta": meta}, indent=1))


def save_parts(folder: str | PathLike, part: Part, meta: dict[str, Any]) -> Path:
    """Write graphs as one part with what made them. Returns the folder, which is made where it is not there.

    Raises ValueError where the folder holds graphs of more than one part.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if (path / f"{_name(1)}.prompts.parquet").exists():
        raise ValueError(f"'{path}' holds graphs that trace_many is writing in parts; save to another folder")
    part.write(path, _name(0))
    write_atomic(path / META, json.dumps({"meta": meta}, indent=1))
    return path


def read_parts(folder: str | PathLike) -> list[Part]:
    """The parts of a folder, in order. Raises ValueError where there are none or one is damaged."""
    path = Path(folder)
    names = sorted(file.name.removesuffix(".prompts.parquet") for file in path.glob("part_*.prompts.parquet"))
    if not names:
        raise ValueError(f"'{path}' holds no graphs; trace_many(..., out=...) and GraphSet.save write some")
    return [Part.read(path, name) for name in names]


def read_meta(folder: str | PathLike) -> dict[str, Any]:
    """What made the graphs of a folder. Raises ValueError where that is missing or damaged."""
    path = Path(folder) / META
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is missing or damaged ({error}); it says what made the graphs") from error


def _name(number: int) -> str:
    return f"part_{number:05d}"


def _made_by(model, bases: Sequence, options: dict[str, Any]) -> dict[str, Any]:
    from mechkit import __version__

    return {
        "version": __version__,
        "model": _hash(value for _, value in sorted(model.state_dict().items())),
        "set of dictionaries": _hash(value for basis in bases for value in _tensors(basis)),
        "set of options": _hash([json.dumps(options, default=_as_text, sort_keys=True)]),
    }


def _tensors(basis) -> Iterator[Any]:
    """What a dictionary is known by: its name and its weights, but for those that stay on disk."""
    yield f"{basis.name} {basis.hook_in} {basis.hook_out}"
    yield from (value for _, value in sorted(vars(basis).items()) if isinstance(value, Tensor))


def _as_text(value: Any) -> str:
    return _hash([value]) if isinstance(value, Tensor) else repr(value)


def _hash(values) -> str:
    """sha256 of texts and of the bytes of tensors."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found.update(value if isinstance(value, bytes) else str(value).encode())
    return found.hexdigest()
