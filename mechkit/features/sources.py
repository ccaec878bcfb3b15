"""A corpus as documents, whatever holds it, and what was passed over on the way.

Files are `.txt` and `.md` (one document each), `.jsonl` (one a line) and `.parquet` (one a row); a folder stands for
all of these in it, by name. A `datasets.Dataset`, a list of texts or of rows with a text column, and a tensor of token
ids `[row, pos]` are read as they are. Documents that cannot be read are passed over and counted by reason; a corpus of
which nothing is left is an error.

>>> found = documents(["One day.", ""])
>>> [text for _, _, text in found], dict(found.skipped)
(['One day.'], {'empty': 1})
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Document = tuple[str, int, "str | np.ndarray"]
"""Where it is from (a file, or what holds the corpus), its number there, and its text or its token ids."""
WHOLE, LINES, COLUMNS = (".txt", ".md"), (".jsonl",), (".parquet",)
TEXT, TOKENS = ("text",), ("input_ids", "tokens")
"""Columns looked for where none is named."""
KEPT = 5
"""Places of passed-over documents that are remembered, by reason."""


class Documents:
    """The documents of a corpus; every iteration reads it anew and counts anew."""

    def __init__(self, read: Callable[["Documents"], Iterator[Document]]) -> None:
        self._read = read
        self.skipped: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        self.first.clear()
        self._hash = hashlib.sha256()
        for source, number, content in self._read(self):
            if len(content) == 0 or (isinstance(content, str) and not content.strip()):
                self.skip("empty", source, number)
                continue
            raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content.tobytes()
            self._hash.update(len(raw).to_bytes(8, "little") + raw)
            yield source, number, content

    def skip(self, reason: str, source: str, number: int) -> None:
        """Count a document that is passed over."""
        self.skipped[reason] += 1
        places = self.first.setdefault(reason, [])
        if len(places) < KEPT:
            places.append(f"{source}:{number}")

    @property
    def sha256(self) -> str:
        """Hash of every document of the last whole iteration, in order."""
        return self._hash.hexdigest()


def documents(corpus: Any, column: str | None = None) -> Documents:
    """The documents of `corpus`: a file, a folder, a list of files, a dataset, a list of texts, or token ids.

    `column` names the text or token column of JSONL, Parquet and datasets; without it `text`, `input_ids` or `tokens`.
    Raises FileNotFoundError for a path that is not there, TypeError for what is no corpus.
    """
    if isinstance(corpus, str | Path):
        return _of_files(_files(Path(corpus)), column)
    if hasattr(corpus, "detach") or isinstance(corpus, np.ndarray):
        return _of_array(corpus)
    if isinstance(corpus, Sequence) and corpus and all(isinstance(one, Path) for one in corpus):
        return _of_files([file for one in corpus for file in _files(one)], column)
    if isinstance(corpus, Iterable) and hasattr(corpus, "__len__"):
        return Documents(lambda found: _of_rows(found, corpus, column))
    raise TypeError(
        f"a corpus is a path, a list of texts or of paths, a dataset or a tensor of token ids, not "
        f"{type(corpus).__name__}; an iterator runs dry, so give a list"
    )


def _files(path: Path) -> list[Path]:
    known = (*WHOLE, *LINES, *COLUMNS)
    if not path.exists():
        raise FileNotFoundError(f"no corpus '{path}'; give a file or folder of {', '.join(known)}, or a list of texts")
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in found if file.suffix in known and not file.is_dir()]
    if not files:
        raise ValueError(f"'{path}' is no corpus: it has no {', '.join(known)}")
    return files


def _of_files(files: Sequence[Path], column: str | None) -> Documents:
    readers = {**dict.fromkeys(WHOLE, _whole), **dict.fromkeys(LINES, _lines), **dict.fromkeys(COLUMNS, _columns)}

    def read(found: Documents) -> Iterator[Document]:
        for file in files:
            try:
                yield from readers[file.suffix](found, file, column)
            except OSError:
                found.skip("unreadable", str(file), 0)

    return Documents(read)


def _whole(found: Documents, file: Path, column: str | None) -> Iterator[Document]:
    text = _decoded(file.read_bytes(), found, str(file), 0)
    if text is not None:
        yield str(file), 0, text


def _lines(found: Documents, file: Path, column: str | None) -> Iterator[Document]:
    with file.open("rb") as stream:
        for number, raw in enumerate(stream):
            line = _decoded(raw, found, str(file), number)
            if line is None or not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                found.skip("no JSON", str(file), number)
                continue
            yield str(file), number, content_of(row, column, f"{file}:{number}")


def _columns(found: Documents, file: Path, column: str | None) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        name = chosen_column(table.schema_arrow.names, column, str(file))
        number = 0
        for batch in table.iter_batches(columns=[name]):
            for value in batch.column(0).to_pylist():
                yield str(file), number, content_of({name: value}, name, f"{file}:{number}")
                number += 1
    except pa.ArrowInvalid as error:
        raise OSError(f"'{file}' is no Parquet file") from error


def _decoded(raw: bytes, found: Documents, source: str, number: int) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        found.skip("invalid UTF-8", source, number)
        return None


def _of_rows(found: Documents, corpus: Any, column: str | None) -> Iterator[Document]:
    name = type(corpus).__name__ if hasattr(corpus, "features") else "texts"
    for number, row in enumerate(corpus):
        yield name, number, content_of(row, column, f"row {number}")


def _of_array(corpus: Any) -> Documents:
    rows = np.asarray(corpus.detach().cpu() if hasattr(corpus, "detach") else corpus)
    if rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise ValueError(f"token ids are a whole-number array [row, pos]; these have {rows.dtype} {list(rows.shape)}")
    return Documents(lambda found: (("tokens", number, row.astype(np.int64)) for number, row in enumerate(rows)))


def content_of(row: Any, column: str | None, where: str) -> "str | np.ndarray":
    """The text or token ids of one row: text itself, a list of ids, or a mapping with a column of these.

    A missing value is empty text. Raises ValueError where there is no such column, TypeError for other content.
    """
    if isinstance(row, dict):
        row = row[chosen_column(list(row), column, where)]
    if row is None:
        return ""
    if isinstance(row, str):
        return row
    try:
        ids = np.asarray(row)
    except ValueError:
        ids = np.empty((0, 0))
    if ids.ndim == 1 and (ids.dtype.kind in "iu" or ids.size == 0):
        return ids.astype(np.int64)
    raise TypeError(f"{where} holds {type(row).__name__}; a document is text or a list of token ids")


def chosen_column(names: Sequence[str], column: str | None, where: str) -> str:
    """The column asked for, else the first known one. Raises ValueError where there is none."""
    wanted = (column,) if column is not None else (*TEXT, *TOKENS)
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise ValueError(f"{where} has columns {', '.join(names)}, not {' or '.join(wanted)}; name one with column=")
    return found
