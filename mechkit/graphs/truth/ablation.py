"""Runs of the model in which only some features are left: all others are taken out wherever they write.

Features are live: in an edited run each has the activation that its input there gives it, and what is taken out is what
it would have written. What dictionaries miss stays as the MLP has it there, or is taken out too.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechkit.core.interventions import Hook
from mechkit.core.loop import hooked
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts, by_length
from mechkit.core.sweep import activations
from mechkit.graphs.engine.reading import mlp_input
from mechkit.graphs.nodes import Node
from mechkit.graphs.truth.held import ROOM, Hold
from mechkit.graphs.truth.root_values import RootReader


@dataclass(frozen=True)
class Left:
    """What one run leaves in."""

    features: Sequence[Node]
    """Features, at their positions."""
    others: bool = False
    """Whether it is all but `features` that is left."""
    errors: bool = True
    """Whether what dictionaries miss is left."""


class Ablations:
    """Runs of a graph's prompt with features taken out, or brought to `means[layer][pos, feature]`."""

    def __init__(self, graph, hold: Hold, means: Sequence[Tensor] | None = None) -> None:
        self.graph, self.engine, self.hold, self.means = graph, graph.attribution, hold, means
        self.frozen, self.model = self.engine.frozen, self.engine.frozen.model
        self.n_layers, self.first = self.model.cfg.n_layers, self.engine.mlp_positions.start

    @torch.no_grad()
    def values(self, runs: Sequence[Left], root: int) -> Float[Tensor, "run"]:
        """A root's value in every run. Cost: a row of a forward pass each."""
        reader, found = RootReader.of(self.graph, root), []
        for start in progress(range(0, len(runs), self.n_rows), "ablations"):
            some, seen = runs[start : start + self.n_rows], {}
            read = (reader.site.hook, lambda x, hook, seen=seen: seen.__setitem__(reader.site.hook, x))
            with self._ablated(some, [read]):
                tokens = self.frozen.prompts.tokens.expand(len(some), -1)
                self.model(tokens, stop_at_layer=self.n_layers)
            found.append(reader.of_hook(seen, norms_held=self.hold.norms))
        return torch.cat(found)

    @property
    def n_rows(self) -> int:
        """Runs that go into one batch."""
        cfg = self.model.cfg
        width = 12 * cfg.d_model + 4 * (cfg.d_mlp or 0) + 3 * cfg.n_heads * self.frozen.n_positions
        width += 4 * max((basis.d_features for basis in self.engine.bases), default=0)
        return max(1, ROOM // (self.frozen.final.element_size() * self.frozen.n_positions * width))

    @contextmanager
    def _ablated(self, runs: Sequence[Left], hooks: Sequence[Hook]) -> Iterator[None]:
        """Everything in place for a batch of runs."""
        active: dict[int, Tensor] = {}
        read: dict[int, Tensor] = {}
        held = [one for one in self.frozen.freeze(mlps=False) if self.hold.holds(one.site.name)]
        made = [hook for one in held for hook in one.hooks(self.model, self.frozen.prompts)]
        with ExitStack() as stack:
            for basis in self.engine.bases:
                made.append((basis.hook_in, self._reading(basis, self._masks(runs, basis), active, read)))
                change = self._changing(basis.layer, runs, active, read)
                if self.engine.norm_after(basis) is None:
                    made.append((f"blocks.{basis.layer}.hook_mlp_out", lambda x, hook, change=change: change(x)))
                else:  # the norm after the MLP is to see the change
                    mlp = self.model.blocks[basis.layer].mlp
                    handle = mlp.register_forward_hook(lambda module, inputs, out, change=change: change(out))
                    stack.callback(handle.remove)
            stack.enter_context(hooked(self.model, [*made, *hooks]))
            yield

    def _masks(self, runs: Sequence[Left], basis) -> Bool[Tensor, "run pos feature"]:
        """Which features are left, by run."""
        shape = len(runs), self.frozen.n_positions, basis.d_features
        masks = torch.zeros(shape, dtype=torch.bool, device=self.frozen.final.device)
        for i, run in enumerate(runs):
            for node in run.features:
                if node.layer == basis.layer:
                    masks[i, node.pos, node.index] = True
            masks[i] ^= run.others
        masks[:, : self.first] = True
        return masks

    def _reading(self, basis, left: Tensor, active: dict[int, Tensor], read: dict[int, Tensor]):
        """Notes what features read and are, and what of it is taken out."""

        def hook(x: Tensor, hook) -> None:
            acts = basis.activations(x)
            means = 0.0 if self.means is None else self.means[basis.layer]
            active[basis.layer] = torch.stack([acts, (acts - means).masked_fill(left, 0)])
            read[basis.layer] = x

        return hook

    def _changing(self, layer: int, runs: Sequence[Left], active: dict[int, Tensor], read: dict[int, Tensor]):
        """From an MLP's output to what is left of it."""
        errors = torch.tensor([run.errors for run in runs], device=self.frozen.final.device)

        def change(out: Tensor) -> Tensor:
            basis = self.engine.bases[layer]
            made, gone = basis.b_dec.expand_as(out), torch.zeros_like(out)
            if basis.W_skip is not None:
                made = made + read[layer] @ basis.W_skip.T
            for one in self.engine.bases:
                if layer in one.reaches:
                    ids = active[one.layer].flatten(0, -2).ne(0).any(0).nonzero()[:, 0].tolist()
                    written = active[one.layer][..., ids] @ one.writes(ids, layer) if ids else out.new_zeros(2, 1, 1, 1)
                    made, gone = made + written[0], gone + written[1]
            left = torch.where(errors[:, None, None], out, made) - gone
            left[:, : self.first] = out[:, : self.first]
            return left

        return change


@torch.no_grad()
def mean_activations(graph, reference: Prompts) -> list[Float[Tensor, "pos feature"]]:
    """By layer, each feature's mean activation on other prompts: at each position where all have as many tokens as the
    graph's prompt, else over all positions, the same for each. Cost: one forward pass per prompt length.
    """
    engine, n = graph.attribution, graph.attribution.frozen.n_positions
    first = engine.mlp_positions.start
    aligned = set(reference.lengths) == {n}
    found = []
    for basis in engine.bases:
        acts = []
        for rows in by_length(reference):
            x = activations(engine.frozen.model, reference[rows], mlp_input(basis))[mlp_input(basis)]
            acts.append(basis.activations(x)[:, 0 if aligned else first :])
        if aligned:
            found.append(torch.cat(acts).mean(0))
        else:
            found.append(torch.cat([one.flatten(0, 1) for one in acts]).mean(0).expand(n, -1))
    return found
