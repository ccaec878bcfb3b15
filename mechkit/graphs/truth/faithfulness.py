"""How much of the answer a pruned graph carries by itself: everything outside it is taken out.

The share of a root that survives, `(m(left) - m(none)) / (m(all) - m(none))`, m the root in the model with only those
features left, live, and nothing else changed: 1 where what was pruned does not matter, 0 where what was kept is worth
no more than nothing. Beside it stand the same with the dictionaries' errors taken out too, what is left without the
kept features, as many active features at random, and shares by number of features.

Source: the normalised faithfulness of Wang et al. 2022 and Marks et al. 2024 (features, errors in or out), here for the
nodes of an attribution graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.prompts import Prompts
from mechkit.graphs.nodes import Node
from mechkit.graphs.truth.ablation import Ablations, Left, mean_activations
from mechkit.graphs.truth.changes import referred
from mechkit.graphs.truth.intervention import held_parts

N_DRAWS = 5
"""Random sets of features that the control averages over."""


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness:
    """What of a root is left when only some features are, in the root's unit; shares are of all against none."""

    root: str
    """What was measured, such as a logit."""
    n_kept: int
    """Features that were left in."""
    n_active: int
    """Features that are active on the prompt."""
    all: float
    """The root in the model as it is."""
    none: float
    """With no features, what dictionaries miss left in."""
    kept: float
    """With the kept features alone."""
    others: float
    """With all features but the kept ones."""
    random: Float[Tensor, "draw"]
    """With as many of the active features, drawn at random."""
    without_errors: tuple[float, float, float] | None
    """With all, no and the kept features, and what dictionaries miss taken out; None on a model's own neurons."""
    sizes: Sequence[int]
    """Numbers of features, the most influential ones, that were left in."""
    by_size: Float[Tensor, "size"]
    """The root with so many."""
    ablated: str
    """What features were brought to: zero, or their means."""

    @property
    def score(self) -> float:
        """Share of the root that the kept features carry, what dictionaries miss left in."""
        return self.share(self.kept)

    @property
    def score_without_errors(self) -> float | None:
        """The same with what dictionaries miss taken out, against the model as it is; None on a model's own neurons."""
        if self.without_errors is None:
            return None
        _, none, kept = self.without_errors
        return _ratio(kept - none, self.all - none)

    @property
    def ceiling_without_errors(self) -> float | None:
        """The same with all features: what the dictionaries themselves can carry."""
        if self.without_errors is None:
            return None
        everything, none, _ = self.without_errors
        return _ratio(everything - none, self.all - none)

    @property
    def control(self) -> float:
        """Share that as many random features carry, mean over draws."""
        return float(torch.stack([torch.tensor(self.share(float(one))) for one in self.random]).mean())

    def share(self, value: float) -> float:
        """A value of the root as a share: 0 with no features, 1 with all. NaN where the two are the same."""
        return _ratio(value - self.none, self.all - self.none)

    def frame(self) -> pd.DataFrame:
        """One row per set of features: how many, the root, and its share."""
        rows = [("all", self.n_active, self.all), ("none", 0, self.none), ("kept", self.n_kept, self.kept)]
        rows += [("all but the kept", self.n_active - self.n_kept, self.others)]
        rows += [("as many at random (mean)", self.n_kept, float(self.random.mean()))]
        table = pd.DataFrame(rows, columns=["left in", "features", "value"])
        table["share"] = [self.share(value) for value in table["value"]]
        if self.without_errors is not None:
            extra = zip(("all", "none", "kept"), (self.n_active, 0, self.n_kept), self.without_errors, strict=True)
            none = self.without_errors[1]
            made = [(f"{name}, no errors", n, v, _ratio(v - none, self.all - none)) for name, n, v in extra]
            table = pd.concat([table, pd.DataFrame(made, columns=list(table.columns))], ignore_index=True)
        return table

    def curve(self) -> pd.DataFrame:
        """Share of the root by number of features left in, the most influential first; errors are left in."""
        return pd.DataFrame({"features": self.sizes, "share": [self.share(float(value)) for value in self.by_size]})

    def __repr__(self) -> str:
        table = self.frame().to_string(index=False, float_format="{:.3f}".format)
        return f"Faithfulness of {self.n_kept} kept features to {self.root}, others {self.ablated}\n{table}"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


