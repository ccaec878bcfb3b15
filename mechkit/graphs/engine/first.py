"""The first position of a causal prompt: it sees itself alone, so what is written there goes up one known path.

Where it is a BOS, few sources write there: embeddings, its MLPs' outputs and biases. Each is taken up the layers once,
and directions that arrive from later positions meet what it comes to in values, in place of going down themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.engine.reach import Column


@dataclass(frozen=True, eq=False)
class FirstPosition:
    """What sources at the first position come to in the values of every layer there."""

    columns: Sequence[Column]
    """The sources, in the order in which they write."""
    values: Sequence[Float[Tensor, "z _"]]
    """By layer, `[z, source]`: the values of those that write below it, laid out for every head."""

    @classmethod
    def of(cls, engine) -> "FirstPosition":
        """That of an engine whose first position is a BOS."""
        frozen, found = engine.frozen, []
        kinds = {"token": "embed", "position": "pos_embed"}
        written = {
            (kind,): frozen.values[site][0, :1] for kind, site in kinds.items() if (kind,) in engine.layout.first
        }
        columns, x = list(written), torch.cat(list(written.values()))
        for layer, maps in enumerate(frozen.layers):
            v = maps.first_values(x)
            found.append(v.T.contiguous())
            biases = engine.attention_constants[layer]
            new: dict[Column, Tensor] = {("bias", name, layer): vector[:1] for name, vector in biases.items()}
            if engine.bases:
                new["bos", layer] = frozen.mlp_out(layer)[:1]
            columns += new
            x = torch.cat([x + maps.first_out(v), *new.values()])
        return cls(columns, found)
