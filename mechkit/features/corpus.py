"""A corpus as rows of tokens on disk: what the model reads, and where examples find their text.

Each document is cut into rows of at most `context` tokens, every row with a BOS where the model wants one; a longer
document goes on in the next row. Tokens lie one after the other in one array, so a place in the corpus is one number.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechkit.core.files import write_array, write_atomic
from mechkit.core.progress import progress
from mechkit.features.sources import Documents

FILE, FOLDER = "corpus.json", "corpus"
AT_ONCE = 256
"""Documents tokenised together."""


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, memory-mapped."""

    tokens: np.ndarray
    """Every row's tokens, one row after the other."""
    starts: np.ndarray
    """Where each row starts in `tokens`, and where the last one ends."""
    sources: np.ndarray
    """`[row, 2]`: number of the source in `about`, and the document's number there."""
    about: dict[str, Any]
    """Hash of the documents, names of sources, counts of what was skipped or split, and how it was tokenised."""

    @classmethod
    def open(cls, folder: Path) -> "Rows":
        """The corpus in an index's folder. Raises ValueError where a file of it is missing or damaged."""
        try:
            about = json.loads((folder / FOLDER / FILE).read_text())
            tokens, starts, sources = (
                np.load(folder / FOLDER / f"{name}.npy", mmap_mode="r") for name in ("tokens", "starts", "sources")
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"the corpus in '{folder}' is damaged ({error}); scan into a new folder") from error
        if len(tokens) != about["n_tokens"] or len(starts) != about["n_rows"] + 1:
            raise ValueError(f"the corpus in '{folder}' is damaged: its arrays are not as long as {FILE} says")
        return cls(tokens, starts, sources, about)

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        """How many tokens all rows have."""
        return len(self.tokens)

    def row_of(self, position: int) -> int:
        """The row that a place in the corpus is in."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def rows_of(self, positions: np.ndarray) -> np.ndarray:
        """The row that each place in the corpus is in."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def source_of(self, row: int) -> str:
        """Where a row's document is from, `file:number`."""
        source, number = self.sources[row]
        return f"{self.about['sources'][source]}:{number}"


def has_rows(folder: Path) -> bool:
    """Whether a whole tokenised corpus lies in the folder."""
    return (folder / FOLDER / FILE).is_file()


def tokenise(model, found: Documents, folder: Path, context: int, bos: bool) -> Rows:
    """Write the rows of `found` into `folder`; the file that says they are whole comes last.

    Raises ValueError for a model without a tokenizer, token ids that it lacks, and a corpus with nothing left to read.
    """
    home = folder / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    kind = np.uint16 if model.cfg.d_vocab <= 1 << 16 else np.uint32
    starts, places, names, split = [0], [], {}, 0
    with (home / "tokens.bin").open("wb") as stream:
        for source, number, ids in progress(_tokenised(model, found), "tokenising"):
            pieces = _cut(ids, context, None if not bos or source == "tokens" else bos_of(model))
            split += len(pieces) > 1
            for piece in pieces:
                stream.write(piece.astype(kind).tobytes())
                starts.append(starts[-1] + len(piece))
                places.append((names.setdefault(source, len(names)), number))
    if not places:
        raise ValueError(f"nothing to read in the corpus; documents passed over: {dict(found.skipped) or 'none'}")
    write_array(home / "tokens.npy", np.memmap(home / "tokens.bin", kind, mode="r"))
    (home / "tokens.bin").unlink()
    write_array(home / "starts.npy", np.array(starts, np.int64))
    write_array(home / "sources.npy", np.array(places, np.int64))
    about = {
        "sha256": found.sha256, "n_tokens": starts[-1], "n_rows": len(places), "context": context, "bos": bos,
        "split": split, "skipped": dict(found.skipped), "first_skipped": found.first, "sources": list(names),
    }  # fmt: skip
    write_atomic(home / FILE, json.dumps(about, indent=1) + "\n")
    return Rows.open(folder)


def bos_of(model) -> int:
    """The BOS token. Raises ValueError for a model without one."""
    token = None if model.tokenizer is None else model.tokenizer.bos_token_id
    if token is None:
        raise ValueError("the rows are to begin with a BOS, but the model's tokenizer has none; give bos=False")
    return int(token)


def _cut(ids: np.ndarray, context: int, bos: int | None) -> list[np.ndarray]:
    first = [] if bos is None else [bos]
    width = context - len(first)
    return [np.concatenate([np.array(first, ids.dtype), ids[i : i + width]]) for i in range(0, len(ids), width)]


def _tokenised(model, found: Documents) -> Iterator[tuple[str, int, np.ndarray]]:
    """Each document's token ids, in order; texts are tokenised many at a time."""
    waiting = []
    for document in found:
        waiting.append(document)
        if len(waiting) == AT_ONCE:
            yield from _batch(model, found, waiting)
            waiting = []
    yield from _batch(model, found, waiting)


def _batch(model, found: Documents, waiting: list) -> Iterator[tuple[str, int, np.ndarray]]:
    texts = [content for _, _, content in waiting if isinstance(content, str)]
    ids = iter(_ids_of(model, texts))
    for source, number, content in waiting:
        own = next(ids) if isinstance(content, str) else _checked(model, content, f"{source}:{number}")
        if own is None:
            found.skip("unknown to the tokenizer", source, number)
        elif len(own) == 0:
            found.skip("no tokens", source, number)
        else:
            yield source, number, np.asarray(own, np.int64)


def _ids_of(model, texts: list[str]) -> list[Any]:
    """Token ids of each text, without special ones; None for a text that the tokenizer refuses."""
    if texts and model.tokenizer is None:
        raise ValueError(f"the model has no tokenizer to read {texts[0][:60]!r} with; give token ids instead")
    try:
        return model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    except ValueError:
        return [None] if len(texts) == 1 else [one for text in texts for one in _ids_of(model, [text])]


def _checked(model, ids: np.ndarray, where: str) -> np.ndarray:
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= model.cfg.d_vocab:
        raise ValueError(
            f"{where} holds token ids {ids.min()} to {ids.max()}; the model has 0 to {model.cfg.d_vocab - 1}"
        )
    return ids
