"""The attribution matrix of one prompt: its sources, its targets, and rows on demand.

`A[t, s] = a_s * (what s writes) . J . (what t reads)`, J the Jacobian of the residual stream with attention
patterns, normalisation scales and MLP outputs held. The row of a target sums to its pre-activation exactly:
every parameter that adds to it has a column.

Source: Ameisen et al. 2025 (Circuit Tracing), section "Building an attribution graph"; here with position
embeddings, biases and BOS outputs as sources of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.graphs.frozen import FrozenModel, adds_positions, has_norm
from mechkit.graphs.nodes import EMBEDDING_LAYER, Node

Streams = Float[Tensor, "stream target source"]
"""Contributions of sources to targets, split by the last head on the path; they sum to the matrix."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """Nodes of one prompt and the means to compute rows of its matrix."""

    frozen: FrozenModel
    """The model, held at its values on this prompt."""
    bases: Sequence
    """One feature basis per layer (`mechkit.dictionaries`); empty for a model without MLPs."""
    logits: Sequence[int]
    """Vocabulary ids of the logits that are targets."""
    centred: bool
    """Whether a logit target is measured from the mean logit."""
    bos: bool
    """Whether position 0 is a BOS token, whose MLP outputs are one source per layer."""

    # --- nodes

    @cached_property
    def features(self) -> list[Node]:
        """Active features by layer, position and number, with activation and pre-activation."""
        return [node for layer in range(len(self.bases)) for node in self._active(layer)]

    @cached_property
    def logit_nodes(self) -> list[Node]:
        """The logits that are targets."""
        cfg, pos = self.frozen.model.cfg, self.frozen.n_positions - 1
        values = self.frozen.logits
        values = values - values.mean() if self.centred else values
        return [
            Node("logit", cfg.n_layers, pos, i, token_text(self.frozen.model, i), float(values[i]), float(values[i]))
            for i in self.logits
        ]

    @cached_property
    def targets(self) -> list[Node]:
        """Rows of the matrix: features, then logits."""
        return [*self.features, *self.logit_nodes]

    @cached_property
    def sources(self) -> list[Node]:
        """Columns of the matrix: features, errors, embeddings, BOS outputs, biases."""
        layers = range(len(self.bases))
        return [
            *self.features,
            *(Node("error", layer, pos, None, "error") for layer in layers for pos in self.mlp_positions),
            *self._embeddings(),
            *(Node("bos", layer, 0, None, "bos") for layer in layers if self.bos),
            *(Node("bias", layer, None, None, name) for layer, name in self._biases()),
        ]

    @cached_property
    def column(self) -> dict[tuple, int]:
        """Column numbers by `(kind, layer, pos, index)`, or `(name, layer)` for biases."""
        return {
            (node.name, node.layer) if node.kind == "bias" else (node.kind, node.layer, node.pos, node.index): i
            for i, node in enumerate(self.sources)
        }

    @cached_property
    def written(self) -> dict[tuple[int, int], tuple[slice, Float[Tensor, "feature d_model"]]]:
        """What the active features of a layer and position write, with their columns, which are neighbours."""
        places: dict[tuple[int, int], list[int]] = {}
        for i, node in enumerate(self.features):
            places.setdefault((node.layer, node.pos or 0), []).append(i)
        found = {}
        for (layer, pos), columns in places.items():
            active = [self.features[i].index for i in columns]
            values = self.activations[layer][pos, active, None] * self.bases[layer].W_dec[active]
            found[layer, pos] = slice(columns[0], columns[-1] + 1), values
        return found

    @property
    def mlp_positions(self) -> range:
        """Positions whose MLP outputs are explained by features: all but a BOS."""
        return range(1 if self.bos else 0, self.frozen.n_positions)

    # --- values

    @cached_property
    def activations(self) -> list[Float[Tensor, "pos feature"]]:
        """Feature activations by layer."""
        return [basis.activate(pre) for basis, pre in zip(self.bases, self.preactivations, strict=True)]

    @cached_property
    def preactivations(self) -> list[Float[Tensor, "pos feature"]]:
        """Feature pre-activations by layer, which the rows of features sum to."""
        return [basis.preactivations(self.mlp_in(basis)) for basis in self.bases]

    @cached_property
    def errors(self) -> list[Float[Tensor, "pos d_model"]]:
        """What each layer's MLP writes beyond its dictionary's reconstruction."""
        return [
            self.frozen.mlp_out(basis.layer) - basis.decode(acts, self.mlp_in(basis))
            for basis, acts in zip(self.bases, self.activations, strict=True)
        ]

    # --- the matrix

    def rows(self, targets: Sequence[Node], *, heads: bool = False) -> Streams:
        """Rows of the matrix for `targets`, in their order, as streams that sum to it.

        With `heads` there is one stream for paths on which no head comes last before the target, then one for each
        head by layer and number; without, a single one.
        Cost: about 4 d^2 l (p + 1) FLOPs for a target at layer l, position p (times the streams); no forward pass.
        """
        from mechkit.graphs.push import push

        n_streams = 1 + (self.frozen.model.cfg.n_layers * self.frozen.model.cfg.n_heads if heads else 0)
        out = self.frozen.final.new_zeros(n_streams, len(targets), len(self.sources))
        groups: dict[tuple[int, int], list[int]] = {}
        for i, target in enumerate(targets):
            groups.setdefault((target.layer, target.pos or 0), []).append(i)
        for members in progress(list(groups.values()), "attribution"):
            out[:, members] = push(self, [targets[i] for i in members], n_streams)
        return out

    # --- how the nodes are listed

    def mlp_in(self, basis) -> Float[Tensor, "pos d_model"]:
        """What a dictionary reads on this prompt."""
        return self.frozen.values[mlp_input(basis)][0]

    def _active(self, layer: int) -> list[Node]:
        name, acts, pre = self.bases[layer].name, self.activations[layer], self.preactivations[layer]
        places = acts.nonzero().tolist()
        values, sums = acts[acts != 0].tolist(), pre[acts != 0].tolist()
        return [
            Node("feature", layer, pos, i, name, value, total)
            for (pos, i), value, total in zip(places, values, sums, strict=True)
            if pos in self.mlp_positions
        ]

    def _embeddings(self) -> list[Node]:
        model, ids = self.frozen.model, self.frozen.prompts.tokens[0].tolist()
        tokens = [Node("token", EMBEDDING_LAYER, pos, i, token_text(model, i)) for pos, i in enumerate(ids)]
        if not adds_positions(model.cfg):
            return tokens
        return tokens + [Node("position", EMBEDDING_LAYER, pos, pos, "position") for pos in range(len(ids))]

    def _biases(self) -> list[tuple[int, str]]:
        """Layer and name of every bias that adds to some target."""
        found, n_layers = [], self.frozen.model.cfg.n_layers
        for layer in range(n_layers):
            found += [(layer, "ln1.b")] if self.frozen.norm_bias(f"L{layer}.ln1") is not None else []
            found += [(layer, "b_V"), (layer, "b_O")]
            found += [(layer, "b_enc"), (layer, "b_dec")] if self.bases else []
        final = has_norm(self.frozen.model.cfg) and self.frozen.norm_bias("ln_final") is not None
        return found + ([(n_layers, "ln_final.b")] if final else []) + [(n_layers, "b_U")]


def mlp_input(basis) -> str:
    """The site that a basis reads. Raises ValueError for a hook that graphs do not follow."""
    sites = {
        f"blocks.{basis.layer}.ln2.hook_normalized": f"L{basis.layer}.ln2.normalized",
        f"blocks.{basis.layer}.hook_resid_mid": f"L{basis.layer}.resid_mid",
    }
    if basis.hook_in not in sites or basis.hook_out != f"blocks.{basis.layer}.hook_mlp_out":
        raise ValueError(
            f"dictionary '{basis.name}' goes from {basis.hook_in} to {basis.hook_out}; "
            "graphs follow ln2.hook_normalized or hook_resid_mid to hook_mlp_out"
        )
    return sites[basis.hook_in]


def token_text(model, token: int) -> str:
    """The text of a token, or its id in angle brackets where the model has no tokenizer."""
    return f"<{token}>" if model.tokenizer is None else model.tokenizer.decode([token])
