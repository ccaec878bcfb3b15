"""A graph as its files and pages show it: what pruning kept, and all that is known of it, without the model.

    graph = mk.trace(model, "35+59=")
    graph.save("graph.json")
    again = AttributionGraph.load("graph.json")          # or a file of circuit-tracer or Neuronpedia
    again.label("1_78_3", "sum is 94")
    again.group("sums", ["1_78_3", "1_184_3"])
    again.to_html("graph.html"); again.frame()

Everything that is asked of it comes from one JSON document; edits of labels, supernodes and pins are laid over it when
it is written, so that what is loaded and saved again is the same file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mechkit.core.result import Result
from mechkit.core.site import Edge, Site
from mechkit.graphs.files.foreign import completed
from mechkit.graphs.files.schema import check_document, read_document
from mechkit.graphs.nodes import Node


@dataclass(frozen=True)
class SavedNode(Node):
    """A node of a file, under the id that it has there."""

    known_as: str = ""
    """Its id."""

    @property
    def id(self) -> str:
        """Unique in its graph: the file's."""
        return self.known_as


class SavedGraph:
    """The kept part of an attribution graph, from its document. What needs the model is not here."""

    nodes: list[SavedNode]
    """Nodes kept: sources, then what the graph explains."""
    labels: dict[str, str]
    """Every node in words, by id."""
    supernodes: dict[str, list[SavedNode]]
    """Nodes that belong together, by name."""
    pinned: list[str]
    """Ids of the nodes of the page's subgraph."""

    def __init__(self, document: Mapping) -> None:
        """Raises ValueError where `document` is no graph that can be shown (`schema.check_document`)."""
        check_document(document)
        self._document = completed(dict(document))
        self._about: dict[str, dict] = self._document["mechkit"]["nodes"]
        self.nodes = [_node(node, self._about[node["node_id"]]) for node in self._document["nodes"]]
        self._by_id = {node.id: node for node in self.nodes}
        self.labels = {node["node_id"]: node["clerp"] for node in self._document["nodes"]}
        view = self._document.get("qParams", {})
        groups = view.get("supernodes") or []
        self.supernodes = {name: [self._by_id[member] for member in members] for name, *members in groups}
        self.pinned = list(view.get("pinnedIds") or [])

    @classmethod
    def load(cls, path: str | PathLike) -> "SavedGraph":
        """The graph of a JSON file: ours, circuit-tracer's or Neuronpedia's.

        Raises ValueError, naming the file, where it is damaged, does not follow the schema, repeats an id, or has an
        edge, pin or supernode of a node that is not there.
        """
        return cls(read_document(path))

    # --- what it holds

    @property
    def meta(self) -> dict[str, Any]:
        """How it was made."""
        metadata = self._document["metadata"]
        known = {"model": metadata["scan"], "prompt": metadata["prompt"], "tokens": metadata["prompt_tokens"]}
        return {**known, **self._document["mechkit"].get("made", {})}

    @property
    def roots(self) -> list[SavedNode]:
        """What the graph explains, in the file's order."""
        return [node for node in self.nodes if node.kind in ("logit", "target")]

    @property
    def logits(self) -> list[SavedNode]:
        """The logits, likeliest first where the file says so."""
        found = self.probabilities
        return sorted((n for n in self.nodes if n.kind == "logit"), key=lambda n: -found.get(n.id, 0.0))

    @cached_property
    def probabilities(self) -> dict[str, float]:
        """The model's probability of each logit, by id, where the file holds it."""
        all_of_them = {node["node_id"]: node.get("token_prob") for node in self._document["nodes"]}
        kinds = {node.id: node.kind for node in self.nodes}
        return {name: float(p) for name, p in all_of_them.items() if kinds[name] == "logit" and p is not None}

    @property
    def scores(self) -> dict[str, float | None]:
        """Replacement, completeness and intervention agreement, as far as the file holds them."""
        return dict(self._document["mechkit"].get("scores", {}))

    @property
    def edges(self) -> Result:
        """The kept edges, rows sender -> receiver, scores their signed weights."""
        links = self._document["links"]
        edges = [Edge(self._by_id[link["source"]].site, self._by_id[link["target"]].site) for link in links]
        weights = torch.tensor([[float(link["weight"])] for link in links]).reshape(len(links), 1)
        return Result.of_edges(edges, weights, "pre-activation", self.meta)

    def pathways(self, n: int = 8) -> list:
        """The `n` largest pathways that were saved, each a `Pathway`; none from another tool's file."""
        from mechkit.graphs.meaning.pathways import Pathway

        found = self._document["mechkit"].get("pathways", [])[:n]
        return [
            Pathway(
                item["text"],
                float(item["share"]),
                tuple(self._by_id[i] for i in item["nodes"]),
                tuple(item.get("supernodes", ())),
            )
            for item in found
        ]

    def frame(self) -> pd.DataFrame:
        """One row per node: id, kind, layer, position, token, label, supernode, class, activation, share of the answer,
        and predicted and measured effects of suppressing it (logits), where they are known."""
        groups = {node.id: name for name, nodes in self.supernodes.items() for node in nodes}
        rows = [self._row(node, groups.get(node.id)) for node in self.nodes]
        return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["id"])

    def _row(self, node: SavedNode, group: str | None) -> dict:
        about, tokens = self._about[node.id], self.meta["tokens"]
        check = about.get("check") or {}
        return {
            "id": node.id,
            "kind": node.kind,
            "layer": node.layer,
            "pos": node.pos,
            "token": None if node.pos is None else tokens[node.pos],
            "label": self.labels[node.id],
            "supernode": group,
            "class": about.get("class"),
            "activation": node.value if node.kind == "feature" else None,
            "influence": about.get("influence"),
            "predicted": check.get("predicted"),
            "measured": check.get("measured"),
        }

    # --- edits

    def label(self, node: Node | str, text: str) -> None:
        """Name a node in words. Raises ValueError for a node that is not here."""
        self.labels[self._known(node).id] = str(text)

    def group(self, name: str, nodes: Sequence[Node | str]) -> None:
        """Put nodes into the supernode `name`; each leaves the one it was in.

        Raises ValueError for no nodes, an empty name, or a node that is not here.
        """
        members = list(dict.fromkeys(self._known(node) for node in nodes))
        if not members or not name.strip():
            raise ValueError(f"supernode {name!r} with {len(members)} nodes; it needs a name and at least one node")
        inside = {node.id for node in members}
        left = {key: [n for n in group if n.id not in inside] for key, group in self.supernodes.items() if key != name}
        self.supernodes = {key: group for key, group in left.items() if group} | {name: members}

    def ungroup(self, name: str) -> None:
        """Take a supernode apart. Raises ValueError for one that is not here."""
        if name not in self.supernodes:
            raise ValueError(f"no supernode {name!r}; there are {', '.join(map(repr, self.supernodes)) or 'none'}")
        del self.supernodes[name]

    def pin(self, nodes: Sequence[Node | str]) -> None:
        """Show these nodes, and no others, in the page's subgraph. Raises ValueError for a node that is not here."""
        self.pinned = list(dict.fromkeys(self._known(node).id for node in nodes))

    def _known(self, node: Node | str) -> SavedNode:
        name = node if isinstance(node, str) else node.id
        if name not in self._by_id:
            raise ValueError(f"no node '{name}' among the {len(self.nodes)} that this graph keeps; see graph.frame()")
        return self._by_id[name]

    # --- what it writes

    @property
    def document(self) -> dict:
        """The file's JSON with the edits laid over it."""
        view = dict(self._document.get("qParams", {}))
        view["pinnedIds"] = list(self.pinned)
        view["supernodes"] = [[name, *(node.id for node in nodes)] for name, nodes in self.supernodes.items()]
        nodes = [{**node, "clerp": self.labels[node["node_id"]]} for node in self._document["nodes"]]
        return {**self._document, "qParams": view, "nodes": nodes}

    def save(self, path: str | PathLike) -> Path:
        """Write the graph as JSON in Neuronpedia's graph schema. Returns the path."""
        from mechkit.core.files import write_atomic

        return write_atomic(path, json.dumps(self.document, ensure_ascii=False, allow_nan=False))

    def to_html(self, path: str | PathLike) -> Path:
        """Write one self-contained page that works with no network. Returns the path."""
        from mechkit.core.files import write_atomic
        from mechkit.viz.graph_page import render_graph_page

        return write_atomic(path, render_graph_page(self.document))

    def to_png(self, path: str | PathLike) -> Path:
        """Write a picture of the strongest nodes by position and layer, with their edges. Returns the path."""
        from mechkit.core.files import write_atomic
        from mechkit.viz.graph_png import graph_png

        return write_atomic(path, graph_png(self.document))

    def view(self, height: int = 860) -> Any:
        """The page as an object that a notebook shows in a frame of `height` pixels, with no network."""
        from mechkit.viz.frame import PageView
        from mechkit.viz.graph_page import render_graph_page

        return PageView(render_graph_page(self.document), height)

    def __getattr__(self, name: str) -> Any:
        """Raises AttributeError; for what an `AttributionGraph` has, with what is needed to have it."""
        from mechkit.graphs.graph import AttributionGraph

        if not name.startswith("_") and (
            hasattr(AttributionGraph, name) or name in AttributionGraph.__dataclass_fields__
        ):
            raise AttributeError(
                f"'{name}' needs the model, and a graph from a file holds only what its page shows; load the model "
                f"and trace the prompt again: mechkit.trace(model, {self._document['metadata']['prompt']!r})"
            )
        raise AttributeError(f"a saved graph has no '{name}'")

    def __repr__(self) -> str:
        answers = ", ".join(repr(node.name) for node in self.logits[:3]) or "other targets"
        scores = ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items() if value is not None)
        return (
            f"SavedGraph of {self.meta['prompt']!r}: {answers}\n"
            f"{len(self.nodes)} nodes, {len(self._document['links'])} edges{'; ' if scores else ''}{scores}"
        )


def _node(node: dict, about: dict) -> SavedNode:
    value = node.get("activation")
    return SavedNode(
        kind=about["kind"],
        layer=about["layer"],
        pos=about.get("pos"),
        index=about.get("index"),
        name=str(about.get("name") or node["clerp"]),
        value=float(about.get("value", 1.0) if value is None else value),
        preactivation=about.get("preactivation"),
        root=about.get("root"),
        place=Site.parse(about["site"]) if about["kind"] == "target" else None,
        known_as=node["node_id"],
    )
