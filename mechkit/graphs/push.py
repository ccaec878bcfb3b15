"""Pushing reading directions down a frozen model.

A target reads the residual stream at one layer and position. Its direction `g[stream, target, pos, d]` descends
through normalisation, attention and skip connections by matrix products inside the causal cone; at each place on
the way the product with what is written there is a contribution. Stream 0 holds paths that no head has carried
yet, the others what came through each head last.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.attribution import Attribution, Streams, mlp_input
from mechkit.graphs.frozen import adds_positions, has_norm
from mechkit.graphs.nodes import EMBEDDING_LAYER, Node


@torch.no_grad()
def push(graph: Attribution, targets: Sequence[Node], n_streams: int) -> Streams:
    """Contributions of every source to `targets`, which all read at one layer and position."""
    return _Descent(graph, targets, n_streams).run()


class _Descent:
    """One descent: the directions `g` where they are now, and the contributions collected so far."""

    def __init__(self, graph: Attribution, targets: Sequence[Node], n_streams: int) -> None:
        self.graph, self.frozen, self.targets = graph, graph.frozen, list(targets)
        self.layer, self.pos = targets[0].layer, targets[0].pos
        self.width = (self.pos or 0) + 1
        self.out = self.frozen.final.new_zeros(n_streams, len(targets), len(graph.sources))
        self.g = self.frozen.final.new_zeros(n_streams, len(targets), self.width, self.frozen.final.shape[1])

    def run(self) -> Streams:
        if self.targets[0].kind == "logit":
            self.read_logits()
            top = self.frozen.model.cfg.n_layers
        else:
            self.read_features()
            self.pass_attention(self.layer)
            top = self.layer
        for layer in reversed(range(top)):
            if self.graph.bases:
                self.pass_mlp(layer)
            self.pass_attention(layer)
        self.meet_embeddings()
        return self.out

    def collect(self, column: tuple, values: Float[Tensor, "stream target"]) -> None:
        """Add to one column; the streams are those of `values`, the first ones."""
        self.out[: values.shape[0], :, self.graph.column[column]] += values

    def collect_places(self, first: tuple, g: Tensor, written: Float[Tensor, "pos d_model"]) -> None:
        """Add to the columns of successive positions, from the column `first` on, what is written at each."""
        start = self.graph.column[first]
        self.out[:, :, start : start + g.shape[2]] += torch.einsum("stpd,pd->stp", g, written)

    # --- what targets read

    def read_logits(self) -> None:
        model, ids = self.frozen.model, [node.index for node in self.targets]
        W_U, b_U = model.W_U, model.b_U
        if self.graph.centred:
            W_U, b_U = W_U - W_U.mean(1, keepdim=True), b_U - b_U.mean()
        self.collect(("b_U", self.layer), b_U[ids][None])
        self.g[0, :, -1] = W_U[:, ids].T
        if has_norm(model.cfg):
            self.collect_norm_bias(self.g[:1], "ln_final", self.layer, slice(0, 1))
            self.g = self.frozen.norm_back(self.g, "ln_final", affine=True)

    def read_features(self) -> None:
        basis, ids = self.graph.bases[self.layer], [node.index for node in self.targets]
        self.collect(("b_enc", self.layer), basis.b_enc[ids][None])
        self.g[0, :, -1] = basis.W_enc[:, ids].T
        self.g = self.before_mlp(self.g, basis)

    def before_mlp(self, g: Tensor, basis) -> Tensor:
        """Directions over what a dictionary reads as directions over the residual stream before its MLP."""
        if mlp_input(basis).endswith("resid_mid"):
            return g
        return self.frozen.norm_back(g, f"L{basis.layer}.ln2", affine=False)

    # --- what is written on the way down

    def pass_mlp(self, layer: int) -> None:
        """Meet features, errors and bias of one MLP; go on through the residual path and any skip connection."""
        basis, first = self.graph.bases[layer], self.graph.mlp_positions.start
        self.meet_features(layer)
        if self.width > first:
            above = self.g[:, :, first:]
            self.collect_places(("error", layer, first, None), above, self.graph.errors[layer][first : self.width])
            self.collect(("b_dec", layer), above.sum(2) @ basis.b_dec)
        if self.graph.bos:
            self.collect(("bos", layer, 0, None), self.g[:, :, 0] @ self.frozen.mlp_out(layer)[0])
        if basis.W_skip is not None:
            self.pass_skip(basis, first)

    def meet_features(self, layer: int) -> None:
        for pos in range(self.graph.mlp_positions.start, self.width):
            if (layer, pos) in self.graph.written:
                columns, written = self.graph.written[layer, pos]
                self.out[:, :, columns] += self.g[:, :, pos] @ written.T

    def pass_skip(self, basis, first: int) -> None:
        skip = self.g @ basis.W_skip
        skip[:, :, :first] = 0
        self.g = self.g + self.before_mlp(skip, basis)

    def pass_attention(self, layer: int) -> None:
        """Meet the biases of one attention layer; go on through the residual path and every head."""
        attn = self.frozen.model.blocks[layer].attn
        value_bias = self.frozen.value_bias(layer)[: self.width]
        self.collect(("b_V", layer), torch.einsum("stpd,pd->st", self.g, value_bias))
        self.collect(("b_O", layer), self.g.sum(2) @ attn.b_O)
        n_heads, per_head = self.frozen.model.cfg.n_heads, len(self.g) > 1
        first = 1 + layer * n_heads if per_head else 0
        fresh = self.frozen.values_back(self.g[:1], layer, per_head=per_head)[:, 0]
        carried = self.frozen.values_back(self.g[1:], layer, per_head=False)[0]
        self.g = self.g.clone()
        for values, streams in ((carried, slice(1, None)), (fresh, slice(first, first + len(fresh)))):
            if len(values):
                self.collect_norm_bias(values, f"L{layer}.ln1", layer, streams)
                self.g[streams] += self.frozen.norm_back(values, f"L{layer}.ln1", affine=True)

    def collect_norm_bias(self, g: Tensor, norm: str, layer: int, streams: slice) -> None:
        bias = self.frozen.norm_bias(norm)
        if bias is not None:
            self.out[streams, :, self.graph.column[norm.split(".")[-1] + ".b", layer]] += g.sum(2) @ bias

    def meet_embeddings(self) -> None:
        values, first = self.frozen.values, int(self.frozen.prompts.tokens[0, 0])
        self.collect_places(("token", EMBEDDING_LAYER, 0, first), self.g, values["embed"][0][: self.width])
        if adds_positions(self.frozen.model.cfg):
            self.collect_places(("position", EMBEDDING_LAYER, 0, 0), self.g, values["pos_embed"][0][: self.width])
