"""Frozen ablations by running the model: patterns, scales and MLP outputs held by hooks, one source taken out.

Every ablation is a row of one batch. Nothing here uses the engine's linear maps: what a source writes is taken out
where the model has it (before a norm that follows the MLP), and targets are read with the dictionary's own weights.
"""

import copy

import torch

import mechkit as mk
from mechkit.core.loop import hooked
from mechkit.dictionaries import CrossLayerTranscoder, GatedNeurons, Transcoder

TOKENS = [3, 1, 4, 1, 5]


def draws(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return lambda model, *shape, size=0.3: (torch.randn(*shape, generator=generator) * size).to(model.cfg.dtype)


def hooks_of(model, layer):
    from mechkit.dictionaries.transcoder import mlp_hooks

    return mlp_hooks(model, layer)


def transcoders(model, *, skip=False, n=30, seed=5, before_norm=False, **changes):
    """Random per-layer transcoders at the model's own MLP input."""
    draw, d, made = draws(seed), model.cfg.d_model, []
    for layer in range(model.cfg.n_layers):
        hook_in, hook_out = hooks_of(model, layer)
        made.append(
            Transcoder(
                layer, draw(model, d, n), draw(model, n), draw(model, n, d), draw(model, d), hook_in,
                f"blocks.{layer}.mlp.hook_out" if before_norm else hook_out, name="random",
                W_skip=draw(model, d, d, size=0.2) if skip else None, **changes,
            )
        )  # fmt: skip
    return made


def across(model, *, n=24, **changes):
    """Random cross-layer transcoders."""
    draw, d, n_layers = draws(), model.cfg.d_model, model.cfg.n_layers
    return [
        CrossLayerTranscoder(
            layer, draw(model, n, d), draw(model, n), draw(model, n, n_layers - layer, d), draw(model, d),
            *hooks_of(model, layer), name="across", **changes,
        )
        for layer in range(n_layers)
    ]  # fmt: skip


class FrozenRuns:
    """Everything of one graph's model that is held, and ablations of it."""

    def __init__(self, graph):
        self.graph, engine = graph, graph.attribution
        self.model, self.bases, self.bos = engine.frozen.model, engine.bases, engine.bos
        self.tokens = engine.frozen.prompts.tokens
        self.held, self.inputs, self.raw, self.first_embed = {}, {}, {}, {}
        held = [name for name in self.model.hook_dict if name.endswith(("_scale", "_pattern", "hook_v"))]
        hooks = [(name, self._keep(name)) for name in held if "attn.q_" not in name and "attn.k_" not in name]
        hooks += [(basis.hook_in, self._into(self.inputs, basis.layer)) for basis in self.bases]
        hooks += [(basis.hook_out, self._into(self.raw, basis.layer)) for basis in self.bases if not self._early(basis)]
        hooks += [
            (name, self._into(self.first_embed, name))
            for name in ("hook_embed", "hook_pos_embed")
            if name in self.model.hook_dict
        ]
        with (
            torch.no_grad(),
            hooked(self.model, hooks),
            self._modules(lambda layer, out: self.raw.__setitem__(layer, out)),
        ):
            self.model(self.tokens)

    emptied = ""
    """The hook of values whose clipped entries are taken out."""

    def _early(self, basis):
        return basis.hook_out.endswith("mlp.hook_out")

    def _keep(self, name):
        return lambda x, hook: self.held.setdefault(name, []).append(x)

    @staticmethod
    def _into(where, key):
        return lambda x, hook: where.__setitem__(key, x)

    def _modules(self, function):
        """Hooks on the MLP modules of layers whose dictionary writes before a norm."""
        from contextlib import ExitStack

        stack = ExitStack()
        for basis in self.bases:
            if self._early(basis):
                handle = self.model.blocks[basis.layer].mlp.register_forward_hook(
                    lambda module, inputs, out, layer=basis.layer: function(layer, out)
                )
                stack.callback(handle.remove)
        return stack

    @torch.no_grad()
    def targets(self, edits, model=None):
        """Values of every target, `[row, target]`; `edits` are rows of what is added, by (kind, layer)."""
        model = model or self.model
        n, seen, count = len(edits), {}, {}

        def added(x, key):
            out = x.clone()
            for row, edit in enumerate(edits):
                for place, pos, vector in edit:
                    if place == key:
                        out[row, pos] += vector
            return out

        def hold(name):
            def hook(x, hook):
                i = count[name] = count.get(name, -1) + 1
                return self.held[name][i % len(self.held[name])].expand_as(x)

            return hook

        def out(layer, x):
            basis = self.bases[layer]
            x = self.raw[layer].expand(n, -1, -1)
            if basis.W_skip is not None:
                moved = (self.read(basis, seen[layer]) - self.read(basis, self.inputs[layer])) @ basis.W_skip.T
                moved[:, : 1 if self.bos else 0] = 0
                x = x + moved
            return added(x, ("mlp", layer))

        def values(name):
            clip, given = model.cfg.clip_qkv, self.held[name][0]
            kept = name != self.emptied
            return lambda x, hook: torch.where(given.abs() <= clip, x, given.clamp(-clip, clip) * kept)

        hooks = [(name, hold(name)) for name in self.held if not name.endswith("hook_v")]
        clip = model.cfg.clip_qkv
        hooks += [(name, values(name)) for name in self.held if name.endswith("hook_v") and clip is not None]
        hooks += [(b.hook_in, self._into(seen, b.layer)) for b in self.bases]
        hooks += [(b.hook_out, lambda x, hook, layer=b.layer: out(layer, x)) for b in self.bases if not self._early(b)]
        hooks += [(name, lambda x, hook, name=name: added(x, name)) for name in self.first_embed]
        hooks += [("unembed.hook_in", self._into(seen, "final"))]
        with hooked(model, hooks), self._modules(out) if model is self.model else self._on(model, out):
            model.cfg.clip_qkv = None if clip is None else 1e9
            try:
                for block in model.blocks:
                    block.attn.cfg.clip_qkv = model.cfg.clip_qkv
                model(self.tokens.expand(n, -1))
            finally:
                model.cfg.clip_qkv = clip
                for block in model.blocks:
                    block.attn.cfg.clip_qkv = clip
        return torch.stack([self.value(node, seen, model) for node in self.graph.targets], 1)

    def _on(self, model, out):
        mine, self.model = self.model, model
        stack = self._modules(out)
        self.model = mine
        return stack

    @staticmethod
    def read(basis, x):
        return basis.read(x) if isinstance(basis, CrossLayerTranscoder) else x

    def weights(self, basis, node):
        """What a feature reads, by the dictionary's own tensors."""
        if isinstance(basis, GatedNeurons):
            W, b = (basis.W_gate, basis.b_gate) if node.part == "gate" else (basis.W_linear, basis.b_linear)
            return W[:, node.index], b[node.index]
        W = basis.W_enc[node.index] if isinstance(basis, CrossLayerTranscoder) else basis.W_enc[:, node.index]
        return W, basis.b_enc[node.index]

    def value(self, node, seen, model):
        if node.kind == "feature":
            basis = self.bases[node.layer]
            w, b = self.weights(basis, node)
            return self.read(basis, seen[node.layer])[:, node.pos] @ w + b
        logits = seen["final"][:, node.pos] @ model.W_U + model.b_U
        return logits[:, node.index] - logits.mean(1)

    def decoder(self, basis, index, layer):
        W = basis.W_dec
        return W[index, layer - basis.layer] if W.ndim == 3 else W[index]

    def explained(self, layer):
        """What the dictionaries write to one layer's MLP, where it is not a BOS."""
        out = self.bases[layer].b_dec.expand_as(self.raw[layer][0]).clone()
        for basis in self.bases:
            if layer in basis.reaches:
                acts = basis.activations(self.inputs[basis.layer][0])
                acts[: 1 if self.bos else 0] = 0
                W = basis.W_dec if basis.W_dec.ndim == 2 else basis.W_dec[:, layer - basis.layer]
                out += acts @ W
        basis = self.bases[layer]
        return out if basis.W_skip is None else out + self.read(basis, self.inputs[layer][0]) @ basis.W_skip.T

    def edit(self, node):
        """What is added to take a source out."""
        first = range(1 if self.bos else 0, self.tokens.shape[1])
        if node.kind == "feature":
            basis = self.bases[node.layer]
            return [
                (("mlp", layer), node.pos, -node.value * self.decoder(basis, node.index, layer))
                for layer in basis.reaches
            ]
        if node.kind == "error":
            left = self.raw[node.layer][0] - self.explained(node.layer)
            return [(("mlp", node.layer), node.pos, -left[node.pos])]
        if node.kind == "bos":
            return [(("mlp", node.layer), 0, -self.raw[node.layer][0, 0])]
        if node.kind in ("token", "position"):
            name = "hook_embed" if node.kind == "token" else "hook_pos_embed"
            return [(name, node.pos, -self.first_embed[name][0, node.pos])]
        if node.name == "b_dec":
            return [(("mlp", node.layer), pos, -self.bases[node.layer].b_dec) for pos in first]
        return None

    def columns(self, chosen):
        """Columns of the matrix by ablation: those of sources whose value can be taken out of a run."""
        edits = [[], *(self.edit(self.graph.sources[i]) for i in chosen)]
        values = self.targets(edits)
        return (values[:1] - values[1:]).T

    def bias_column(self, node):
        """A bias's column: its parameter set to 0 in a copy of the model."""
        before = self.targets([[]])[0]
        if node.name == "b_enc":
            own = [t.kind == "feature" and t.layer == node.layer for t in self.graph.targets]
            values = [
                float(self.weights(self.bases[t.layer], t)[1]) if mine else 0.0
                for t, mine in zip(self.graph.targets, own, strict=True)
            ]
            return torch.tensor(values).to(before)
        if node.name == "clipped_v":
            self.emptied = f"blocks.{node.layer}.attn.hook_v"
            try:
                return before - self.targets([[]])[0]
            finally:
                self.emptied = ""
        model = copy.deepcopy(self.model)
        self.parameter(model, node).data.zero_()
        return before - self.targets([[]], model)[0]

    @staticmethod
    def parameter(model, node):
        if node.name in ("ln_final.b", "b_U"):
            return model.ln_final.b if node.name == "ln_final.b" else model.unembed.b_U
        block = model.blocks[node.layer]
        if node.name.endswith(".b"):
            return getattr(block, node.name[:-2]).b
        return (
            getattr(block.attn, f"_{node.name}", None)
            if hasattr(block.attn, f"_{node.name}")
            else getattr(block.attn, node.name)
        )


def traced(model, bases, **options):
    return mk.trace(model, TOKENS, bases, node_threshold=1.0, check=False, max_logits=2, **options)
