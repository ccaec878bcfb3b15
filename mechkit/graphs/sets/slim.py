"""A graph without its engine: the nodes that act and the edges that pruning keeps, as columns of numbers.

`Slim` is one graph, `Part` many of them as three tables; a part is also what is written to disk.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechkit.core.files import write_atomic
from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.nodes import Node

KINDS = ("feature", "error", "token", "position", "bos", "logit", "target")
"""Kinds of nodes that slim graphs have; the number of a kind stands for it in tables. Biases are left out."""

NONE = -1
"""Stands for no index or no root."""

NODE_TYPES = {
    "prompt": np.int32, "kind": np.int8, "layer": np.int16, "index": np.int32, "pos": np.int32, "root": np.int16,
    "value": np.float32, "influence": np.float32, "kept": np.bool_,
}  # fmt: skip
"""Columns of the table of nodes."""

EDGE_TYPES = {
    "prompt": np.int32, "source": np.int32, "target": np.int32, "weight": np.float32, "influence": np.float32,
}  # fmt: skip
"""Columns of the table of edges; source and target are numbers of the prompt's own nodes."""


@dataclass(frozen=True, eq=False)
class Slim:
    """The nodes and kept edges of one graph."""

    number: int
    """The number of its prompt."""
    prompt: dict[str, Any]
    """Its row of the table of prompts."""
    nodes: dict[str, np.ndarray]
    """Its columns of the table of nodes."""
    edges: dict[str, np.ndarray]
    """Its columns of the table of edges."""

    @classmethod
    def of(cls, graph: AttributionGraph, number: int, text: str, label: str) -> "Slim":
        """What is kept of a graph."""
        influence = graph.weighted.influence.cpu().numpy()
        reached = (influence > 0).tolist()
        columns = [i for i, node in enumerate(graph.sources) if node.kind == "feature" or reached[i]]
        nodes = [*(graph.sources[i] for i in columns), *graph.roots]
        n_features = graph.weighted.n_features
        values = {
            "influence": np.concatenate([influence[columns], graph.weighted.weights[n_features:].cpu().numpy()]),
            "kept": np.concatenate([graph.kept.nodes.cpu().numpy()[columns], np.ones(len(graph.roots), bool)]),
        }
        return cls(number, _prompt_row(graph, text, label), _node_columns(nodes, values), _edges(graph, columns))


def _prompt_row(graph: AttributionGraph, text: str, label: str) -> dict[str, Any]:
    answer, scores = graph.roots[0], graph.scores
    return {
        "text": text,
        "label": label,
        "n_tokens": graph.attribution.frozen.n_positions,
        "answer": answer.name,
        "probability": graph.probabilities.get(answer.id, float("nan")),
        "replacement": _number(scores["replacement"]),
        "completeness": _number(scores["completeness"]),
        "coverage": graph.coverage,
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _node_columns(nodes: Sequence[Node], values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    listed = {
        "kind": [KINDS.index(node.kind) for node in nodes],
        "layer": [node.layer for node in nodes],
        "index": [NONE if node.index is None else node.index for node in nodes],
        "pos": [node.pos or 0 for node in nodes],
        "root": [NONE if node.root is None else node.root for node in nodes],
        "value": [node.value for node in nodes],
    }
    return {name: np.asarray(column, NODE_TYPES[name]) for name, column in (listed | values).items()}


def _edges(graph: AttributionGraph, columns: Sequence[int]) -> dict[str, np.ndarray]:
    """Kept edges between the nodes of these columns and the roots, largest influence first."""
    places, weights, through = (values.cpu().numpy() for values in graph.kept_edges)
    local = np.full(len(graph.sources), NONE, EDGE_TYPES["source"])
    local[list(columns)] = np.arange(len(columns))
    own, n_features = graph.weighted.own.cpu().numpy(), graph.weighted.n_features
    targets = places[:, 0]
    owners = np.where(own[targets] >= 0, local[own[targets]], len(columns) + targets - n_features)
    found = {"source": local[places[:, 1]], "target": owners, "weight": weights, "influence": through}
    return {name: column.astype(EDGE_TYPES[name]) for name, column in found.items()}


@dataclass(frozen=True, eq=False)
class Part:
    """The slim graphs of some prompts as tables."""

    prompts: pd.DataFrame
    """A row a prompt, indexed by its number."""
    nodes: pd.DataFrame
    """A row a node (`NODE_TYPES`), those of a prompt together."""
    edges: pd.DataFrame
    """A row an edge (`EDGE_TYPES`), those of a prompt together, largest influence first."""

    @property
    def progress_size(self) -> int:
        """How many prompts it holds."""
        return len(self.prompts)

    @classmethod
    def of(cls, slims: Sequence[Slim]) -> "Part":
        """The graphs as tables, by number."""
        slims = sorted(slims, key=lambda one: one.number)
        prompts = pd.DataFrame([one.prompt for one in slims], index=pd.Index([one.number for one in slims]))
        nodes = _table([(one.number, one.nodes) for one in slims], NODE_TYPES)
        return cls(prompts, nodes, _table([(one.number, one.edges) for one in slims], EDGE_TYPES))

    @classmethod
    def joined(cls, parts: Sequence["Part"]) -> "Part":
        """Several parts as one, in their order."""
        return cls(
            pd.concat([part.prompts for part in parts]),
            pd.concat([part.nodes for part in parts], ignore_index=True),
            pd.concat([part.edges for part in parts], ignore_index=True),
        )

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write the tables as Parquet; that of prompts last, so that a part that has it is whole."""
        tables = {"nodes": self.nodes, "edges": self.edges, "prompts": self.prompts}
        written = []
        for kind, table in tables.items():
            data = io.BytesIO()
            table.to_parquet(data, index=kind == "prompts")
            written.append(write_atomic(folder / f"{name}.{kind}.parquet", data.getvalue()))
        return written

    @classmethod
    def read(cls, folder: Path, name: str) -> "Part":
        """What `write` wrote. Raises ValueError where a file is missing or damaged."""
        tables = []
        for kind in ("prompts", "nodes", "edges"):
            path = folder / f"{name}.{kind}.parquet"
            try:
                tables.append(pd.read_parquet(path))
            except (OSError, ValueError) as error:
                raise ValueError(f"'{path}' is missing or damaged ({error}); trace those prompts again") from error
        return cls(*tables)


def _table(columns: Sequence[tuple[int, dict[str, np.ndarray]]], types: dict[str, Any]) -> pd.DataFrame:
    """The columns of several prompts below one another, with the number of the prompt."""
    names = [name for name in types if name != "prompt"]
    sizes = [len(one[names[0]]) for _, one in columns]
    prompt = np.repeat(np.asarray([number for number, _ in columns], types["prompt"]), sizes)
    return pd.DataFrame(
        {"prompt": prompt} | {name: np.concatenate([one[name] for _, one in columns]) for name in names}
    )
