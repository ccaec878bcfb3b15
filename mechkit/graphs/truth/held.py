"""Many edited runs of one prompt with chosen parts held at their values there.

What can be held: attention patterns, the scales of norms, MLP outputs of some layers (their skip connections still
move with their input, as the matrix has it), and dictionaries' errors, which puts the dictionaries in the MLPs' place.
Every run is a row of a batch; an edit is a vector added to what an MLP writes at a position.

    runs = HeldRuns(graph, Hold(attention=True, norms=True, mlps=range(2)))
    runs.read([{}, {(0, 3): vector}], ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]   # [run, pos, d_model]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Hook
from mechkit.core.loop import hooked
from mechkit.core.progress import progress

ROOM = 1 << 28
"""Bytes that the rows of one batch may take, roughly."""

Shift = Mapping[tuple[int, int], Float[Tensor, "d_model"]]
"""What is added to what MLPs write, by layer and position."""


@dataclass(frozen=True)
class Hold:
    """What runs hold at the prompt's values."""

    attention: bool = False
    """Attention patterns."""
    norms: bool = False
    """Scales of all norms."""
    mlps: range = range(0)
    """Layers whose features and errors are held, but for what an edit changes."""
    errors: bool = False
    """What dictionaries miss: they stand in for the MLPs, and norms after MLPs keep their scales."""

    def holds(self, name: str) -> bool:
        """Whether a site of this name, a pattern or a scale, is held."""
        return self.attention if name == "pattern" else self.norms


class HeldRuns:
    """Edited runs of a graph's prompt."""

    def __init__(self, graph, hold: Hold) -> None:
        self.engine, self.hold = graph.attribution, hold
        self.frozen = self.engine.frozen
        self.model, self.tokens = self.frozen.model, self.frozen.prompts.tokens
        self.n_layers = self.model.cfg.n_layers

    @torch.no_grad()
    def read(self, runs: Sequence[Shift], hooks: Iterable[str]) -> dict[str, Float[Tensor, "run pos *slice"]]:
        """What these hooks hold in every run. Cost: a row of a forward pass without unembedding for each run."""
        wanted, parts = list(dict.fromkeys(hooks)), []
        for start in progress(range(0, len(runs), self.n_rows), "held runs"):
            found: dict[str, Tensor] = {}
            self._run(runs[start : start + self.n_rows], wanted, found, unembed=False)
            parts.append(found)
        return {hook: torch.cat([part[hook] for part in parts]) for hook in wanted}

    @torch.no_grad()
    def all(
        self, runs: Sequence[Shift], hooks: Iterable[str]
    ) -> tuple[Float[Tensor, "run vocab"], dict[str, Float[Tensor, "run pos *slice"]]]:
        """Logits after the prompt in every run, as the model gives them, and what these hooks hold. For few runs."""
        found: dict[str, Tensor] = {}
        return self._run(runs, list(dict.fromkeys(hooks)), found, unembed=True)[:, -1], found

    @property
    def n_rows(self) -> int:
        """Runs that go into one batch."""
        cfg, n_pos = self.model.cfg, self.tokens.shape[1]
        widths = 12 * cfg.d_model + 4 * (cfg.d_mlp or 0) + 3 * cfg.n_heads * n_pos + cfg.d_vocab_out
        return max(1, ROOM // (self.frozen.final.element_size() * n_pos * widths))

    def _run(self, runs: Sequence[Shift], wanted: Sequence[str], found: dict[str, Tensor], *, unembed: bool) -> Tensor:
        """One batch: its logits, or the last residual stream."""
        seen: dict[str, Tensor] = {}
        hooks = [*self._held(), *self._inputs(seen), *self._outputs(runs, seen)]
        hooks += [(name, lambda x, hook, name=name: found.__setitem__(name, x)) for name in wanted]
        with hooked(self.model, hooks):
            return self.model(self.tokens.expand(len(runs), -1), stop_at_layer=None if unembed else self.n_layers)

    def _held(self) -> list[Hook]:
        """Hooks that hold patterns and scales."""
        held = [one for one in self.frozen.freeze(mlps=False) if self.hold.holds(one.site.name)]
        return [hook for one in held for hook in one.hooks(self.model, self.frozen.prompts)]

    def _inputs(self, seen: dict[str, Tensor]) -> list[Hook]:
        """Hooks that note what dictionaries read, where that matters."""
        reading = [basis.hook_in for basis in self.engine.bases if self.hold.errors or basis.W_skip is not None]
        return [(name, lambda x, hook, name=name: seen.__setitem__(name, x)) for name in reading]

    def _outputs(self, runs: Sequence[Shift], seen: dict[str, Tensor]) -> list[Hook]:
        """Hooks that hold MLP outputs and add what the edits say."""
        return [
            (f"blocks.{layer}.hook_mlp_out", self._output(layer, self._added(runs, layer), seen))
            for layer in range(self.n_layers)
            if not self.model.cfg.attn_only
        ]

    def _output(self, layer: int, added: Tensor | None, seen: dict[str, Tensor]):
        def hook(x: Tensor, hook) -> Tensor:
            if layer in self.hold.mlps:
                x = self.frozen.mlp_out(layer).expand_as(x) + self._skipped(layer, seen)
            elif self.hold.errors:
                x = self.frozen.mlp_out(layer).expand_as(x) + self._moved(layer, seen) + self._skipped(layer, seen)
            return x if added is None else x + added

        return hook

    def _added(self, runs: Sequence[Shift], layer: int) -> Tensor | None:
        """What the edits of every run add to one layer's MLP output, `[run, pos, d_model]`."""
        if not any(layer == place for run in runs for place, _ in run):
            return None
        added = self.frozen.final.new_zeros(len(runs), *self.frozen.mlp_out(layer).shape)
        for i, run in enumerate(runs):
            for (place, pos), row in run.items():
                if place == layer:
                    added[i, pos] += row
        return added

    def _skipped(self, layer: int, seen: dict[str, Tensor]) -> Tensor | float:
        """How the layer's skip connection moves with its input; not at a BOS."""
        basis = self.engine.bases[layer] if self.engine.bases else None
        if basis is None or basis.W_skip is None:
            return 0.0
        moved = (seen[basis.hook_in] - self.engine.mlp_in(basis)) @ basis.W_skip.T
        return self._through(layer, moved)

    def _moved(self, layer: int, seen: dict[str, Tensor]) -> Tensor:
        """How what features write to one layer moves with what they read."""
        moved = torch.zeros_like(self.frozen.mlp_out(layer))
        for basis in self.engine.bases:
            # a cross-layer feature of a held layer keeps its value in the layers above as well
            if layer in basis.reaches and basis.layer not in self.hold.mlps:
                change = basis.activations(seen[basis.hook_in]) - basis.activations(self.engine.mlp_in(basis))
                ids = change.flatten(0, -2).ne(0).any(0).nonzero()[:, 0].tolist()
                if ids:
                    moved = moved + change[..., ids] @ basis.writes(ids, layer)
        return self._through(layer, moved)

    def _through(self, layer: int, moved: Tensor) -> Tensor:
        """Through the norm after the MLP, its scale held; 0 at a BOS."""
        norm = self.engine.norm_after(self.engine.bases[layer])
        moved = moved.clone() if norm is None else torch.stack([norm.forward(one) for one in _batched(moved)])
        moved[..., : self.engine.mlp_positions.start, :] = 0
        return moved


def _batched(x: Tensor) -> Float[Tensor, "run pos d_model"]:
    return x if x.ndim == 3 else x[None]
