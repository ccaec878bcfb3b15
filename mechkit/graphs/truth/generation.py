"""Steering while a model generates: plain TransformerLens hooks that know where in the text they are.

At the prompt's positions a feature's change is the one that was asked for; what is held has its values there. At later
positions, where `every` asks for it, the feature's own activation there is read and made as many times larger, set, or
raised, as it was at the prompt. With a key/value cache a later step holds one new token; without one, all so far.

    with model.hooks(fwd_hooks=steering_hooks(graph, changes(graph, {"0_12_3": 0.0}))):
        model.generate(tokens, max_new_tokens=5)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Hook
from mechkit.core.loop import hooked
from mechkit.graphs.engine.layers import Norm
from mechkit.graphs.truth.changes import Change
from mechkit.graphs.truth.exact import shift
from mechkit.graphs.truth.held import Hold


def steering_hooks(graph, made: Sequence[Change], hold: Hold | None = None, *, every: bool = False) -> list[Hook]:
    """Forward hooks that make `made` at the prompt's positions, and with `every` at all that follow.

    They serve `model(tokens)` and `model.generate(tokens)` for texts that begin with the graph's prompt, whole or with
    a key/value cache. Raises ValueError for a prompt of one token, which a cache's later steps look like, unless
    `every`, and for MLPs that are held: they have no value on tokens that the prompt has not.
    """
    return _Steering(graph, made, hold or Hold(), every).hooks()


@torch.no_grad()
def continued(graph, hooks: Sequence[Hook], n: int) -> list[int]:
    """The `n` tokens that the model goes on with, greedily, with these hooks in place.

    Cost: `n` forward passes. Raises ValueError where the context does not hold them.
    """
    frozen = graph.attribution.frozen
    model, tokens = frozen.model, frozen.prompts.tokens
    if tokens.shape[1] + n > model.cfg.n_ctx:
        raise ValueError(
            f"{tokens.shape[1]} tokens and {n} more are above the model's context of {model.cfg.n_ctx}; generate fewer"
        )
    with hooked(model, hooks):
        for _ in range(n):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[0, frozen.n_positions :].tolist()


class _Steering:
    """Hooks of one intervention. `self.start` is where the rows of the pass at hand begin in the text."""

    def __init__(self, graph, made: Sequence[Change], hold: Hold, every: bool) -> None:
        self.engine, self.made, self.hold, self.every = graph.attribution, list(made), hold, every
        self.frozen, self.n = self.engine.frozen, self.engine.frozen.n_positions
        if len(hold.mlps) or hold.errors:
            raise ValueError(
                "MLPs and errors can be held on the prompt only; generate with attention and norms at most"
            )
        if self.n == 1 and not every:
            raise ValueError("a prompt of one token looks like a later step of a cache; give every=True")
        self.at_prompt = shift(graph, [(change.node, change.by) for change in made])
        self.later = list({(change.node.layer, change.node.index): change for change in made}.values()) if every else []
        if any(change.node.kind == "error" for change in self.later):
            raise ValueError("errors have no value after the prompt; change features, or leave every=True out")
        self.read: dict[int, Tensor] = {}
        self.scales: dict[int, Tensor] = {}

    def hooks(self) -> list[Hook]:
        layers = {layer for layer, _ in self.at_prompt}
        found = self._held()
        for layer in sorted({change.node.layer for change in self.later}):
            found.append((self.engine.bases[layer].hook_in, self._keep(self.read, layer)))
        for layer in sorted(layers):
            norm = self.engine.norm_after(self.engine.bases[layer])
            if norm is not None and self.later:
                name = self.frozen.layers[layer].after_names["mlp"]
                found.append((f"blocks.{layer}.{name}.hook_scale", self._keep(self.scales, layer)))
            found.append((f"blocks.{layer}.hook_mlp_out", self._adding(layer, norm)))
        return found

    @staticmethod
    def _keep(where: dict[int, Tensor], layer: int):
        return lambda x, hook: where.__setitem__(layer, x)

    def _whole(self, length: int) -> bool:
        """Whether a pass over so many tokens begins with the prompt."""
        return length >= self.n and (length > 1 or self.n == 1)

    def _adding(self, layer: int, norm: Norm | None):
        def hook(x: Tensor, hook) -> Tensor:
            out, whole = x.clone(), self._whole(x.shape[1])
            first_later = self.n if whole and not (self.n == 1 and self.every) else 0
            if whole and first_later:
                for (place, pos), row in self.at_prompt.items():
                    if place == layer:
                        out[:, pos] += row
            for change in self.later if x.shape[1] > first_later else ():
                if layer in self.engine.bases[change.node.layer].reaches:
                    out[:, first_later:] += self._steered(change, layer, norm, first_later)
            return out

        return hook

    def _steered(self, change: Change, layer: int, norm: Norm | None, start: int) -> Float[Tensor, "row pos d_model"]:
        """What a feature writes more at positions from `start` on."""
        basis = self.engine.bases[change.node.layer]
        active = basis.activations(self.read[basis.layer])[:, start:, change.node.index]
        by = (change.on(active) - active)[..., None] * basis.writes([change.node.index or 0], layer)[0]
        if norm is None:
            return by
        scales = self.scales[layer][:, start:].expand(*by.shape[:2], 1)
        return norm.at(by.flatten(0, 1), scales.flatten(0, 1)).view_as(by)

    def _held(self) -> list[Hook]:
        """Patterns and scales of the prompt, held wherever a pass covers it."""
        held = [one for one in self.frozen.freeze(mlps=False) if self.hold.holds(one.site.name)]
        return [(one.site.hook, self._holding(one.value, one.site.name == "pattern")) for one in held]

    def _holding(self, value: Tensor, is_pattern: bool):
        def hook(x: Tensor, hook) -> Tensor:
            if not self._whole(x.shape[2 if is_pattern else 1]):
                return x
            out = x.clone()
            if is_pattern:
                out[:, :, : self.n] = 0
                out[:, :, : self.n, : self.n] = value
            else:
                out[:, : self.n] = value
            return out

        return hook
