"""`measure_model`: the measures of superposition over every matrix of a model, a labelled row each.

>>> found = measure_model(model, draws=1, sample=50)     # print(found): its matrices, and what may be concluded
>>> found.layers.measure("features_per_dimension").top(1).sites
[Site('L0.q')]
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechkit.core.files import write_atomic
from mechkit.core.progress import progress
from mechkit.core.result import Result
from mechkit.core.rows import as_text, site_rows, sites_of
from mechkit.core.site import Site
from mechkit.superposition.conclusions import LEVEL, WEIGHTS_ALONE
from mechkit.superposition.measure import measure_superposition
from mechkit.superposition.measured import Superposition
from mechkit.superposition.measures import effective_rank, participation_ratio, stable_rank
from mechkit.superposition.nulls import NULLS, NullTest
from mechkit.superposition.weights import CIRCUITS, Weights, circuits, left_out, weights_of
from mechkit.zoo.folder import origin_of

COMPARED = {"mean_square": "mean cos^2", "nearest": "mean largest |cos|", "max": "max |cos|"}
"""Statistics whose ratio to the median of each null, and p, are columns: `random_nearest`, `random_nearest_p`."""
SHORT = dict(zip(NULLS, ("random", "covariance"), strict=True))
"""What each null is called in the names of columns."""
COUNTS = ("n_features", "n_directed", "n_dimensions", "rank")
"""Columns of whole numbers."""


@dataclass(frozen=True, eq=False, repr=False)
class ModelSuperposition:
    """The matrices of a model and how their features share the residual stream."""

    rows: pd.DataFrame
    """One row per matrix: the parts of its site, `matrix`, and a column per measure; missing where it has none."""
    meta: Mapping = field(default_factory=dict)
    """How it was made: model, draws, sample, seed, what was left out. JSON-able."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sites(self) -> list[Site]:
        """Where the features of each row are active."""
        return sites_of(self.rows)

    def frame(self) -> pd.DataFrame:
        """A table with the site's text, the matrix, and every measure."""
        measures = self.rows.drop(columns=[name for name in site_rows([]).columns if name in self.rows])
        return measures.assign(site=list(map(str, self.sites))).set_index(["site", "matrix"])

    @property
    def layers(self) -> "ModelSuperposition":
        """Without the rows of single heads."""
        kept = np.flatnonzero(self.rows["head"].isna().to_numpy())
        return ModelSuperposition(self.rows.take(kept).reset_index(drop=True), self.meta)

    def measure(self, name: str) -> Result:
        """One measure of each matrix that has it, as a `Result` whose rows are sites. ValueError for no such measure.

        Several matrices of a model may share a site (those of a layer's dictionaries, say): look at `frame()` then.
        """
        if name not in self.frame().columns:
            raise ValueError(f"no measure '{name}'; there are {', '.join(self.frame().columns)}")
        kept = self.rows.take(np.flatnonzero(self.rows[name].notna().to_numpy()))
        scores = torch.tensor(kept[name].astype(float).tolist(), dtype=torch.double).unsqueeze(1)
        return Result.of_sites(sites_of(kept), scores, name, {"verb": "measure_model", "measure": name, **self.meta})

    def conclusions(self) -> list[str]:
        """What may be concluded of the model's weights, and what may not, a sentence each."""
        said = [
            _counted(self.rows, "random_mean_square", "overlap more than random directions do", "overlap less"),
            _counted(
                self.rows, "covariance_nearest", "lie closer to neighbours than covariance explains", "less close"
            ),
        ]
        forced = self.rows["n_features"] > self.rows["n_dimensions"]
        names = dict.fromkeys(name for name, more in zip(self.rows["matrix"], forced, strict=True) if more)
        if names:
            said.append(f"Only where there are more features than dimensions must they overlap: {', '.join(names)}.")
        return [*said, WEIGHTS_ALONE]

    def save(self, path: str | PathLike) -> Path:
        """Write the rows and how they were made as Parquet; returns `path`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(as_text(self.rows), preserve_index=False)
        about = json.dumps(dict(self.meta))
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"mechkit": about})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return write_atomic(Path(path), buffer.getvalue())

    def __str__(self) -> str:
        shown = ["n_features", "n_dimensions", "features_per_dimension", "mean_cosine", "max_cosine", "welch_bound"]
        table = self.layers.frame()[shown].map(lambda value: f"{value:.3g}")
        return "\n".join([str(table.to_string()), "", *self.conclusions()])

    __repr__ = __str__


def measure_model(
    model,
    dictionaries: Iterable[Any] | None = None,
    *,
    draws: int = 99,
    sample: int | None = 1024,
    seed: int = 0,
    heads: bool = True,
) -> ModelSuperposition:
    """Every measure of superposition of a model's matrices, and of the decoders of `dictionaries`, one row each.

    Matrices are those of `weights.weights_of`, from the embedding to the unembedding; the heads of a layer are one
    row for what they write, read, query and key (compared with heads turned at random as a whole; not with the
    covariance null, since rows of a head are orthogonal by construction). With `heads`, each head's OV and QK maps
    have a row of their own, spectrum only. Dictionaries are anything with `W_dec[feature, d_model]` and a hook.

    Ratios to a null are to the median of its draws; see `measure_superposition` for the measures, their units, `draws`,
    `sample` and `seed`. Cost: that of `measure_superposition` for each matrix, no forward pass. Raises ValueError for
    a dictionary that is not of this model and for weights that are not finite, naming the site.
    """
    options = {"draws": draws, "sample": sample, "seed": seed}
    dictionaries = list(dictionaries or ())
    found: list[tuple[Site, dict[str, Any]]] = []
    for one in progress(weights_of(model, dictionaries), "matrices", _how_many(model) + len(dictionaries)):
        found.append((one.site, _measured(one, options)))
    if heads:
        found += [head for layer, block in enumerate(model.blocks) for head in _by_head(block, layer)]
    rows = pd.concat([site_rows([site for site, _ in found]), pd.DataFrame([row for _, row in found])], axis=1)
    rows = rows.astype(dict.fromkeys(COUNTS, "Int64"))
    return ModelSuperposition(rows, {"model": _called(model), **options, "left_out": left_out(model)})


def _called(model) -> str:
    """What the model calls itself, or where it came from."""
    origin, name = origin_of(model), model.cfg.model_name
    return name if origin is None or name != "custom" else origin.name


def _how_many(model) -> int:
    """Matrices of `weights_of`, about."""
    per_layer = [4 + (2 + hasattr(block.mlp, "W_gate") if hasattr(block, "mlp") else 0) for block in model.blocks]
    return 2 + hasattr(model, "pos_embed") + sum(per_layer)


def _measured(one: Weights, options: dict[str, Any]) -> dict[str, Any]:
    nulls = NULLS if one.block == 1 else NULLS[:1]
    try:
        report = measure_superposition(one.W, nulls=nulls, block=one.block, **options)
    except ValueError as error:
        raise ValueError(f"{one.matrix} at {one.site}: {error}") from error
    return {"matrix": one.matrix, **report.numbers(), **_null_columns(report)}


def _null_columns(report: Superposition) -> dict[str, float]:
    columns = {}
    for null, short in SHORT.items():
        for name, statistic in COMPARED.items():
            ratio, p = _ratio(report.tests.get(null), statistic)
            columns |= {f"{short}_{name}": ratio, f"{short}_{name}_p": p}
    return columns


def _ratio(test: NullTest | None, statistic: str) -> tuple[float, float]:
    if test is None:
        return float("nan"), float("nan")
    observed, expected, p = test.of(statistic)
    return observed / expected if expected else float("nan"), p


def _by_head(block, layer: int) -> list[tuple[Site, dict[str, Any]]]:
    """The spectrum of each head's bilinear maps."""
    found = []
    for circuit, (rows, _) in circuits(block).items():
        values = torch.linalg.vector_norm(rows, dim=-1)
        measures = {
            "effective_rank": effective_rank(values),
            "participation_ratio": participation_ratio(values.square()),
            "stable_rank": stable_rank(values),
        }
        for head in range(len(rows)):
            numbers = {name: float(per_head[head]) for name, per_head in measures.items()}
            sizes = {"matrix": circuit, "n_features": rows.shape[1], "n_dimensions": rows.shape[2]}
            found.append((Site(CIRCUITS[circuit], layer, head), sizes | numbers))
    return found


def _counted(rows: pd.DataFrame, ratio: str, more: str, less: str) -> str:
    """How many matrices differ from a null in each direction."""
    ratios, p = (rows[name].to_numpy(dtype=float) for name in (ratio, f"{ratio}_p"))
    up, down = (int(((p < LEVEL) & side).sum()) for side in (ratios > 1, ratios < 1))
    return f"Of {int(np.isfinite(p).sum())} matrices {up} {more}, {down} {less} (p < {LEVEL}, each alone)."
