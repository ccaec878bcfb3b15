"""Nodes of an attribution graph.

Sources are what writes to the residual stream or adds to a pre-activation: active features, the errors of their
dictionaries, token and position embeddings, a BOS position's MLP outputs, and biases. Targets are what reads it:
features and logits.
"""

from dataclasses import dataclass, replace
from typing import Literal

from mechkit.core.site import Site

Kind = Literal["feature", "error", "token", "position", "bos", "bias", "logit", "target"]

EMBEDDING_LAYER = -1
"""Layer of token and position embeddings, below the first block."""


@dataclass(frozen=True)
class Node:
    """One node: what it is, where it is, and its value on this prompt."""

    kind: Kind
    """What it is."""
    layer: int
    """Block; -1 for embeddings, the number of layers for logits and what only they read."""
    pos: int | None
    """Token position; None for biases, which add at every position."""
    index: int | None
    """Feature number, or token id of a token or logit."""
    name: str
    """Name of the feature's dictionary, of the bias parameter, or the text of the token."""
    value: float = 1.0
    """Activation of a feature, logit of a logit, 1 for the rest."""
    preactivation: float | None = None
    """What a target's row of the matrix sums to; None for nodes that are only sources."""
    part: str = ""
    """Which of a gated neuron's rows: `gate` or `linear`; empty where a target has one row."""
    root: int | None = None
    """Its number among what the graph explains; None for all other nodes."""
    place: Site | None = None
    """The site of a target that is neither feature nor logit."""

    def row(self, part: str, preactivation: float) -> "Node":
        """The node as one of its rows."""
        return replace(self, part=part, preactivation=preactivation)

    @property
    def site(self) -> Site:
        """The node's address."""
        layer = self.layer if self.layer >= 0 else None
        match self.kind:
            case "feature":
                return Site("mlp_out", layer, pos=self.pos, index=self.index, basis=self.name)
            case "error" | "bos":
                return Site("mlp_out", layer, pos=self.pos, basis=self.kind)
            case "bias":
                return Site(self.name, None if self.name in ("ln_final.b", "b_U") else layer)
            case "logit":
                return Site("logits", pos=self.pos, index=self.index)
            case "target":
                return self.place or Site("logits", pos=self.pos)
        return Site("embed" if self.kind == "token" else "pos_embed", pos=self.pos)

    @property
    def id(self) -> str:
        """Unique in its graph, and the same in the saved file."""
        match self.kind:
            case "feature":
                return f"{self.layer}_{self.index}_{self.pos}"
            case "error":
                return f"{self.layer}_-1_{self.pos}"
            case "bos":
                return f"{self.layer}_-2_{self.pos}"
            case "bias":
                return f"B_{self.name}_{self.layer}"
            case "logit":
                return f"{self.layer + 1}_{self.index}_{self.pos}"
            case "target":
                return f"T_{self.root}_{self.pos}"
        return f"{'E' if self.kind == 'token' else 'P'}_{self.index}_{self.pos}"

    def __str__(self) -> str:
        match self.kind:
            case "target":
                return self.name
            case "token" | "logit":
                return f"{self.kind} {self.name!r} @{self.pos}"
            case "bias":
                return f"bias {self.name} of layer {self.layer}"
        return str(self.site)


def token_text(model, token: int) -> str:
    """The text of a token, or its id in angle brackets where the model has no tokenizer."""
    return f"<{token}>" if model.tokenizer is None else model.tokenizer.decode([token])
