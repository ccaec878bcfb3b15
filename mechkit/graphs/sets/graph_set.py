"""`GraphSet`: slim graphs of many prompts, aligned by feature, and what they have in common.

graphs = trace_many(model, texts, by=labels)
graphs.features().head()                  # every feature: in how many prompts, how influential
graphs.edges("carry").head()              # edges of one class, averaged
graphs.compare("carry", "no carry")       # what differs, with a p that holds for all rows together
graphs[17].edges                          # one graph
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from mechkit.graphs.sets.aligned import ALIGNS, Aligned
from mechkit.graphs.sets.averages import Table
from mechkit.graphs.sets.set_files import read_meta, read_parts, save_parts
from mechkit.graphs.sets.slim import KINDS, Part

_SHOWN = ("layer", "pos", "index", "value", "influence", "kept")
"""Columns of a graph's nodes."""


@dataclass(frozen=True, eq=False)
class SlimGraph:
    """One graph of a set."""

    prompt: Mapping[str, Any]
    """Text, label, answer, probability, scores, number of tokens."""
    nodes: pd.DataFrame
    """Active features and what else carries influence, with its value, influence and whether pruning keeps it."""
    edges: pd.DataFrame
    """Kept edges, largest influence first: sender, receiver, signed weight, influence."""


@dataclass(frozen=True, eq=False)
class GraphSet:
    """The graphs of many prompts. Two nodes are the same where kind, layer, feature number and aligned position are."""

    part: Part
    """The tables of prompts, nodes and edges."""
    align: str
    """How positions of different prompts are matched."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What made them."""

    @classmethod
    def of(cls, parts: Sequence[Part], meta: Mapping[str, Any]) -> "GraphSet":
        """Parts as one set, aligned from the start where all prompts are as long, else from the end."""
        part = Part.joined(parts)
        return cls(part, "start" if len(set(part.prompts["n_tokens"])) == 1 else "end", meta)

    @classmethod
    def load(cls, folder: str | PathLike) -> "GraphSet":
        """What `save` wrote, or `trace_many` with `out`. Raises ValueError where it is missing or damaged."""
        return cls.of(read_parts(folder), read_meta(folder).get("meta", {}))

    def save(self, folder: str | PathLike) -> Path:
        """Write the graphs as Parquet tables into a folder. Returns it."""
        return save_parts(folder, self.part, dict(self.meta))

    def __len__(self) -> int:
        return len(self.part.prompts)

    def __iter__(self) -> Iterator[SlimGraph]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, number: int) -> SlimGraph:
        """The graph of one prompt, by number; from the end where it is negative."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no prompt {number}; there are {len(self)}")
        number %= len(self)
        nodes, edges, names = self.part.nodes, self.part.edges, self._aligned.names
        first, last = np.searchsorted(nodes["prompt"], [number, number + 1])
        start, stop = np.searchsorted(edges["prompt"], [number, number + 1])
        texts, own = names[self._aligned.row_of_node[first:last]], edges.iloc[start:stop]
        own_rows = nodes.iloc[first:last]
        index = pd.Series(own_rows["index"], dtype="Int64").where(own_rows["kind"] == KINDS.index("feature"))
        mine = own_rows.assign(node=texts, index=index)[["node", *_SHOWN]]
        ends = own.assign(sender=texts[own["source"]], receiver=texts[own["target"]])
        return SlimGraph(
            self.part.prompts.iloc[number].to_dict(),
            mine.reset_index(drop=True),
            ends[["sender", "receiver", "weight", "influence"]].reset_index(drop=True),
        )

    def aligned(self, align: str) -> "GraphSet":
        """The same graphs with positions from the `start`, from the `end`, or of `any` place."""
        if align not in ALIGNS:
            raise ValueError(
                f"align is {align!r}; positions are matched from the 'start', the 'end', or at 'any' place"
            )
        return replace(self, align=align)

    def by(self, labels: Sequence | Callable[[str], Any]) -> "GraphSet":
        """The same graphs with other classes: one label a prompt, or a function of the prompt's text."""
        prompts = self.part.prompts
        found = list(map(labels, prompts["text"])) if callable(labels) else list(labels)
        if len(found) != len(self):
            raise ValueError(f"by has {len(found)} labels for {len(self)} prompts; give one each")
        return replace(self, part=replace(self.part, prompts=prompts.assign(label=list(map(str, found)))))

    def frame(self) -> pd.DataFrame:
        """A row a prompt: text, label, tokens, answer, scores, and how many features and edges its graph has."""
        nodes, n = self.part.nodes, len(self)
        features = nodes[nodes["kind"] == KINDS.index("feature")]
        counts = {
            "n_features": np.bincount(features["prompt"], minlength=n),
            "n_kept": np.bincount(features["prompt"], features["kept"], n).astype(int),
            "n_edges": np.bincount(self.part.edges["prompt"], minlength=n),
        }
        return self.part.prompts.assign(**counts)

    @property
    def labels(self) -> dict[str, int]:
        """How many prompts each class has, by its label."""
        return self.part.prompts["label"].value_counts(sort=False).to_dict()

    def features(self, label: Any = None) -> pd.DataFrame:
        """Every feature that is active in the prompts of a class (all, unless named), most influential first.

        `n` and `active` are the number and share of prompts in which it is active, `kept` the share in which pruning
        keeps it, `activation` and `influence_where` means over the prompts in which it is active, `influence` its mean
        over all prompts of the class, 0 where it is not active; `_se` are standard errors.
        Unit of influence: share of the answer, from 0 to 1.
        """
        return self._means(self._aligned.features, label)

    def nodes(self, label: Any = None) -> pd.DataFrame:
        """As `features`, of all nodes: errors, tokens and positions by place, and what is explained."""
        return self._means(self._aligned.nodes, label)

    def common(self, share: float = 0.8, label: Any = None) -> pd.DataFrame:
        """The features that pruning keeps in at least this share of the prompts of a class (all, unless named)."""
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it is a share of prompts, from 0 to 1")
        found = self.features(label)
        return found.loc[found["kept"] >= share].reset_index(drop=True)

    def edges(self, label: Any = None) -> pd.DataFrame:
        """Every edge that pruning keeps in the prompts of a class (all, unless named), most influential first.

        `n` and `share` are the number and share of prompts that have it; `weight` (signed) and `influence` are means
        over these prompts, `weight_all` and `influence_all` over all prompts of the class, 0 where it is not kept;
        `_se` are standard errors, missing where there is but one prompt.
        Unit: pre-activation; share of the answer.
        """
        table, chosen = self._aligned.edges, self._chosen(label)
        n, count, found = int(chosen.sum()), table.count(chosen), {}
        for name in ("weight", "influence"):
            found[name], found[f"{name}_se"] = table.mean(name, chosen, count)
            found[f"{name}_all"], found[f"{name}_all_se"] = table.mean(name, chosen, n)
        rows = table.rows.assign(n=count, share=count / n, **found).loc[count > 0]
        return rows.sort_values("influence_all", ascending=False, kind="stable").reset_index(drop=True)

    def compare(self, a: Any, b: Any, of: str = "features", *, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
        """How two classes differ, `a` less `b`: in the mean influence of each feature, or the mean weight of each edge.

        Means are over all prompts of a class, 0 where a feature is not active or an edge not kept; weights are signed.
        `share_a` and `share_b` are the shares of prompts that have it, `z` the difference over its standard error, `p`
        the share of `permutations` of the labels in which the largest |z| of any row is as large: it holds for all rows
        together, and is missing where a class has one prompt.
        Largest |z| first. Raises ValueError for a label that no prompt has, and for the same label twice.
        """
        if of not in ("features", "edges"):
            raise ValueError(f"of is {of!r}; compare 'features' or 'edges'")
        if str(a) == str(b):
            raise ValueError(f"both classes are {str(a)!r}; name two of {', '.join(map(repr, self.labels))}")
        classes = {"a": self._chosen(a), "b": self._chosen(b)}
        name, table = ("influence", self._aligned.features) if of == "features" else ("weight", self._aligned.edges)
        found, errors = {}, []
        for side, chosen in classes.items():
            n = int(chosen.sum())
            found[f"share_{side}"] = table.count(chosen) / n
            found[f"{name}_{side}"], error = table.mean(name, chosen, n)
            errors.append(error)
        found |= {"difference": found[f"{name}_a"] - found[f"{name}_b"], "se": np.hypot(*errors)}
        found["z"], found["p"] = table.compare(name, classes["a"], classes["b"], permutations, seed)
        rows = table.rows.assign(**found).loc[(found["share_a"] + found["share_b"]) > 0]
        return rows.iloc[np.argsort(-np.abs(np.asarray(rows["z"])), kind="stable")].reset_index(drop=True)

    def __repr__(self) -> str:
        labels = {label: n for label, n in self.labels.items() if label}
        classes = f", classes {labels}" if labels else ""
        kept, active, edges = (np.mean(self.frame()[name]) for name in ("n_kept", "n_features", "n_edges"))
        where = "at any position" if self.align == "any" else f"positions from the {self.align}"
        return (
            f"GraphSet of {len(self)} prompts{classes}\n"
            f"{kept:.1f} of {active:.1f} features and {edges:.1f} edges kept a prompt; {where}"
        )

    def _means(self, table: Table, label: Any) -> pd.DataFrame:
        chosen = self._chosen(label)
        n, count = int(chosen.sum()), table.count(chosen)
        mean, error = table.mean("influence", chosen, n)
        where, error_where = table.mean("influence", chosen, count)
        found = table.rows.assign(
            n=count,
            active=count / n,
            kept=table.mean("kept", chosen, n)[0],
            activation=table.mean("value", chosen, count)[0],
            influence=mean,
            influence_se=error,
            influence_where=where,
            influence_where_se=error_where,
        )
        return found.loc[count > 0].sort_values("influence", ascending=False, kind="stable").reset_index(drop=True)

    @cached_property
    def _aligned(self) -> Aligned:
        return Aligned(self.part, self.align, self.meta)

    def _chosen(self, label: Any) -> Bool[np.ndarray, "prompt"]:
        labels = self.part.prompts["label"].to_numpy()
        chosen = np.ones(len(self), bool) if label is None else labels == str(label)
        if not chosen.any():
            known = ", ".join(repr(one) for one in self.labels if one) or "none; give them with by="
            raise ValueError(f"no prompt has the label {str(label)!r}; the labels are {known}")
        return chosen
