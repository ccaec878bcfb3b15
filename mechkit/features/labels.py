"""What features are called: by the user, from a Neuronpedia export, or by a program, and then marked so.

Labels lie in `labels.sqlite` beside an index, with a full-text index; they are not part of what `scan` wrote.
"""

import gzip
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from mechkit.features.ranked import Ranked

FILE = "labels.sqlite"
TABLE = """create virtual table if not exists labels using fts5(
    text, sae unindexed, feature unindexed, source unindexed, automatic unindexed, tokenize = 'porter unicode61')"""
COLUMNS = "feature, text, source, automatic"


class Labels:
    """Labels of one SAE's features."""

    def __init__(self, folder: Path, sae: str, n_features: int) -> None:
        self.path, self.sae, self.n_features = folder / FILE, sae, n_features

    def add(self, feature: int, text: str, source: str = "user", automatic: bool = False) -> None:
        """Call a feature `text`, in place of what `source` called it before.

        `automatic` marks what a program proposed. Raises ValueError for an empty text or a number the SAE lacks.
        """
        self.add_all([(feature, text)], source, automatic)

    def add_all(self, labels: Iterable[tuple[int, str]], source: str, automatic: bool = False) -> int:
        """Add many labels, all or none; returns how many. Raises as `add` does."""
        rows = [(text.strip(), self.sae, feature, source, int(automatic)) for feature, text in labels]
        for text, _, feature, _, _ in rows:
            if not text:
                raise ValueError(f"the label of feature {feature} is empty; give it some text")
            if not 0 <= feature < self.n_features:
                raise ValueError(f"no feature {feature}; '{self.sae}' has 0 to {self.n_features - 1}")
        with closing(self._open()) as data, data:
            known = data.execute("select rowid, feature from labels where sae = ? and source = ?", (self.sae, source))
            old = {feature: row for row, feature in known}
            data.executemany("delete from labels where rowid = ?", [(old[r[2]],) for r in rows if r[2] in old])
            data.executemany("insert into labels(text, sae, feature, source, automatic) values (?, ?, ?, ?, ?)", rows)
        return len(rows)

    def remove(self, feature: int, source: str = "user") -> None:
        """Forget what `source` called a feature."""
        with closing(self._open()) as data, data:
            own = (self.sae, feature, source)
            data.execute("delete from labels where sae = ? and feature = ? and source = ?", own)

    def of(self, feature: int) -> pd.DataFrame:
        """Labels of one feature: `text`, `source`, `automatic`; the user's own first."""
        return self._rows("text, source, automatic", "sae = ? and feature = ?", (self.sae, feature))

    def all(self) -> pd.DataFrame:
        """Every label of the SAE: `feature`, `text`, `source`, `automatic`."""
        return self._rows(COLUMNS, "sae = ?", (self.sae,))

    def search(self, text: str, n: int = 20) -> Ranked:
        """Features whose labels hold every word of `text` (or a word that begins like the last), best match first.

        Unit: BM25, greater is better. Raises ValueError where `text` has no word.
        """
        words = [word.replace('"', "") for word in text.split()]
        words = [word for word in words if any(sign.isalnum() for sign in word)]
        if not words:
            raise ValueError(f"no word in {text!r} to look for")
        match = " ".join(f'"{word}"' for word in words) + "*"
        if not self.path.is_file():
            return Ranked(pd.DataFrame(columns=[*COLUMNS.split(", "), "match"]), "BM25", {"search": text})
        query = f"select {COLUMNS}, -rank from labels where labels match ? and sae = ? order by rank, feature limit ?"
        with closing(self._open()) as data:
            found = data.execute(query, (f"text: ({match})", self.sae, n)).fetchall()
        rows = pd.DataFrame(found, columns=[*COLUMNS.split(", "), "match"]).astype({"automatic": bool})
        return Ranked(rows, "BM25", {"search": text})

    def import_neuronpedia(self, path: str | Path) -> int:
        """Take in explanations of a Neuronpedia export; returns how many. They are marked automatic.

        `path` is a `.json` or `.jsonl` file, gzipped or not, or a folder of them: objects with `index` (or `feature`)
        and `description`, alone, in a list, or under "explanations" of a feature. The first of a feature is kept.
        Raises FileNotFoundError where there is none, ValueError where it holds none or names a feature the SAE lacks.
        """
        path = Path(path)
        files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"no .json or .jsonl files in '{path}'; a Neuronpedia export holds them")
        found: dict[int, str] = {}
        for file in files:
            for feature, text in _explanations(_read(file)):
                found.setdefault(feature, text)
        if not found:
            raise ValueError(f"no explanations in '{path}'; they are objects with 'index' and 'description'")
        return self.add_all(found.items(), "neuronpedia", automatic=True)

    def _rows(self, columns: str, where: str, values: tuple) -> pd.DataFrame:
        """Some columns, of which `automatic` is the last, of the labels that a condition picks."""
        query, found = f"select {columns} from labels where {where} order by automatic, feature, rowid", []
        if self.path.is_file():
            with closing(self._open()) as data:
                found = [(*row[:-1], bool(row[-1])) for row in data.execute(query, values)]
        return pd.DataFrame(found, columns=columns.split(", "))

    def _open(self) -> sqlite3.Connection:
        data = sqlite3.connect(self.path, timeout=10)
        try:
            data.execute(TABLE)
        except sqlite3.DatabaseError as error:
            data.close()
            raise ValueError(f"'{self.path}' is damaged or cannot be written ({error}); move it away") from error
        return data


def _read(file: Path) -> Iterator[Any]:
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    try:
        yield json.loads(text)
    except ValueError:
        try:
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
        except ValueError as error:
            raise ValueError(f"'{file}' is neither JSON nor JSON lines: {error}") from error


def _explanations(values: Iterable[Any]) -> Iterator[tuple[int, str]]:
    for value in values:
        if isinstance(value, list):
            yield from _explanations(value)
        elif isinstance(value, dict):
            number = value.get("index", value.get("feature"))
            inner = [{"index": number, **one} for one in value.get("explanations") or [] if isinstance(one, dict)]
            yield from _explanations(inner)
            text = value.get("description")
            if number is not None and isinstance(text, str) and text.strip():
                yield int(number), text
