"""Supernodes: features that mean the same or have the same edges, and what suppressing all of one does.

Where features have classes (sums), those of one class, layer and position are a supernode. Elsewhere features of one
position, in one layer or two adjacent ones, are, if they have the same label or promote the same tokens; and of the
rest those that take in and give out the same.

    graph.supernodes                                     # automatic until edited
    graph.group("capitals", ["3_782_5", "2_1367_5"])
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from mechkit.core.metrics import Metric
from mechkit.core.sweep import sweep
from mechkit.graphs.meaning.alike import BY_EDGES, by_edges, by_meaning
from mechkit.graphs.meaning.notes import in_words, label_of
from mechkit.graphs.meaning.promoted import promoted, written
from mechkit.graphs.meaning.received import elsewhere, received, tokens_named
from mechkit.graphs.nodes import Node, token_text
from mechkit.graphs.truth.check import answer_logit, target_slopes
from mechkit.graphs.truth.exact import suppression

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


def automatic(graph) -> dict[str, list[Node]]:
    """Kept features by supernode: by class, label or what they promote, then by edges. Some stand for themselves.

    Cost: that of `alike.by_meaning` and `alike.by_edges`.
    """
    found = meaning_groups(graph)
    inside = {node.id for nodes in found.values() for node in nodes}
    left = [node for node in kept_features(graph) if node.id not in inside]
    return found | named(graph, by_edges(graph, left, BY_EDGES), taken=found)


def regrouped(graph, by: str, threshold: float | None) -> dict[str, list[Node]]:
    """Kept features by supernode, by `meaning` or by `edges` alone. Raises ValueError for anything else."""
    if by not in ("meaning", "edges"):
        raise ValueError(f"by is {by!r}; supernodes are made by 'meaning' or by 'edges'")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it is a likeness, above 0 and at most 1")
    if by == "meaning":
        return meaning_groups(graph, threshold)
    return named(graph, by_edges(graph, kept_features(graph), threshold or BY_EDGES))


def meaning_groups(graph, threshold: float | None = None) -> dict[str, list[Node]]:
    """Kept features that share what they mean: class, layer and position, or label, or the tokens they promote."""
    classes: dict[str, list[Node]] = {}
    left, labels, nodes = [], {}, kept_features(graph)
    given = Counter(graph.labels[node.id] for node in nodes if node.id in graph.labels)
    for node in nodes:
        own = graph.labels.get(node.id, "")
        shared = given[own] > 1
        label = own if shared else graph.index_label(node)
        if not shared and node.id in graph.meanings:
            classes.setdefault(class_name(graph, node), []).append(node)
        else:
            left.append(node)
            labels |= {} if label is None else {node.id: label}
    return classes | named(graph, by_meaning(graph, left, labels, threshold), labels, taken=classes)


def kept_features(graph) -> list[Node]:
    """The features that pruning keeps, by column."""
    sources = graph.weighted.sources
    return [sources[i] for i in graph.kept_sources if sources[i].kind == "feature"]


def class_name(graph, node: Node) -> str:
    """The name of a feature's class at its place, or of the features there without one."""
    meaning = graph.meanings.get(node.id)
    group = "features" if meaning is None else meaning.group
    return f"L{node.layer} {group} at {place_name(graph, node.pos or 0)}"


def named(
    graph, groups: Sequence[Sequence[Node]], labels: Mapping[str, str] | None = None, taken: Iterable[str] = ()
) -> dict[str, list[Node]]:
    """Groups by name: layers, then label, or what they read and promote, else the strongest feature; and the place."""
    found: dict[str, list[Node]] = {}
    for nodes, words in zip(groups, words_of(graph, groups), strict=True):
        shared = {(labels or {}).get(node.id) for node in nodes}
        label = next(iter(shared)) if len(shared) == 1 else None
        strongest = max(nodes, key=lambda node: float(graph.weighted.influence[graph.column_of(node)]))
        what = label or words or f"like {strongest.index}"
        name = plain = f"{layers_name(nodes)} {what} at {place_name(graph, nodes[0].pos or 0)}"
        number = 2
        while name in found or name in taken:
            name, number = f"{plain} ({number})", number + 1
        found[name] = list(nodes)
    return found


