"""What is changed in an intervention: features and supernodes by name, and how active they are made.

A reference is a node of a graph, a node's id, the text of a feature's site, a supernode's name, or several of these.
A feature need not be active on the prompt.

    changes(graph, {"L0 sum at =": 0.0})                          # suppressed
    changes(graph, {"L0.mlp_out[addition]@3#17": 2.0}, to="value")   # made 2 in the feature's own unit
    changes(graph, {}, swap={"0_12_3": "L0.mlp_out[addition]@3#40"})
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mechkit.core.site import Site
from mechkit.graphs.nodes import Node

WAYS = ("multiple", "value", "amount")
"""Whether a number says a multiple of the activation on the prompt (0 suppresses, 1 does nothing, -1 flips), the
activation itself, or what is added to it."""

Reference = Any
"""A node, a node's id, the text of a feature's site, a supernode's name, or a sequence of these."""


@dataclass(frozen=True)
class Change:
    """A feature, or a dictionary's error at a place, made more or less active."""

    node: Node
    """The feature as the prompt has it; its value is 0 where it is not active. An error's value is 1."""
    number: float
    """How active it is made, as `to` says."""
    to: str = "value"
    """What the number is, one of `WAYS`."""

    def __post_init__(self) -> None:
        if self.to not in WAYS:
            raise ValueError(f"to is {self.to!r}; it is 'multiple', 'value' or 'amount'")
        if self.to == "multiple" and self.node.value == 0:
            raise ValueError(
                f"'{self.node}' is not active on this prompt, so it has no multiples; give a value or an amount"
            )

    @property
    def value(self) -> float:
        """How active it is made on the prompt."""
        return self.on(self.node.value)

    @property
    def by(self) -> float:
        """How much its activation on the prompt changes."""
        return self.value - self.node.value

    def on(self, active: Any) -> Any:
        """How active it is made where it has the activation `active`, a number or a tensor."""
        return {"multiple": self.number * active, "value": active * 0 + self.number, "amount": active + self.number}[
            self.to
        ]

    def __str__(self) -> str:
        return f"{self.node} {self.node.value:.3g} -> {self.value:.3g}"


def changes(
    graph, values: Mapping[Reference, float], *, to: str = "multiple", swap: Mapping[Reference, Reference] | None = None
) -> list[Change]:
    """What `values` and `swap` ask for, one entry per feature.

    A swap takes the features of each key out and makes those of its value, at the key's last position, as active as
    they are in the graph they come from, or, where they are not active there, as active as the key's strongest was.
    Raises ValueError for a reference that names nothing, a feature changed twice, a multiple of a feature that is not
    active.
    """
    found = [Change(node, float(number), to) for ref, number in values.items() for node in referred(graph, ref)]
    for off, on in (swap or {}).items():
        found += _swapped(graph, off, on)
    seen: set[str] = set()
    for change in found:
        if change.node.id in seen:
            raise ValueError(f"'{change.node}' is changed twice; name it once")
        seen.add(change.node.id)
    return found


def _swapped(graph, off: Reference, on: Reference) -> list[Change]:
    gone = referred(graph, off)
    pos, strongest = gone[-1].pos, max(gone, key=lambda node: abs(node.value)).value
    came = []
    for node in referred(graph, on, pos):
        here = feature_at(graph, node.layer, node.index or 0, pos or 0)
        came.append(Change(here, node.value or strongest))
    return [*(Change(node, 0.0) for node in gone), *came]


def referred(graph, ref: Reference, pos: int | None = None) -> list[Node]:
    """The features and errors that a reference names; a site without position is at `pos`.

    Raises ValueError, with what there is, for one that names nothing.
    """
    if isinstance(ref, Node):
        return [_changeable(ref)]
    if isinstance(ref, str):
        return _named(graph, ref, pos)
    if isinstance(ref, Site):
        return [_at_site(graph, ref, pos)]
    if isinstance(ref, Iterable):
        return [node for one in ref for node in referred(graph, one, pos)]
    raise TypeError(f"what is changed is a node, an id, a site or a supernode's name, not {type(ref).__name__}")


def _changeable(node: Node) -> Node:
    if node.kind not in ("feature", "error"):
        raise ValueError(f"'{node}' is no feature and no error; only what an MLP writes can be changed")
    return node


def _named(graph, text: str, pos: int | None) -> list[Node]:
    groups = graph.supernodes
    if text in groups:
        members = [node for node in groups[text] if node.kind in ("feature", "error")]
        return members or [_changeable(node) for node in groups[text]]
    by_id = {node.id: node for node in graph.sources}
    if text in by_id:
        return [_changeable(by_id[text])]
    site = _site(text)
    if site is not None:
        return [_at_site(graph, site, pos)]
    names = ", ".join(repr(name) for name in list(groups)[:5])
    raise ValueError(
        f"{text!r} is no supernode, no node's id and no site of a feature; supernodes are {names or 'none'}"
        f"{', ...' if len(groups) > 5 else ''}, ids look like {next(iter(by_id))!r}"
    )


def _site(text: str) -> Site | None:
    """The site that a text stands for; None where it is none, and for a word alone, a hook without a layer."""
    try:
        site = Site.parse(text)
    except ValueError:
        return None
    return None if site.layer is None else site


def _at_site(graph, site: Site, pos: int | None) -> Node:
    engine = graph.attribution
    there = {basis.layer: (basis.name, basis.d_features) for basis in engine.bases}
    name, n = there.get(site.layer, ("", 0))
    if site.name != "mlp_out" or site.index is None or site.basis != name or int(site.index) >= n:
        have = ", ".join(f"L{layer}.mlp_out[{one}] up to #{most - 1}" for layer, (one, most) in there.items())
        raise ValueError(f"'{site}' is no feature of this graph; there are {have or 'none'}")
    where = pos if site.pos is None else site.pos
    if not isinstance(where, int) or not -engine.frozen.n_positions <= where < engine.frozen.n_positions:
        raise ValueError(f"'{site}' needs a position from 0 to {engine.frozen.n_positions - 1}, such as '{name}@-1'")
    return feature_at(graph, int(site.layer or 0), int(site.index), where % engine.frozen.n_positions)


def feature_at(graph, layer: int, index: int, pos: int) -> Node:
    """The node of a feature at a position; of value 0 where it is not active there."""
    engine = graph.attribution
    if pos < engine.mlp_positions.start:
        raise ValueError(f"position {pos} is the start token, whose MLP outputs have no features in graphs")
    active, columns = engine.active[layer], engine.layout.features[layer]
    mine = ((active.pos == pos) & (active.index == index)).nonzero()[:, 0].tolist()
    off = Node("feature", layer, pos, index, engine.bases[layer].name, 0.0)
    return graph.weighted.sources[columns[0] + mine[0]] if mine else off
