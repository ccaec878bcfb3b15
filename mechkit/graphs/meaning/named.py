"""What of a graph is in words: notes and labels of its nodes, and supernodes, automatic until they are edited.

graph.label("3_1709_5", "France")
graph.group("capitals", ["2_1367_5", "3_782_5"])
graph.supergraph()                                   # edges between supernodes
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mechkit.graphs.nodes import Node

if TYPE_CHECKING:
    from mechkit.graphs.meaning.notes import Notes
    from mechkit.graphs.meaning.supergraph import Supergraph


class Named:
    """The part of an `AttributionGraph` that names its nodes and groups them."""

    attribution: Any
    labels: dict[str, str]
    meta: Any
    meanings: dict
    indexed: dict[int, Any]
    edited: dict[str, list[Node]] | None

    @cached_property
    def notes(self) -> "dict[str, Notes]":
        """What is known of each kept feature beside its class, by node id: promoted tokens; examples, labels and
        density where an index was given. Computed when first asked for. Cost: 2 d vocab FLOPs a feature.
        """
        from mechkit.graphs.meaning.notes import notes_of
        from mechkit.graphs.meaning.supernodes import kept_features

        return notes_of(self, kept_features(self))

    def explain(self, index: Any = None) -> None:
        """Take examples, labels and densities of features from feature indexes: one (of one dictionary or of several
        that were scanned together), a sequence of them, or a mapping from layers or dictionaries' names. Without one,
        for a prompt such as "35+59=": the features' activity over all operands (`plots`), and classes (`meanings`).

        Cost: one read of every weight of the model; without an index, a short prompt for every pair of operands.
        Raises ValueError, with which and how, for an index of another model or of features that this graph's
        dictionaries have not; without one, for a prompt without two operands.
        """
        from mechkit.graphs.meaning.indexed import indexed_layers
        from mechkit.graphs.meaning.meanings import add_operand_meanings
        from mechkit.graphs.meaning.supernodes import kept_features

        if index is not None:
            self.indexed = indexed_layers(self.attribution, index, kept_features(self))
            vars(self).pop("notes", None)
        elif add_operand_meanings(self, self.meta["prompt"]) is None:  # pyright: ignore[reportArgumentType]
            raise ValueError(
                f"{self.meta['prompt']!r} has no two operands that its model reads as a token each, or no feature is "
                "active on it; give a feature index"
            )

    def index_label(self, node: Node) -> str | None:
        """What somebody called a feature in its index; None where only programs did, or nobody."""
        from mechkit.graphs.meaning.indexed import AUTOMATIC

        if node.layer not in self.indexed or node.id not in self.notes:
            return None
        return next((text for text, source in self.notes[node.id].labels if not source.endswith(AUTOMATIC)), None)

    def label(self, node: "Node | str", text: str) -> None:
        """Call a node (itself, its id or its site) `text`; an empty text takes the label away.

        Raises ValueError for a node that is not in the graph or was pruned.
        """
        from mechkit.graphs.meaning.choosing import chosen_nodes

        (found,) = chosen_nodes(self, [node])
        self.labels.pop(found.id, None)
        self.labels |= {found.id: text.strip()} if text.strip() else {}

    @property
    def supernodes(self) -> dict[str, list[Node]]:
        """Kept nodes by supernode: automatic until `group`, `ungroup` or `regroup` is called. Features that are in
        none stand for themselves. See `mechkit.graphs.meaning.supernodes` for how they are made, and what that costs.
        """
        from mechkit.graphs.meaning.supernodes import automatic

        if self.edited is not None:
            return self.edited
        known = (id(self.meanings), len(self.meanings), tuple(self.labels.items()), id(self.indexed))
        kept = vars(self).get("_automatic")
        if kept is None or kept[0] != known:
            kept = vars(self)["_automatic"] = (known, automatic(self))
        return kept[1]

    def group(self, name: str, nodes: "Sequence[Node | str] | Node | str") -> None:
        """Make the supernode `name` of these nodes (themselves, their ids or sites); each leaves the one it was in.

        Raises ValueError for no name or nodes, nodes that are not in the graph or were pruned, and kinds mixed.
        """
        from mechkit.graphs.meaning.choosing import group_of

        members = group_of(self, name, nodes)
        inside = {node.id for node in members}
        left = {key: [node for node in own if node.id not in inside] for key, own in self.supernodes.items()}
        self.edited = {key: own for key, own in left.items() if own and key != name} | {name: members}

    def ungroup(self, name: str) -> None:
        """Take a supernode apart. Raises ValueError for one that is not there."""
        if name not in self.supernodes:
            raise ValueError(f"no supernode {name!r}; there are {', '.join(map(repr, self.supernodes)) or 'none'}")
        self.edited = {key: own for key, own in self.supernodes.items() if key != name}

    def regroup(self, by: str = "meaning", threshold: float | None = None) -> None:
        """Make all supernodes anew, by what features mean or by their edges ("edges"); edits are lost, labels count.

        `threshold` is how alike any two features of a supernode are at least, from 0 to 1 (cosines): unless given 0.8
        by edges, and by meaning 0.4 or what chance would give at the model's width, if that is more. Raises ValueError
        for anything else.
        """
        from mechkit.graphs.meaning.supernodes import regrouped

        self.edited = regrouped(self, by, threshold)

    def supergraph(self, unit: str = "logit") -> "Supergraph":
        """The edges between supernodes, single features, tokens and the roots, summed; see `graphs.meaning.supergraph`.

        `unit` is "logit", the part of the first root's change that each edge carries, or "pre-activation", sums of the
        matrix. Raises ValueError for another unit.
        """
        from mechkit.graphs.meaning.supergraph import supergraph

        return supergraph(self, unit)
