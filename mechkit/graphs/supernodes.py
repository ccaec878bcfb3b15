"""Supernodes: features that share layer, position and class, and what suppressing all of one does."""

from collections import defaultdict
from dataclasses import dataclass

import torch

from mechkit.core.metrics import Metric
from mechkit.core.sweep import sweep
from mechkit.graphs.check import answer_logit, target_slopes
from mechkit.graphs.exact import suppression
from mechkit.graphs.nodes import Node, token_text

SMALLEST = 0.01
"""Share of the answer below which a supernode is not checked."""


@dataclass(frozen=True)
class SupernodeCheck:
    """What suppressing all features of a supernode does to the answer's logit."""

    name: str
    """The supernode."""
    n_features: int
    """Active features in it, kept by pruning or not."""
    strongest: str
    """What its most influential feature means, where that is known."""
    influence: float
    """Share of the answer that passes it, from 0 to 1."""
    predicted: float
    """Change of the answer's logit by the graph, in logits."""
    frozen: float
    """Measured with attention patterns and scales frozen, in logits."""
    measured: float
    """Measured with nothing frozen, in logits."""
    answer: str
    """The model's likeliest token then, nothing frozen."""


def supernodes(graph, *, kept: bool = False) -> dict[str, list[Node]]:
    """Features by supernode, all or only those that pruning keeps. Names tell layer, class and token."""
    chosen = set(graph.kept_sources) if kept else None
    found: dict[str, list[Node]] = defaultdict(list)
    for i, node in enumerate(graph.weighted.sources):
        if node.kind == "feature" and (chosen is None or i in chosen):
            found[supernode_of(graph, node)].append(node)
    return dict(found)


def supernode_of(graph, node: Node) -> str:
    """The supernode of a feature; other nodes stand for themselves, or for all of their kind."""
    if node.kind == "feature":
        meaning = graph.meanings.get(node.id)
        group = "features" if meaning is None else meaning.group
        return f"L{node.layer} {group} at {place_name(graph, node.pos or 0)}"
    return {"token": place_name(graph, node.pos or 0), "position": "positions", "bos": "start token"}.get(
        node.kind, "errors"
    )


def place_name(graph, pos: int) -> str:
    """The token at a position, with the position where the prompt has that token more than once."""
    tokens = graph.meta["tokens"]
    return tokens[pos] if list(tokens).count(tokens[pos]) == 1 else f"{tokens[pos]} ({pos})"


@torch.no_grad()
def check_supernodes(graph) -> list[SupernodeCheck]:
    """Suppress each supernode's features together; predicted and measured, largest influence first.

    Supernodes that carry less than `SMALLEST` of the answer are left out.
    Unit: logits. Cost: three forward passes per supernode.
    """
    groups, frozen = _carrying(graph), graph.attribution.frozen
    effects = graph.weighted.effects(graph.weighted.n_features, target_slopes(graph))
    runs = [[], *(suppression(graph, *nodes) for nodes in groups.values())]
    held = frozen.freeze(mlps=False)
    measured = [
        sweep(frozen.model, frozen.prompts, runs, metric, base=base).scores[:, 0]
        for metric, base in ((answer_logit(graph), held), (answer_logit(graph), []), (likeliest_token, []))
    ]
    rows = []
    for i, (name, nodes) in enumerate(groups.items(), 1):
        columns = [graph.column_of(node) for node in nodes]
        held_change, change = (float(values[i] - values[0]) for values in measured[:2])
        answer = token_text(frozen.model, int(measured[2][i]))
        influence = float(graph.weighted.influence[columns].sum())
        strongest = max(nodes, key=lambda node: float(graph.weighted.influence[graph.column_of(node)]))
        meaning = graph.meanings.get(strongest.id)
        label, predicted = "" if meaning is None else meaning.label, -float(effects[columns].sum())
        rows.append(SupernodeCheck(name, len(nodes), label, influence, predicted, held_change, change, answer))
    return sorted(rows, key=lambda row: -row.influence)


def _carrying(graph) -> dict[str, list[Node]]:
    share = lambda nodes: float(graph.weighted.influence[[graph.column_of(node) for node in nodes]].sum())  # noqa: E731
    return {name: nodes for name, nodes in supernodes(graph).items() if share(nodes) >= SMALLEST}


likeliest_token = Metric(
    "likeliest token", "token id", "last", lambda logits, prompts: logits[:, -1].argmax(-1).double()
)
"""Id of the likeliest next token; exact in float64."""
