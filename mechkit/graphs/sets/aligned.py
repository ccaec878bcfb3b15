"""Which nodes of different prompts are the same: by kind, layer, feature number and aligned position."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechkit.core.site import Site
from mechkit.graphs.sets.averages import Table
from mechkit.graphs.sets.slim import KINDS, NONE, Part

ALIGNS = ("start", "end", "any")
"""Ways to match positions: counted from the start, from the end (-1 is the last), or left out."""

_FEATURE, _BOS, _LOGIT, _TARGET = (KINDS.index(kind) for kind in ("feature", "bos", "logit", "target"))

_SIZES = {"kind": 3, "layer": 10, "pos": 22, "index": 28}
"""Bits of each part of a node's code."""

_OFFSETS = {"kind": 0, "layer": 1, "pos": 1 << 21, "index": 1}
"""What makes each part at least 0."""


@dataclass(frozen=True, eq=False)
class Aligned:
    """The nodes and edges of many graphs, numbered alike."""

    part: Part
    """The graphs."""
    align: str
    """How positions are matched."""
    meta: Mapping[str, Any]
    """What made them."""

    @cached_property
    def _keys(self) -> pd.DataFrame:
        """What each node is known by: a feature's number, the rank of a logit, the number of another target; where it
        is, unless its kind is in one place only."""
        nodes = self.part.nodes
        kind, pos = nodes["kind"].to_numpy(), nodes["pos"].to_numpy().astype(np.int64)
        root = (kind == _LOGIT) | (kind == _TARGET)
        index = np.where(kind == _FEATURE, nodes["index"], np.where(root, nodes["root"], NONE))
        if self.align == "end":
            pos = pos - self.part.prompts["n_tokens"].to_numpy()[nodes["prompt"]]
        one_place = root | (kind == _BOS) | (self.align == "any")
        return pd.DataFrame({"kind": kind, "layer": nodes["layer"], "pos": np.where(one_place, 0, pos), "index": index})

    @cached_property
    def _numbered(self) -> tuple[pd.DataFrame, Int[np.ndarray, "node"]]:
        code = np.zeros(len(self._keys), np.int64)
        for name, bits in _SIZES.items():
            code = (code << bits) | (self._keys[name].to_numpy().astype(np.int64) + _OFFSETS[name])
        _, first, row = np.unique(code, return_index=True, return_inverse=True)
        return self._keys.iloc[first].reset_index(drop=True), row

    @property
    def row_of_node(self) -> Int[np.ndarray, "node"]:
        """The row of each node of the table of nodes."""
        return self._numbered[1]

    @cached_property
    def names(self) -> np.ndarray:
        """What each row is, in words; features as sites."""
        return np.array([self._name(*key) for key in self._numbered[0].itertuples(index=False)], object)

    @cached_property
    def nodes(self) -> Table:
        """Value, influence and whether pruning keeps it, by node."""
        keys, nodes = self._numbered[0], self.part.nodes
        kinds = np.array(KINDS, object)[keys["kind"]]
        rows = pd.DataFrame({"node": self.names, "kind": kinds, "layer": keys["layer"], "pos": self._places(keys)})
        rows["index"] = pd.Series(keys["index"], dtype="Int64").where(keys["kind"] == _FEATURE)
        values = {name: nodes[name].to_numpy() for name in ("value", "influence", "kept")}
        table = Table.of(rows, nodes["prompt"].to_numpy(), self.row_of_node, values)
        return Table(rows, table.prompt, table.row, {**table.values, "kept": np.minimum(table.values["kept"], 1)})

    @cached_property
    def features(self) -> Table:
        """The same of features."""
        found = self.nodes.only((self.nodes.rows["kind"] == "feature").to_numpy())
        whole = ["index"] if self.align == "any" else ["index", "pos"]
        rows = found.rows.drop(columns="kind").astype(dict.fromkeys(whole, "int64"))
        return Table(rows, found.prompt, found.row, found.values)

    @cached_property
    def edges(self) -> Table:
        """Weight and influence, by sender and receiver."""
        edges, prompts = self.part.edges, self.part.nodes["prompt"].to_numpy()
        start = np.searchsorted(prompts, edges["prompt"])
        ends = [self.row_of_node[start + edges[end].to_numpy()].astype(np.int64) for end in ("source", "target")]
        pairs, row = np.unique(ends[0] * len(self.names) + ends[1], return_inverse=True)
        senders, receivers = (self.names[numbers] for numbers in np.divmod(pairs, max(1, len(self.names))))
        values = {name: edges[name].to_numpy() for name in ("weight", "influence")}
        return Table.of(
            pd.DataFrame({"sender": senders, "receiver": receivers}), edges["prompt"].to_numpy(), row, values
        )

    def _places(self, keys: pd.DataFrame) -> pd.Series:
        """Positions, missing where nodes have none of their own."""
        here = (keys["kind"] != _LOGIT) & (keys["kind"] != _TARGET) & (self.align != "any")
        return pd.Series(keys["pos"], dtype="Int64").where(here)

    def _name(self, kind: int, layer: int, pos: int, index: int) -> str:
        at = None if self.align == "any" else int(pos)
        match KINDS[kind]:
            case "feature":
                basis = self.meta.get("dictionaries", {})
                return str(Site("mlp_out", int(layer), pos=at, index=int(index), basis=basis[layer] if basis else None))
            case "error" | "bos" as name:
                return str(Site("mlp_out", int(layer), pos=at, basis=name))
            case "token" | "position" as name:
                return str(Site("embed" if name == "token" else "pos_embed", pos=at))
        targets = self.meta.get("targets") or []
        if index < len(targets):
            return targets[index]
        return "answer" if index == 0 else f"logit {index + 1}"