def words_of(graph, groups: Sequence[Sequence[Node]]) -> list[str]:
    """What each group of features of one place reads and promotes, theirs summed; "" where nothing stands out.

    Parts of the prompt are of kept features alone, each counted by what it adds to the answer.
    """
    if not groups:
        return []
    engine, kept = graph.attribution, kept_features(graph)
    rows = torch.stack([written(engine, nodes).sum(0) for nodes in groups])
    told = promoted(engine, rows, [nodes[0].pos or 0 for nodes in groups])
    number = {node.id: i for i, node in enumerate(kept)}
    parts = received(graph, kept) * worth(graph, kept)[:, None]
    summed = [parts[[number[node.id] for node in nodes if node.id in number]].sum(0) for nodes in groups]
    return [
        in_words(elsewhere(graph, nodes[0], tokens_named(graph, part)), one.named)
        for nodes, part, one in zip(groups, summed, told, strict=True)
    ]


def worth(graph, nodes: Sequence[Node]) -> Float[np.ndarray, "node"]:
    """How much the size of each feature's effect on the answer is, for each unit of its pre-activation."""
    columns = [graph.column_of(node) for node in nodes]
    sizes = np.array([abs(node.value) for node in nodes])
    return graph.weighted.influence[columns].double().cpu().numpy() / sizes if len(sizes) else sizes


def layers_name(nodes: Sequence[Node]) -> str:
    """`L2`, or `L2–L3`."""
    layers = [node.layer for node in nodes]
    return f"L{min(layers)}" if min(layers) == max(layers) else f"L{min(layers)}–L{max(layers)}"


def partition(graph) -> dict[str, list[int]]:
    """Every source's column by group: supernodes, other features by layer and place, tokens, the rest by kind.

    A pruned feature joins the supernode of its class where there is one.
    """
    inside = {node.id: name for name, nodes in graph.supernodes.items() for node in nodes}
    found: dict[str, list[int]] = {}
    for i, node in enumerate(graph.weighted.sources):
        name = inside.get(node.id) or _group_name(graph, node)
        found.setdefault(name, []).append(i)
    return found


def _group_name(graph, node: Node) -> str:
    """Where a source belongs that is in no supernode itself."""
    if node.kind == "feature":
        name = class_name(graph, node)
        is_kept = bool(graph.kept.nodes[graph.column_of(node)])
        if name in graph.supernodes and not is_kept:
            return name
        return f"other {name}" if name in graph.supernodes else name
    words = {"token": place_name(graph, node.pos or 0), "position": "positions", "bos": "start token"}
    return words.get(node.kind, "biases" if node.kind == "bias" else "errors")


def supernodes(graph, *, kept: bool = False) -> dict[str, list[Node]]:
    """All features by group, supernodes and others; or `graph.supernodes` alone, which are kept."""
    if kept:
        return graph.supernodes
    sources = graph.weighted.sources
    groups = {name: [sources[i] for i in columns] for name, columns in partition(graph).items()}
    return {name: nodes for name, nodes in groups.items() if nodes[0].kind == "feature"}


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
        label, predicted = label_of(graph, strongest) or "", -float(effects[columns].sum())
        rows.append(SupernodeCheck(name, len(nodes), label, influence, predicted, held_change, change, answer))
    return sorted(rows, key=lambda row: -row.influence)


def _carrying(graph) -> dict[str, list[Node]]:
    share = lambda nodes: float(graph.weighted.influence[[graph.column_of(node) for node in nodes]].sum())  # noqa: E731
    return {name: nodes for name, nodes in supernodes(graph).items() if share(nodes) >= SMALLEST}


likeliest_token = Metric(
    "likeliest token", "token id", "last", lambda logits, prompts: logits[:, -1].argmax(-1).double()
)
"""Id of the likeliest next token; exact in float64."""
