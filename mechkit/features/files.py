"""The files of an index: its manifest, arrays mapped when first used, and whether they are as they were written."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mechkit.features.corpus import Rows

MANIFEST, SAES = "manifest.json", "saes"


def read_manifest(folder: Path) -> dict[str, Any]:
    """An index's manifest, with every file that it names there and as long as it says.

    Raises FileNotFoundError where there is no index or it is not whole yet, ValueError where a file is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        begun = (folder / "plan.json").is_file()
        why = "its scan has not come to an end: scan into the folder again to go on" if begun else "make one with scan"
        raise FileNotFoundError(f"no index in '{folder}'; {why}")
    try:
        manifest = json.loads(path.read_text())
        files = manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is damaged ({error}); scan into a new folder") from error
    odd = [name for name, file in files.items() if _size(folder / name) != file["bytes"]]
    if odd:
        raise ValueError(f"the index in '{folder}' is damaged: {', '.join(odd[:3])} missing or cut short; scan again")
    return manifest


def damaged(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Names of files whose bytes are not those that were written. Cost: one read of everything."""
    return [name for name, file in manifest["files"].items() if _hash(folder / name) != file["sha256"]]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Arrays:
    """Arrays of one SAE in an index, memory-mapped when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return (self.folder / f"{name}.npy").is_file()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._open:
            self._open[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self._open[name]


class Text:
    """The corpus of an index as text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def rows(self) -> Rows:
        """Its tokens."""
        return Rows.open(self._folder)

    @cached_property
    def words(self) -> list[str] | None:
        """The text of every token; None for a model without a tokenizer."""
        return json.loads((self._folder / "vocabulary.json").read_text())

    def word(self, token: int) -> str:
        """The text of a token; its number where there is none."""
        return f"#{token}" if self.words is None else self.words[token]

    def around(self, position: int, before: int, after: int) -> tuple[int, list[str]]:
        """The tokens around a place within its row, and where among them it is."""
        row = self.rows.row_of(position)
        first, last = int(self.rows.starts[row]), int(self.rows.starts[row + 1])
        start, stop = max(first, position - before), min(last, position + 1 + after)
        return position - start, [self.word(int(token)) for token in self.rows.tokens[start:stop]]

    def token(self, text: str) -> int:
        """The token of that text, with or without a space before it. Raises ValueError where there is none."""
        found = [] if self.words is None else [i for i, word in enumerate(self.words) if word == text]
        found = found or [i for i, word in enumerate(self.words or []) if word.strip() == text.strip()]
        if not found:
            raise ValueError(f"{text!r} is not one token of this model; give one of its tokens, or a token id")
        return found[0]
