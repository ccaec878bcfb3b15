"""An index as tables: written as Parquet, and asked with SQL by DuckDB, which comes with `mechkit[sql]`.

Tables: `features` (a row per feature), `examples` (strongest rows and drawn firings), `tokens` (promoted and
suppressed), `cofiring`, `labels`, and `firings` where all activations were kept.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex

AT_ONCE = 1 << 22
"""Firings of a row group."""


def features_table(index: "FeatureIndex") -> pd.DataFrame:
    """`feature`, `n_firings`, `density`, `mean` and `max` strength."""
    n = index.n_firings
    strongest = index.max if index.arrays["top_value"].shape[1] else np.full(index.n_features, np.nan)
    columns = {"n_firings": n, "density": index.density, "mean": index.mean, "max": strongest}
    return pd.DataFrame({"feature": np.arange(index.n_features), **columns})


def examples_table(index: "FeatureIndex") -> pd.DataFrame:
    """`feature`, `kind` ("top" or "sample"), `rank`, `position`, `activation`, `row` of the corpus, `token`, `text`."""
    found = []
    for kind in ("top", "sample"):
        position = np.asarray(index.arrays[f"{kind}_position"])
        feature, rank = (position >= 0).nonzero()
        at, value = position[feature, rank], index.arrays[f"{kind}_value"][feature, rank]
        token = index.text.rows.tokens[at]
        columns = {"feature": feature, "kind": kind, "rank": rank, "position": at, "activation": value}
        words = [index.text.word(int(one)) for one in token]
        found.append(pd.DataFrame({**columns, "row": index.text.rows.rows_of(at), "token": token, "text": words}))
    return pd.concat(found, ignore_index=True)


def tokens_table(index: "FeatureIndex") -> pd.DataFrame:
    """`feature`, `kind` ("promoted" or "suppressed"), `rank`, `token`, `text`, `logit`; empty where none are known."""
    found = [pd.DataFrame(columns=["feature", "kind", "rank", "token", "text", "logit"])]
    for kind in ("promoted", "suppressed"):
        if f"{kind}_token" in index.arrays:
            token = np.asarray(index.arrays[f"{kind}_token"])
            feature, rank = np.indices(token.shape).reshape(2, -1)
            words = [index.text.word(int(one)) for one in token.ravel()]
            columns = {"feature": feature, "kind": kind, "rank": rank, "token": token.ravel(), "text": words}
            found.append(pd.DataFrame({**columns, "logit": np.asarray(index.arrays[f"{kind}_logit"]).ravel()}))
    return pd.concat(found[1:], ignore_index=True) if len(found) > 1 else found[0]


def cofiring_table(index: "FeatureIndex") -> pd.DataFrame:
    """`feature`, `other`, `shared` tokens, Jaccard `overlap`."""
    other = np.asarray(index.arrays["cofiring_feature"])
    feature, rank = (other >= 0).nonzero()
    fired, shared = index.arrays["cofiring_n"], index.arrays["cofiring_shared"][feature, rank]
    other = other[feature, rank]
    overlap = shared / (fired[feature] + fired[other] - shared)
    return pd.DataFrame({"feature": feature, "other": other, "shared": shared, "overlap": overlap})


TABLES: dict[str, Callable[["FeatureIndex"], pd.DataFrame]] = {
    "features": features_table,
    "examples": examples_table,
    "tokens": tokens_table,
    "cofiring": cofiring_table,
    "labels": lambda index: index.labels.all(),
}


def write_tables(index: "FeatureIndex", folder: str | Path) -> list[Path]:
    """Write every table as Parquet into a folder; returns the paths. Firings go out a few million at a time.

    Raises FileNotFoundError where the folder is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write tables into '{folder}': there is no such folder; create it first")
    about = {"mechkit": index.manifest["mechkit"], "sae": index.sae, "model": index.manifest["model"]["sha256"]}
    written = []
    for name, make in TABLES.items():
        table = pa.Table.from_pandas(make(index), preserve_index=False).replace_schema_metadata(about)
        written.append(folder / f"{name}.parquet")
        pq.write_table(table, written[-1])
    if "by_token_feature" in index.arrays:
        written.append(folder / "firings.parquet")
        parts = _firings(index)
        first = next(parts)
        with pq.ParquetWriter(written[-1], first.schema.with_metadata(about)) as writer:
            writer.write_table(first.replace_schema_metadata(about))
            for part in parts:
                writer.write_table(part.replace_schema_metadata(about))
    return written


def _firings(index: "FeatureIndex") -> Iterator[pa.Table]:
    """`position`, `feature`, `activation` of every firing, token after token."""
    ends = np.asarray(index.arrays["token_ends"])
    n_firings = int(ends[-1])
    for start in range(0, max(1, n_firings), AT_ONCE):
        own = slice(start, min(start + AT_ONCE, n_firings))
        position = np.searchsorted(ends, np.arange(own.start, own.stop), side="right")
        columns = {"feature": "by_token_feature", "activation": "by_token_value"}
        yield pa.table({"position": position, **{key: np.array(index.arrays[n][own]) for key, n in columns.items()}})


def sql(index: "FeatureIndex", query: str) -> pd.DataFrame:
    """The answer of an SQL query over the tables of an index, which are written as Parquet once, into its `tables`.

    Labels are read anew each time. Raises ImportError where DuckDB is not there.
    """
    try:
        import duckdb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("sql needs DuckDB: pip install 'mechkit[sql]'") from error
    home = index.folder / "tables" / index.sae
    if not (home / "features.parquet").is_file():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=index.folder) as made:
            for path in reversed(write_tables(index, made)):  # the first one comes last: it says that all are there
                os.replace(path, home / path.name)
    with duckdb.connect(":memory:") as data:
        for path in sorted(home.glob("*.parquet")):
            if path.stem != "labels":
                name = str(path).replace("'", "''")
                data.execute(f"create view {path.stem} as select * from read_parquet('{name}')")
        data.register("labels", index.labels.all())
        return data.execute(query).df()
