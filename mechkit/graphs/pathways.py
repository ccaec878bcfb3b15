"""Pathways: what carries the answer, from the prompt's tokens to the logit, in words.

Nodes that share layer, position and class are one supernode. A pathway is a chain of supernodes; its share is the
influence on the answer's logit that flows along it, over all its nodes, pruned or not. Shares are sizes, not signs: a
path that argues against the answer counts as well. All pathways together, with what is left over, sum to 1.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.loadings import carried
from mechkit.graphs.nodes import Node
from mechkit.graphs.supernodes import place_name, supernode_of

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
    """All pathways of at least `SMALLEST`, largest share first. Cost: one descent with heads apart per place."""
    return _Walk(graph).run()


class _Walk:
    """A walk down the graph from the logits, supernode by supernode. A chain lists supernodes from the top."""

    def __init__(self, graph) -> None:
        self.graph, self.matrix = graph, graph.weighted
        self.members: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.matrix.sources):
            self.members["biases" if node.kind == "bias" else supernode_of(graph, node)].append(i)
        self.names = list(self.members)
        self.group = torch.empty(len(self.matrix.sources), dtype=torch.long, device=self.matrix.rows.device)
        for number, members in enumerate(self.members.values()):
            self.group[members] = number
        self.carried: dict[int, Float[Tensor, "stream group"]] = {}
        self.roots: dict[Chain, dict[str, float]] = defaultdict(dict)
        self.steps: dict[Chain, Tensor] = {}

    def run(self) -> list[Pathway]:
        self.follow((), answer_alone(self.graph))
        return sorted((self.pathway(chain) for chain in self.roots), key=lambda pathway: -pathway.share)

    def follow(self, chain: Chain, mass: Float[Tensor, "target"]) -> None:
        """Send the influence `mass` of the chain's last supernode one step down, and follow it from there."""
        reached = self.matrix.step(mass)
        shares = torch.zeros(len(self.names), dtype=reached.dtype, device=reached.device)
        shares.index_add_(0, self.group, reached)
        followed = (shares >= SMALLEST).nonzero()[:, 0].tolist()
        steps = self.carried_by(mass) if followed else torch.empty(0)
        for number in followed:
            group, share = self.names[number], float(shares[number])
            members = self.members[group]
            self.steps[(*chain, group)] = steps[:, number]
            if self.matrix.sources[members[0]].kind == "feature":
                below = torch.zeros_like(mass)
                rows = (self.group[self.matrix.own.clamp(min=0)] == number) & (self.matrix.own >= 0)
                below[rows] = reached[self.matrix.own[rows]]
                self.follow((*chain, group), below)
            else:
                self.roots[chain][group] = share

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
        return [root for root in roots if roots[root] >= _SHOWN_ROOT * sum(roots.values())]

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
        """The supernode in words: how many features of what kind, in which layer, and where if not at the end."""
        node = self.matrix.sources[self.members[group][0]]
        meaning, n = self.graph.meanings.get(node.id), len(self.members[group])
        kind = "" if meaning is None else f"{meaning.group} "
        where = "" if node.pos == self.graph.logits[0].pos else f" at {place_name(self.graph, node.pos or 0)}"
        kept = len(self.kept(group))
        drawn = "" if kept == n else f" ({kept or 'none'} kept)"
        return f"{n} {kind}feature{'s' * (n > 1)} of L{node.layer}{where}{drawn}"


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
