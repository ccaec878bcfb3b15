"""The attribution matrix by definition: autograd with patterns, scales and MLP outputs held."""

import torch

import mechkit as mk
from mechkit.core.loop import hooked
from mechkit.dictionaries import Transcoder
from mechkit.graphs.nodes import Node

TOKENS = [1, 2, 3, 4, 5]


def traced(model, bases, *, bos=False, **options):
    """The graph of `TOKENS`; with `bos`, position 0 counts as a BOS token."""
    if not bos:
        return mk.trace(model, TOKENS, bases, node_threshold=1.0, check=False, max_logits=3, **options)
    model.cfg.default_prepend_bos, model.tokenizer = True, StandInTokenizer()
    try:
        return mk.trace(model, TOKENS, bases, node_threshold=1.0, check=False, max_logits=3, **options)
    finally:
        model.tokenizer = None


class StandInTokenizer:
    """As much of a tokenizer as a graph asks for."""

    bos_token_id, padding_side = TOKENS[0], "right"

    def decode(self, ids):
        return f"<{ids[0]}>"


def random_transcoders(model, *, skip=False, hook="ln2.hook_normalized", n_features=40, threshold=None):
    """One transcoder of random weights per layer."""
    d, generator = model.cfg.d_model, torch.Generator().manual_seed(5)
    draw = lambda *shape, size=0.3: torch.randn(*shape, generator=generator) * size  # noqa: E731
    return [
        Transcoder(
            layer=layer,
            W_enc=draw(d, n_features),
            b_enc=draw(n_features),
            W_dec=draw(n_features, d),
            b_dec=draw(d),
            W_skip=draw(d, d, size=0.2) if skip else None,
            threshold=None if threshold is None else torch.full((n_features,), threshold),
            hook_in=f"blocks.{layer}.{hook}",
            hook_out=f"blocks.{layer}.hook_mlp_out",
            name="random",
        )
        for layer in range(model.cfg.n_layers)
    ]


class FrozenGradients:
    """One forward pass with everything but the linear paths cut; `cut_heads` cuts heads' outputs too."""

    def __init__(self, graph, cut_heads=()):
        self.graph, self.cut_heads = graph, cut_heads
        self.model, self.bases = graph.attribution.frozen.model, graph.attribution.bases
        self.inputs, self.outputs, self.embeddings = {}, {}, {}
        with torch.enable_grad(), hooked(self.model, list(self.hooks())):
            self.logits = self.model(graph.attribution.frozen.prompts.tokens)[0, -1]

    def hooks(self):
        for name in self.model.hook_dict:
            if name.endswith(("hook_scale", "hook_pattern")):
                yield name, lambda x, hook: x.detach()
        for name in ("hook_embed", "hook_pos_embed"):
            if name in self.model.hook_dict:
                yield name, lambda x, hook, name=name: self.keep(self.embeddings, name, x)
        for basis in self.bases:
            yield basis.hook_in, lambda x, hook, layer=basis.layer: self.inputs.__setitem__(layer, x)
            yield basis.hook_out, lambda x, hook, basis=basis: self.mlp_out(x, basis)
        for layer, heads in self.cut_heads:
            yield f"blocks.{layer}.attn.hook_z", lambda x, hook, heads=heads: self.cut(x, heads)

    def keep(self, where, name, x):
        where[name] = x.detach().requires_grad_(True)
        return where[name]

    def mlp_out(self, x, basis):
        leaf = self.keep(self.outputs, basis.layer, x)
        if basis.W_skip is None:
            return leaf
        skip = self.inputs[basis.layer] @ basis.W_skip.T
        mask = torch.ones(x.shape[1], 1)
        mask[0] = 0.0 if self.graph.attribution.bos else 1.0
        return leaf + (skip - skip.detach()) * mask

    @staticmethod
    def cut(x, heads):
        mask = torch.ones(x.shape[2], 1)
        mask[list(heads)] = 0.0
        return x * mask + (x * (1 - mask)).detach()

    def row(self, target: Node) -> dict[tuple, float]:
        """Contributions to one target by (kind, layer, pos, index); biases are left out."""
        if target.kind == "logit":
            value = self.logits[target.index] - (self.logits.mean() if self.graph.meta["logits"] != "raw" else 0)
        else:
            basis = self.bases[target.layer]
            value = self.inputs[target.layer][0, target.pos] @ basis.W_enc[:, target.index]
        leaves = {**self.outputs, **self.embeddings}
        slopes = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        slopes = {
            name: torch.zeros_like(leaf) if slope is None else slope
            for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)
        }
        return {
            (s.kind, s.layer, s.pos, s.index): self.contribution(s, slopes, leaves)
            for s in self.graph.sources
            if s.kind != "bias"
        }

    def contribution(self, source: Node, slopes, leaves) -> float:
        engine = self.graph.attribution
        if source.kind in ("token", "position"):
            name = "hook_embed" if source.kind == "token" else "hook_pos_embed"
            return float(slopes[name][0, source.pos] @ leaves[name].detach()[0, source.pos])
        slope = slopes[source.layer][0, source.pos]
        if source.kind == "feature":
            return float(slope @ (source.value * engine.bases[source.layer].W_dec[source.index]))
        if source.kind == "error":
            return float(slope @ engine.errors[source.layer][source.pos])
        return float(slope @ leaves[source.layer].detach()[0, source.pos])

    def matrix(self, chosen) -> torch.Tensor:
        """Rows of the targets with these numbers; bias columns are NaN."""
        rows = []
        for i in chosen:
            row = self.row(self.graph.targets[i])
            rows.append([row.get((s.kind, s.layer, s.pos, s.index), float("nan")) for s in self.graph.sources])
        return torch.tensor(rows)
