"""Labelled answers: rows of sites or edges, one column per prompt, a unit, and how it was made.

result.top(5)                        # the five largest rows; a table in the terminal and in Jupyter
result.where(layer=[0, 1]).grid("layer", "head").plot()
patch(model, pair, result.top(3).sites, logit_diff)
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.files import write_atomic
from mechkit.core.site import Edge, Site

PARTS = ("layer", "head", "name", "pos", "src", "index", "basis")
"""Columns of a row of sites; edges have each twice, as `sender_layer`, `receiver_layer` and so on."""

_SHOWN = 20
"""Rows a table shows before it says how many more there are."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A labelled two-dimensional array of mean scores."""

    values: Float[np.ndarray, "row column"]
    """Mean score of the rows with these two labels; NaN where there is none."""
    rows: tuple
    """Labels of the first axis."""
    columns: tuple
    """Labels of the second axis."""
    names: tuple[str, str]
    """What the two axes are, such as `("layer", "head")`."""
    unit: str
    """Unit of the values."""

    def frame(self) -> pd.DataFrame:
        """The grid as a table with labelled index and columns."""
        index, columns = pd.Index(self.rows, name=self.names[0]), pd.Index(self.columns, name=self.names[1])
        return pd.DataFrame(self.values, index, columns)

    def plot(self, title: str = ""):
        """A plotly heatmap, its colours centred on 0."""
        from mechkit.viz.result_figure import result_figure

        rows = pd.MultiIndex.from_product([self.rows, self.columns], names=self.names).to_frame(index=False)
        there = ~np.isnan(self.values.ravel())
        return result_figure(rows.loc[there].reset_index(drop=True), self.values.ravel()[there], self.unit, title)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)

    def __repr__(self) -> str:
        return f"{self.frame().to_string(float_format='{:.4g}'.format)}\nunit: {self.unit}"


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Scores of sites or edges. Every analysis returns one."""

    rows: pd.DataFrame
    """One row per site (columns `PARTS`) or edge; missing parts are missing values."""
    scores: Float[Tensor, "row prompt *axis"]
    """One score per row and prompt, then any further named axes, on the CPU."""
    unit: str
    """Unit of the scores."""
    meta: Mapping = field(default_factory=dict)
    """How it was made: verb, model, metric, options. JSON-able."""
    axes: tuple[str, ...] = ("row", "prompt")
    """Names of the axes of `scores`."""
    gap: Float[Tensor, "prompt"] | None = None
    """What full recovery would be on each prompt, in `unit`, where that makes sense."""

    def __post_init__(self) -> None:
        if len(self.rows) != self.scores.shape[0] or len(self.axes) != self.scores.ndim:
            raise ValueError(
                f"scores have shape {list(self.scores.shape)} for {len(self.rows)} rows and axes {list(self.axes)}"
            )

    @classmethod
    def of_sites(
        cls, sites: Iterable[Site], scores: Tensor, unit: str, meta: Mapping | None = None, **more
    ) -> "Result":
        """A result whose rows are `sites`."""
        return cls(_site_rows(list(sites)), scores.detach().cpu(), unit, dict(meta or {}), **more)

    @classmethod
    def of_edges(
        cls, edges: Iterable[Edge], scores: Tensor, unit: str, meta: Mapping | None = None, **more
    ) -> "Result":
        """A result whose rows are `edges`."""
        edges = list(edges)
        senders = _site_rows([edge.sender for edge in edges]).add_prefix("sender_")
        receivers = _site_rows([edge.receiver for edge in edges]).add_prefix("receiver_")
        return cls(pd.concat([senders, receivers], axis=1), scores.detach().cpu(), unit, dict(meta or {}), **more)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sites(self) -> list[Site]:
        """The rows as sites, which the next question accepts. Raises TypeError where the rows are edges."""
        if "layer" not in self.rows:
            raise TypeError("the rows of this result are edges; take .edges")
        return _sites(self.rows)

    @property
    def edges(self) -> list[Edge]:
        """The rows as edges. Raises TypeError where the rows are sites."""
        if "layer" in self.rows:
            raise TypeError("the rows of this result are sites; take .sites")
        ends = (
            _sites(self.rows.filter(like=prefix).rename(columns=lambda name, prefix=prefix: name.removeprefix(prefix)))
            for prefix in ("sender_", "receiver_")
        )
        return [Edge(*pair) for pair in zip(*ends, strict=True)]

    @property
    def labels(self) -> list[str]:
        """The text form of each row."""
        return [str(row) for row in (self.sites if "layer" in self.rows else self.edges)]

    def mean(self) -> "Result":
        """The same rows with one column, the mean over prompts."""
        gap = None if self.gap is None else self.gap.mean().reshape(1)
        return replace(self, scores=self.scores.mean(1, keepdim=True), gap=gap)

    def top(self, n: int = 10, *, by: Callable[[Tensor], Tensor] = torch.abs) -> "Result":
        """The `n` rows whose mean score is largest under `by` (its size, unless told), largest first, NaN last."""
        order = (
            by(self._means()).nan_to_num(-torch.inf, torch.inf, -torch.inf).argsort(descending=True, stable=True)[:n]
        )
        return self._take(order.tolist())

    def where(self, condition: Callable[[pd.DataFrame], pd.Series] | None = None, **parts) -> "Result":
        """The rows whose parts have these values: `where(layer=3, head=[0, 1])`, or a condition on the rows' table.

        Raises ValueError for a part the rows do not have.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, wanted in parts.items():
            self._require_part(name)
            choices = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
            missing = self.rows[name].isna().to_numpy() & (None in choices)
            keep &= self.rows[name].isin([c for c in choices if c is not None]).to_numpy() | missing
        if condition is not None:
            keep &= pd.Series(condition(self.rows), dtype="boolean").fillna(False).to_numpy(bool)
        return self._take(np.flatnonzero(keep).tolist())

    def grid(self, row: str, column: str) -> Grid:
        """Mean scores by two parts of the rows, such as `grid("layer", "head")`.

        Labels are sorted where they are numbers, else in the order of the rows. Raises ValueError for a part the rows
        do not have, and where two rows share both labels: narrow the rows with `where` first.
        """
        self._require_part(row)
        self._require_part(column)
        keys = self.rows[[row, column]].astype(object).where(self.rows[[row, column]].notna(), None)
        if keys.duplicated().any():
            raise ValueError(f"several rows share the same {row} and {column}; narrow them with where(...) first")
        rows, columns = _in_order(keys[row]), _in_order(keys[column])
        values = np.full((len(rows), len(columns)), np.nan)
        number = [{label: i for i, label in enumerate(labels)} for labels in (rows, columns)]
        at = [[place[label] for label in keys[part]] for part, place in zip((row, column), number, strict=True)]
        values[at[0], at[1]] = self._means().numpy()
        return Grid(values, rows, columns, (row, column), self.unit)

    def _require_part(self, name: str) -> None:
        if name not in self.rows:
            raise ValueError(f"rows have no '{name}'; they have {', '.join(self.rows.columns)}")

    def frame(self) -> pd.DataFrame:
        """A pandas table: the parts that are used, `score` (the mean over prompts), one column per prompt."""
        used = self.rows.dropna(axis=1, how="all").assign(score=self._means().numpy())
        if self.scores.ndim != 2 or self.scores.shape[1] == 1:
            return used
        columns = {f"prompt_{i}": self.scores[:, i].numpy() for i in range(self.scores.shape[1])}
        return pd.concat([used, pd.DataFrame(columns, index=used.index)], axis=1)

    def plot(self, title: str = ""):
        """A plotly figure: a heatmap where two parts vary, else sorted bars."""
        from mechkit.viz.result_figure import result_figure

        rows = self.rows if "layer" in self.rows else pd.DataFrame({"name": self.labels})
        return result_figure(rows.reset_index(drop=True), self._means().numpy(), self.unit, title)

    def save(self, path: str | PathLike) -> Path:
        """Write `path` (Parquet: rows, unit, meta) and, beside it, the scores as safetensors. Returns `path`.

        `heads.parquet` has its scores in `heads.safetensors`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors.torch import save

        path = Path(path)
        tensors = {"scores": self.scores.contiguous()} | ({} if self.gap is None else {"gap": self.gap.contiguous()})
        data = save(tensors)
        about = {"unit": self.unit, "meta": dict(self.meta), "axes": self.axes, "sha256": sha256(data).hexdigest()}
        table = pa.Table.from_pandas(_positions(self.rows, lambda pos: None if pos is None else str(pos)))
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"mechkit": json.dumps(about).encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomic(_scores_file(path), data)
        return write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | PathLike) -> "Result":
        """Read what `save` wrote. Raises FileNotFoundError or ValueError, naming the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors.torch import load

        try:
            table = pq.ParquetFile(path).read()
        except pa.ArrowInvalid as error:
            raise ValueError(f"'{path}' is not a saved Result: {error}") from error
        if b"mechkit" not in (table.schema.metadata or {}):
            raise ValueError(f"'{path}' is not a saved Result: its table carries no unit")
        about = json.loads(table.schema.metadata[b"mechkit"])
        data = _scores_file(Path(path)).read_bytes()
        if sha256(data).hexdigest() != about["sha256"]:
            raise ValueError(
                f"'{_scores_file(Path(path))}' does not hold the scores of '{path}'; save the result again"
            )
        tensors = load(data)
        rows = table.to_pandas().astype(object)
        rows = _positions(rows.where(rows.notna(), None).astype(_dtypes(table.column_names)), _plain)
        return cls(rows, tensors["scores"], about["unit"], about["meta"], tuple(about["axes"]), tensors.get("gap"))

    def __repr__(self) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("edge" if "sender_layer" in self.rows else "site")
        table.add_column(Text(self.unit), justify="right")
        for label, score in zip(self._take(range(min(len(self), _SHOWN))).labels, self._means().tolist(), strict=False):
            table.add_row(Text(label), f"{score:+.4g}")
        drawn = io.StringIO()
        Console(file=drawn, width=100, force_terminal=False).print(table)
        text = "\n".join(line.rstrip() for line in drawn.getvalue().splitlines())
        return text + self._footer()

    def _footer(self) -> str:
        more = f"\n... {len(self) - _SHOWN} more rows" if len(self) > _SHOWN else ""
        prompts = self.scores.shape[1] if self.scores.ndim > 1 else 1
        mean = f"\nmean over {prompts} prompts" if prompts > 1 else ""
        gap = "" if self.gap is None else f"\ngap (full recovery): {float(self.gap.mean()):+.4g}"
        return more + mean + gap

    def _repr_html_(self) -> str:
        shown = pd.DataFrame({"row": self.labels[:_SHOWN], self.unit: self._means()[:_SHOWN].numpy()})
        return shown.to_html(index=False, float_format="{:+.4g}".format) + f"<p>{self._footer()}</p>"

    def _means(self) -> Float[Tensor, "row"]:
        return self.scores.float().flatten(1).mean(1)

    def _take(self, chosen: Sequence[int]) -> "Result":
        chosen = list(chosen)
        return replace(self, rows=self.rows.iloc[chosen].reset_index(drop=True), scores=self.scores[chosen])


