"""Sites, and groups of them, as the rows of a table, one column per part, and back.

>>> sites_of(site_rows([Site.parse("L9.H6.z@-1")]))
[Site('L9.H6.z@-1')]
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from mechkit.core.site import Site

PARTS = ("layer", "head", "name", "pos", "src", "index", "basis")
"""Columns of a row of sites; edges have each twice, as `sender_layer`, `receiver_layer` and so on."""

_JOIN = " + "


def site_rows(sites: Sequence[Site]) -> pd.DataFrame:
    """One row per site, one column per part; missing parts are missing values."""
    rows = pd.DataFrame({part: [getattr(site, part) for site in sites] for part in PARTS}, dtype=object)
    return rows.astype(_column_types(rows.columns))


def group_rows(groups: Sequence[Sequence[Site]]) -> pd.DataFrame:
    """One row per group: the parts that its sites share, and in `group` its sites where there are several."""
    shared = {part: [_shared([getattr(site, part) for site in group]) for group in groups] for part in PARTS}
    rows = pd.DataFrame(shared, dtype=object)
    texts = [_JOIN.join(map(str, group)) if len(group) > 1 else None for group in groups]
    return rows.astype(_column_types(rows.columns)).assign(group=pd.Series(texts, dtype=object))


def groups_of(rows: pd.DataFrame) -> list[list[Site]]:
    """The sites of each row."""
    texts = rows["group"] if "group" in rows else [None] * len(rows)
    alone = [not isinstance(text, str) for text in texts]
    singles = iter(sites_of(rows.loc[alone]))
    return [[next(singles)] if one else _read_group(text) for one, text in zip(alone, texts, strict=True)]


def _read_group(text: str) -> list[Site]:
    """The sites of a group's text; a plus inside the brackets of a dictionary's name belongs to the name."""
    return [Site.parse(one) for one in re.split(r" \+ (?![^\[\]]*\])", text)]


def _shared(values: Sequence):
    return values[0] if all(value == values[0] for value in values) else None


def _column_types(columns: Iterable[str]) -> dict[str, str]:
    """Counts are nullable integers; positions may be symbolic, so they are text or integers as they come."""
    counts = ("layer", "head", "index")
    return {name: "Int64" for name in columns if name.removeprefix("sender_").removeprefix("receiver_") in counts}


def as_text(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with positions as text; Parquet has no column of both text and integers."""
    return _with_positions(rows, lambda pos: None if pos is None else str(pos))


def from_text(rows: pd.DataFrame) -> pd.DataFrame:
    """What `as_text` gave, after Parquet, as rows again."""
    rows = rows.astype(object)
    return _with_positions(rows.where(rows.notna(), None).astype(_column_types(rows.columns)), _plain)


def sites_of(rows: pd.DataFrame) -> list[Site]:
    """The sites that the rows stand for."""
    present = rows.astype(object).where(rows.notna(), None)
    return [
        Site(**{part: _plain(value) for part, value in zip(PARTS, values, strict=True)})
        for values in present[list(PARTS)].itertuples(index=False, name=None)
    ]


def _plain(value) -> Any:
    """Integers as Python's own, and numeric text (Parquet keeps mixed columns as text) as integers."""
    if isinstance(value, str):
        return int(value) if value.removeprefix("-").isdigit() else value
    return None if value is None or value is pd.NA else int(value)


def _with_positions(rows: pd.DataFrame, convert: Callable) -> pd.DataFrame:
    columns = [name for name in rows if name.rsplit("_", 1)[-1] in ("pos", "src")]
    present = rows[columns].astype(object).where(rows[columns].notna(), None)
    return rows.assign(**{name: pd.Series([convert(pos) for pos in present[name]], dtype=object) for name in columns})