@torch.no_grad()
def faithfulness(
    graph,
    keep: Any = None,
    *,
    root: int = 0,
    reference: Prompts | Sequence[str] | None = None,
    freeze: Sequence[str] = (),
    seed: int = 0,
) -> Faithfulness:
    """How much of a root is left when only the kept features are, or those that `keep` refers to.

    Every other feature of the dictionaries is taken out at every position, or brought to its mean on `reference`
    prompts. `freeze` may hold "attention" and "norms". `root` numbers what the graph explains, the first unless told.

    Unit: the root's. Cost: about 20 rows of a forward pass; with `reference` one pass over it per layer.
    Raises ValueError for a model without features, a root that there is not and parts that cannot be held.
    """
    if not 0 <= root < len(graph.roots):
        raise ValueError(f"root {root} does not exist; the graph explains {len(graph.roots)}, numbered from 0")
    hold = held_parts(graph, freeze, None)
    if len(hold.mlps) or hold.errors:
        raise ValueError(f"freeze is {list(freeze)}; features can be taken out of MLPs that are not held only")
    features = graph.attribution.features
    if not features:
        raise ValueError("no feature is active on this prompt, so there is none to take out")
    kept = _kept(graph) if keep is None else list(dict.fromkeys(referred(graph, keep)))
    ordered = sorted(features, key=lambda node: -float(graph.weighted.influence[graph.column_of(node)]))
    sizes = _sizes(len(features))
    runs = [Left([], others=True), Left([]), Left(kept), Left(kept, others=True)]
    runs += [Left(drawn) for drawn in _drawn(features, len(kept), seed)]
    runs += [Left(ordered[:n]) for n in sizes]
    own_neurons = all(basis.name == "neurons" for basis in graph.attribution.bases)
    bare = [Left([], True, False), Left([], False, False), Left(kept, False, False)]
    values = Ablations(graph, hold, _means(graph, reference)).values([*runs, *([] if own_neurons else bare)], root)
    at_random, by_size = values[4 : 4 + N_DRAWS], values[4 + N_DRAWS : len(runs)]
    everything, none, left, others = values[:4].tolist()
    without = None if own_neurons else _three(values[len(runs) :])
    return Faithfulness(
        root=str(graph.roots[root]),
        n_kept=len(kept),
        n_active=len(features),
        all=everything,
        none=none,
        kept=left,
        others=others,
        random=at_random,
        without_errors=without,
        sizes=sizes,
        by_size=by_size,
        ablated="at zero" if reference is None else "at their means",
    )


def _three(values: Tensor) -> tuple[float, float, float]:
    first, second, third = values.tolist()
    return first, second, third


def _kept(graph) -> list[Node]:
    sources = graph.weighted.sources
    return [sources[i] for i in graph.kept_sources if sources[i].kind == "feature"]


def _means(graph, reference: Prompts | Sequence[str] | None) -> list[Tensor] | None:
    if reference is None:
        return None
    if not isinstance(reference, Prompts):
        reference = Prompts.from_text(graph.attribution.frozen.model, list(reference))
    return mean_activations(graph, reference.to(graph.attribution.frozen.final.device))


def _drawn(features: Sequence[Node], n: int, seed: int) -> list[list[Node]]:
    """Random sets of `n` features."""
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(features), generator=generator)[:n].tolist() for _ in range(N_DRAWS))
    return [[features[i] for i in order] for order in orders]


def _sizes(n: int) -> list[int]:
    """Numbers of features, each about twice the one before, up to all of them."""
    return [*(2**i for i in range(n.bit_length()) if 2**i < n), n]
