"""Pathways: what carries the answer, from the prompt's tokens to the logit, in words.

A pathway is a chain of supernodes (`graph.supernodes`; features in none go with the others of their layer and place);
its share is the influence on the answer's logit that flows along it, over all its nodes, pruned or not. Shares are
sizes, not signs: a path that argues against the answer counts as well. All pathways together, with what is left over,
sum to 1. Steps inside a supernode of two layers are part of it.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.engine.loadings import carried
from mechkit.graphs.meaning.promoted import promoted, written
from mechkit.graphs.meaning.supernodes import class_name, layers_name, partition, place_name
from mechkit.graphs.nodes import Node

SMALLEST = 0.002
"""Share below which a chain is not followed further."""

_SHOWN_HEAD = 0.1
"""Share of a step that a head carries before it is named."""

_SHOWN_ROOT = 0.1
"""Share of a pathway that a token brings before it is named."""

Chain = tuple[str, ...]
"""Supernodes from the top down."""


@dataclass(frozen=True, repr=False)
class Pathway:
    """One chain of supernodes."""

    text: str
    """In words, from the prompt to the answer."""
    share: float
    """Share of the answer's influence that flows along it, from 0 to 1."""
    nodes: tuple[Node, ...]
    """Its kept nodes, those it starts from first; the answer last."""
    supernodes: tuple[str, ...]
    """The chain's supernodes, lowest first."""

    def __repr__(self) -> str:
        return f"{self.share:6.1%}  {self.text}"


def pathways(graph) -> list[Pathway]:
    """All pathways of at least `SMALLEST`, largest share first. Cost: one descent with heads apart per place, once for
    the supernodes as they are.
    """
    known = tuple((name, *(node.id for node in nodes)) for name, nodes in graph.supernodes.items())
    kept = vars(graph).get("_pathways")
    if kept is None or kept[0] != (known, id(graph.meanings)):
        kept = vars(graph)["_pathways"] = ((known, id(graph.meanings)), _Walk(graph).run())
    return kept[1]