def _site_rows(sites: Sequence[Site]) -> pd.DataFrame:
    rows = pd.DataFrame({part: [getattr(site, part) for site in sites] for part in PARTS}, dtype=object)
    return rows.astype(_dtypes(rows.columns))


def _in_order(labels: Iterable) -> tuple:
    """The different labels, sorted where they are numbers."""
    found = dict.fromkeys(labels)
    return tuple(sorted(found) if all(isinstance(label, Integral) for label in found) else found)


def _scores_file(path: Path) -> Path:
    """Where the scores of a result lie; `a.v1` and `a.v2` have theirs apart."""
    return path.with_suffix(".safetensors") if path.suffix == ".parquet" else path.with_name(f"{path.name}.safetensors")


def _dtypes(columns: Iterable[str]) -> dict[str, str]:
    """Counts are nullable integers; positions may be symbolic, so they are text or integers as they come."""
    counts = ("layer", "head", "index")
    return {name: "Int64" for name in columns if name.removeprefix("sender_").removeprefix("receiver_") in counts}


def _positions(rows: pd.DataFrame, convert: Callable) -> pd.DataFrame:
    """The rows with `convert` applied to every position; Parquet has no column of both text and integers."""
    columns = [name for name in rows if name.rsplit("_", 1)[-1] in ("pos", "src")]
    present = rows[columns].astype(object).where(rows[columns].notna(), None)
    return rows.assign(**{name: pd.Series([convert(pos) for pos in present[name]], dtype=object) for name in columns})


def _sites(rows: pd.DataFrame) -> list[Site]:
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
