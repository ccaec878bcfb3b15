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

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.bootstrap import interval
from mechkit.core.files import write_atomic
from mechkit.core.grid import Grid
from mechkit.core.rows import as_text, from_text, group_rows, groups_of, site_rows, sites_of
from mechkit.core.site import Edge, Site

RowScores = Float[Tensor, "row"]

_SHOWN = 20
"""Rows a table shows before it says how many more there are."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Scores of sites or edges. Every analysis returns one."""

    rows: pd.DataFrame
    """One row per site (columns `PARTS`), group of sites (those and `group`) or edge; missing parts are missing."""
    scores: Float[Tensor, "row prompt *axis"]
    """One score per row and prompt, then any further named axes, on the CPU."""
    unit: str
    """Unit of the scores."""
    meta: Mapping = field(default_factory=dict)
    """How it was made: verb, model, metric, options. JSON-able."""
    axes: tuple[str, ...] = ("row", "prompt")
    """Names of the axes of `scores`."""
    gap: Float[Tensor, "prompt *metric"] | None = None
    """What full recovery would be on each prompt (and metric), in `unit`, where that makes sense."""

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
        return cls(site_rows(list(sites)), scores.detach().cpu(), unit, dict(meta or {}), **more)

    @classmethod
    def of_groups(
        cls, groups: Iterable[Sequence[Site]], scores: Tensor, unit: str, meta: Mapping | None = None, **more
    ) -> "Result":
        """A result whose rows are groups of sites, each handled together; a row's parts are those its sites share."""
        return cls(group_rows(list(groups)), scores.detach().cpu(), unit, dict(meta or {}), **more)

    @classmethod
    def of_edges(
        cls, edges: Iterable[Edge], scores: Tensor, unit: str, meta: Mapping | None = None, **more
    ) -> "Result":
        """A result whose rows are `edges`."""
        edges = list(edges)
        senders = site_rows([edge.sender for edge in edges]).add_prefix("sender_")
        receivers = site_rows([edge.receiver for edge in edges]).add_prefix("receiver_")
        return cls(pd.concat([senders, receivers], axis=1), scores.detach().cpu(), unit, dict(meta or {}), **more)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sites(self) -> list[Site]:
        """The rows as sites, which the next question accepts. Raises TypeError for rows of edges or groups."""
        if "layer" not in self.rows:
            raise TypeError("the rows of this result are edges; take .edges")
        if self._has_groups():
            raise TypeError("rows of this result are groups of sites; take .groups")
        return sites_of(self.rows)

    @property
    def groups(self) -> list[list[Site]]:
        """The rows as lists of sites, one for a single site. Raises TypeError where the rows are edges."""
        if "layer" not in self.rows:
            raise TypeError("the rows of this result are edges; take .edges")
        return groups_of(self.rows)

    def _has_groups(self) -> bool:
        return "group" in self.rows and bool(self.rows["group"].notna().any())

    @property
    def edges(self) -> list[Edge]:
        """The rows as edges. Raises TypeError where the rows are sites."""
        if "layer" in self.rows:
            raise TypeError("the rows of this result are sites; take .sites")
        ends = (
            sites_of(
                self.rows.filter(like=prefix).rename(columns=lambda name, prefix=prefix: name.removeprefix(prefix))
            )
            for prefix in ("sender_", "receiver_")
        )
        return [Edge(*pair) for pair in zip(*ends, strict=True)]

    @property
    def labels(self) -> list[str]:
        """The text form of each row."""
        if self._has_groups():
            return [" + ".join(map(str, group)) for group in self.groups]
        return [str(row) for row in (self.sites if "layer" in self.rows else self.edges)]

    def metric(self, name: str) -> "Result":
        """The scores of one of several metrics, with its unit and gap. Raises ValueError for one not measured."""
        names = list(self.meta.get("metrics", ()))
        if name not in names:
            raise ValueError(f"no metric '{name}' in this result; it holds {', '.join(names) or 'one without a name'}")
        if "metric" not in self.axes:
            return self
        i = names.index(name)
        unit = self.meta["units"][i]
        return replace(
            self,
            scores=self.scores.select(self.axes.index("metric"), i),
            axes=tuple(axis for axis in self.axes if axis != "metric"),
            unit=unit,
            gap=None if self.gap is None else self.gap[:, i],
            meta={**self.meta, "metrics": [name], "units": [unit]},
        )

    def interval(self, level: float = 0.95, *, n: int = 1000, seed: int = 0) -> tuple[RowScores, RowScores]:
        """Lower and upper ends of each row's mean score, were the prompts drawn anew: bootstrap percentiles, in `unit`.

        `level` is the share of `n` resampled means that lies between them. Raises ValueError for fewer than two
        prompts, and where there are several metrics: choose one with `metric`.
        """
        return interval(self._per_prompt(), level, n, seed)

    def mean(self) -> "Result":
        """The same rows with one column, the mean over prompts."""
        gap = None if self.gap is None else self.gap.mean(0, keepdim=True)
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
        """A pandas table: the parts that are used, `score` (the mean over prompts), one column per prompt.

        Several metrics have a column of means each, named after it; choose one with `metric` for its prompts.
        """
        used = self.rows.dropna(axis=1, how="all")
        if "metric" in self.axes:
            return used.assign(**{name: self.metric(name)._means().numpy() for name in self.meta["metrics"]})
        used = used.assign(score=self._means().numpy())
        if self.scores.ndim != 2 or self.scores.shape[1] == 1:
            return used
        columns = {f"prompt_{i}": self.scores[:, i].numpy() for i in range(self.scores.shape[1])}
        return pd.concat([used, pd.DataFrame(columns, index=used.index)], axis=1)

    def plot(self, title: str = ""):
        """A plotly figure: a heatmap where two parts vary, else sorted bars."""
        from mechkit.viz.result_figure import result_figure

        named = "layer" not in self.rows or self._has_groups()
        rows = pd.DataFrame({"name": self.labels}) if named else self.rows
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
        table = pa.Table.from_pandas(as_text(self.rows))
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
        rows = from_text(table.to_pandas())
        return cls(rows, tensors["scores"], about["unit"], about["meta"], tuple(about["axes"]), tensors.get("gap"))

    def __repr__(self) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("edge" if "sender_layer" in self.rows else "site")
        shown = self._take(range(min(len(self), _SHOWN)))
        columns = shown._columns()
        for head in columns:
            table.add_column(Text(head), justify="right")
        for label, *means in zip(shown.labels, *(values.tolist() for values in columns.values()), strict=True):
            table.add_row(Text(label), *(f"{mean:+.4g}" for mean in means))
        drawn = io.StringIO()
        Console(file=drawn, width=100, force_terminal=False).print(table)
        text = "\n".join(line.rstrip() for line in drawn.getvalue().splitlines())
        return text + self._footer()

    def _footer(self) -> str:
        more = f"\n... {len(self) - _SHOWN} more rows" if len(self) > _SHOWN else ""
        prompts = self.scores.shape[1] if self.scores.ndim > 1 else 1
        mean = f"\nmean over {prompts} prompts" if prompts > 1 else ""
        if self.gap is None:
            return more + mean
        gaps = ", ".join(f"{gap:+.4g}" for gap in self.gap.mean(0).reshape(-1).tolist())
        return f"{more}{mean}\ngap (full recovery): {gaps}"

    def _repr_html_(self) -> str:
        part = self._take(range(min(len(self), _SHOWN)))
        shown = pd.DataFrame({"row": part.labels, **{head: means.numpy() for head, means in part._columns().items()}})
        return shown.to_html(index=False, float_format="{:+.4g}".format) + f"<p>{self._footer()}</p>"

    def _columns(self) -> dict[str, RowScores]:
        """The mean scores under their unit, or one column for each of several metrics."""
        if "metric" not in self.axes:
            return {self.unit: self._means()}
        units = dict(zip(self.meta["metrics"], self.meta["units"], strict=True))
        return {f"{name} ({unit})": self.metric(name)._means() for name, unit in units.items()}

    def _means(self) -> RowScores:
        return self._per_prompt().mean(1)

    def _per_prompt(self) -> Float[Tensor, "row prompt"]:
        """Scores averaged over all axes but rows and prompts. Raises ValueError where metrics would be mixed."""
        if "metric" in self.axes:
            names = list(self.meta["metrics"])
            raise ValueError(f"this result holds the metrics {', '.join(names)}; choose one: .metric({names[0]!r})")
        return self.scores.float().flatten(2).mean(2) if self.scores.ndim > 2 else self.scores.float()

    def _take(self, chosen: Sequence[int]) -> "Result":
        chosen = list(chosen)
        return replace(self, rows=self.rows.iloc[chosen].reset_index(drop=True), scores=self.scores[chosen])


def _in_order(labels: Iterable) -> tuple:
    """The different labels, sorted where they are numbers."""
    found = dict.fromkeys(labels)
    return tuple(sorted(found) if all(isinstance(label, Integral) for label in found) else found)


def _scores_file(path: Path) -> Path:
    """Where the scores of a result lie; `a.v1` and `a.v2` have theirs apart."""
    return path.with_suffix(".safetensors") if path.suffix == ".parquet" else path.with_name(f"{path.name}.safetensors")