class _Walk:
    """A walk down the graph from the logits, supernode by supernode. A chain lists supernodes from the top."""

    def __init__(self, graph) -> None:
        self.graph, self.matrix = graph, graph.weighted
        self.members = partition(graph)
        self.names = list(self.members)
        self.group = torch.empty(len(self.matrix.sources), dtype=torch.long, device=self.matrix.rows.device)
        for number, members in enumerate(self.members.values()):
            self.group[members] = number
        self.told: dict[str, list[str]] = {}
        self.carried: dict[int, Float[Tensor, "stream group"]] = {}
        self.roots: dict[Chain, dict[str, float]] = defaultdict(dict)
        self.steps: dict[Chain, Tensor] = {}

    def run(self) -> list[Pathway]:
        self.follow((), answer_alone(self.graph))
        return sorted((self.pathway(chain) for chain in self.roots), key=lambda pathway: -pathway.share)

    def follow(self, chain: Chain, mass: Float[Tensor, "target"]) -> None:
        """Send the influence `mass` of the chain's last supernode one step down, and follow it from there."""
        own = self.names.index(chain[-1]) if chain else -1
        mass = self.with_steps_inside(own, mass)
        reached = self.matrix.step(mass).masked_fill(self.group == own, 0)
        shares = torch.zeros(len(self.names), dtype=reached.dtype, device=reached.device)
        shares.index_add_(0, self.group, reached)
        followed = (shares >= SMALLEST).nonzero()[:, 0].tolist()
        steps = self.carried_by(mass) if followed else torch.empty(0)
        for number in followed:
            group, share = self.names[number], float(shares[number])
            members = self.members[group]
            self.steps[(*chain, group)] = steps[:, number]
            if self.matrix.sources[members[0]].kind == "feature":
                self.follow((*chain, group), self.onto(number, reached))
            else:
                self.roots[chain][group] = share

    def onto(self, number: int, reached: Float[Tensor, "source"]) -> Float[Tensor, "target"]:
        """What reaches the features of one group."""
        rows = (self.group[self.matrix.own.clamp(min=0)] == number) & (self.matrix.own >= 0)
        below = torch.zeros_like(self.matrix.weights)
        below[rows] = reached[self.matrix.own[rows]]
        return below

    def with_steps_inside(self, number: int, mass: Float[Tensor, "target"]) -> Float[Tensor, "target"]:
        """What arrives at a group's features and goes from one of them to another."""
        total, layers = mass, {self.matrix.sources[i].layer for i in self.members[self.names[number]]}
        while number >= 0 and len(layers) > 1 and bool(mass.any()):
            mass = self.onto(number, self.matrix.step(mass))
            total = total + mass
        return total

    def carried_by(self, mass: Float[Tensor, "target"]) -> Float[Tensor, "stream group"]:
        """What each head carries last of the influence `mass`, to each group of sources."""
        rows = mass.nonzero()[:, 0].tolist()
        new = [row for row in rows if row not in self.carried]
        if new:
            self.carried |= dict(zip(new, carried(self.graph, new, self.group).unbind(1), strict=True))
        return torch.einsum("r,rsg->sg", mass[rows], torch.stack([self.carried[row] for row in rows]))

    def pathway(self, chain: Chain) -> Pathway:
        roots = self.roots[chain]
        upward = tuple(reversed(chain))
        nodes = [self.matrix.sources[i] for group in (*self.shown(roots), *upward) for i in self.kept(group)]
        return Pathway(
            text=self.words(chain, roots),
            share=sum(roots.values()),
            nodes=(*nodes, self.graph.logits[0]),
            supernodes=upward,
        )

    def kept(self, group: str) -> list[int]:
        return [i for i in self.members[group] if bool(self.graph.kept.nodes[i])]

    def shown(self, roots: dict[str, float]) -> list[str]:
        """The tokens, positions and errors that bring enough of a pathway to be named."""
        largest_first = sorted(roots, key=lambda root: -roots[root])
        return [root for root in largest_first if roots[root] >= _SHOWN_ROOT * sum(roots.values())]

    def words(self, chain: Chain, roots: dict[str, float]) -> str:
        carried = torch.stack([self.steps[(*chain, root)] for root in roots]).sum(0)
        text = ", ".join(self.shown(roots)) + self.arrow(carried)
        for depth in range(len(chain), 0, -1):
            text += self.group_words(chain[depth - 1]) + self.arrow(self.steps[chain[:depth]])
        return text + self.graph.logits[0].name

    def arrow(self, step: Float[Tensor, "stream"]) -> str:
        """The heads that carry a step, last before its end, or a plain arrow where none does."""
        shares = step / step.sum()
        n_heads = self.graph.attribution.frozen.model.cfg.n_heads
        carriers = [i - 1 for i in shares.argsort(descending=True).tolist() if i > 0 and shares[i] >= _SHOWN_HEAD]
        names = ", ".join(f"L{i // n_heads}.H{i % n_heads}" for i in carriers[:3])
        return f" —({names})→ " if names else " → "

    def group_words(self, group: str) -> str:
        """The group in words: its name where it has a label; else how many features of what kind, in which layers, what
        they promote, and where if not at the end."""
        nodes = [self.matrix.sources[i] for i in self.members[group]]
        node, n, kept, to_tokens = nodes[0], len(nodes), len(self.kept(group)), self.promoted(group)
        drawn = "" if kept == n else f" ({kept or 'none'} kept)"
        counted, place = f"{n} feature{'s' * (n > 1)}", place_name(self.graph, node.pos or 0)
        by_class = group.removeprefix("other ") == class_name(self.graph, node)
        if not by_class and not all(token in group for token in to_tokens or ["like"]):
            return f"{group} ({counted})"
        where = "" if node.pos == self.graph.logits[0].pos else f" at {place}"
        meaning = self.graph.meanings.get(node.id) if by_class else None
        kind = "" if meaning is None else f"{meaning.group} "
        said = f" promoting {', '.join(to_tokens)}" if to_tokens and meaning is None else ""
        return f"{n} {kind}feature{'s' * (n > 1)} of {layers_name(nodes)}{where}{said}{drawn}"

    def promoted(self, group: str) -> list[str]:
        """The tokens that stand out of those that a group's features promote together."""
        if group not in self.told:
            nodes, engine = [self.matrix.sources[i] for i in self.members[group]], self.graph.attribution
            rows = written(engine, nodes).sum(0, keepdim=True)
            self.told[group] = promoted(engine, rows, [nodes[0].pos or 0])[0].named
        return self.told[group]


def answer_alone(graph) -> Float[Tensor, "target"]:
    """Influence that starts at the answer's logit and no other."""
    start = torch.zeros_like(graph.weighted.weights)
    start[graph.weighted.n_features] = 1
    return start


def heads(graph) -> dict[str, float]:
    """Share of the answer's influence that each head is the last to carry to a feature or the answer, by its site.

    Every step from one node to the next has at most one such head; a path has several steps, so shares need not sum
    to 1. Largest first.
    """
    matrix, start = graph.weighted, answer_alone(graph)
    arriving = matrix.arriving(start)
    rows = arriving.nonzero()[:, 0].tolist()
    everything = torch.zeros(len(matrix.sources), dtype=torch.long, device=matrix.rows.device)
    shares = (carried(graph, rows, everything)[:, :, 0] * arriving[rows]).sum(1)[1:]
    n_heads = graph.attribution.frozen.model.cfg.n_heads
    named = {f"L{i // n_heads}.H{i % n_heads}.z": float(value) for i, value in enumerate(shares)}
    return dict(sorted(named.items(), key=lambda item: -item[1]))
