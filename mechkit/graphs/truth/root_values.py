"""The value of a root in an edited run: what is read where the model has it, and what is made of it.

A logit comes off the logits, measured as the graph measures it. Every other root is a direction at a site, read
before the norm that may lie between, so that any engine can give the site.

    reader = RootReader.of(graph, 0)
    reader.value(read, norms_held=False)            # one number per run
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.metrics import Metric
from mechkit.core.places import n_heads
from mechkit.core.site import Site
from mechkit.core.sweep import sweep
from mechkit.graphs.engine.layers import Norm
from mechkit.graphs.engine.reading import input_of
from mechkit.graphs.engine.roots import Root

_NORMED = {"ln1.normalized": "ln1", "ln2.normalized": "ln2"}
"""Sites that hold what a norm before a block's part puts out."""


@dataclass(frozen=True, eq=False)
class RootReader:
    """Where a root is read and how: `x` at `site`, through `norm` where there is one, times what the root reads."""

    engine: Any
    """The `Attribution` that the root belongs to."""
    root: Root
    """The root."""
    site: Site
    """The site that is read, its position counted from 0."""
    norm: Norm | None
    """The norm between the site and what the root reads, its scale that of the prompt."""

    @classmethod
    def of(cls, graph, number: int) -> "RootReader":
        """The reader of a graph's root with this number."""
        engine, root = graph.attribution, graph.attribution.roots[number]
        frozen, site = engine.frozen, root.site
        layer, pos, last = int(site.layer or 0), int(site.pos or 0), frozen.model.cfg.n_layers - 1
        maps = frozen.layers[layer]
        if site.name in ("logits", "ln_final"):
            norm = frozen.final_norm if site.name == "logits" or frozen.final_norm is None else frozen.final_norm.plain
            return cls(engine, root, Site("resid_post", last, pos=pos), norm)
        if site.name in _NORMED:
            norm = maps.before_attention if site.name.startswith("ln1") else maps.before_mlp
            return cls(engine, root, _before(frozen, layer, pos, site.name), None if norm is None else norm.plain)
        if site.basis is not None:
            read = input_of(frozen, engine.bases[layer])
            return cls(engine, root, _before(frozen, layer, pos, read.site), read.norm)
        head = site.head
        if head is not None:  # several heads may share a key/value head
            head = int(head) // (maps.n_heads // n_heads(frozen.model, site.name))
        return cls(engine, root, site.at(head=head, index=None), None)

    def value(self, x: Float[Tensor, "run d"], *, norms_held: bool) -> Float[Tensor, "run"]:
        """The root in each run, from the slices of `site`; a gated neuron's parts each times its slope at the prompt.

        `norms_held` says whether the runs held the scales of norms.
        """
        x = self._normed(x, norms_held)
        if self.root.site.basis is None:
            return x @ self.root.vector.to(x) + self.root.added.to(x)
        basis = self.engine.bases[int(self.root.site.layer or 0)]
        index, pos = int(self.root.site.index or 0), int(self.root.site.pos or 0)
        sums = [one[:, index] for one in basis.sums(x)]
        if len(sums) == 1:
            return sums[0]
        slopes = [slope[0, index] for slope in basis.slopes(self.engine.mlp_in(basis)[pos : pos + 1])]
        return torch.stack([one * slope for one, slope in zip(sums, slopes, strict=True)]).sum(0)

    def of_hook(self, seen: Mapping[str, Tensor], *, norms_held: bool) -> Float[Tensor, "run"]:
        """The same from what whole hooks hold, `[run, pos, ...]`, by name."""
        x = seen[self.site.hook][:, int(self.site.pos or 0)]
        return self.value(x if self.site.head is None else x[:, int(self.site.head)], norms_held=norms_held)

    def _normed(self, x: Float[Tensor, "run d"], held: bool) -> Float[Tensor, "run d"]:
        if self.norm is None:
            return x
        pos = int(self.site.pos or 0)
        scale = self.norm.scale[pos : pos + 1].expand(len(x), 1) if held else self._scales(x)
        out = self.norm.at(x, scale)
        return out if self.norm.b is None else out + self.norm.b

    def _scales(self, x: Float[Tensor, "run d"]) -> Float[Tensor, "run 1"]:
        """The scale that the norm takes of each run."""
        x = x - x.mean(-1, keepdim=True) if self.norm is not None and self.norm.centred else x
        return (x.square().mean(-1, keepdim=True) + self.engine.frozen.model.cfg.eps).sqrt()


def _before(frozen, layer: int, pos: int, name: str) -> Site:
    """The residual stream that the norm before a part reads, for the name or site of what it puts out."""
    attention = name.endswith(("ln1.normalized", "resid_pre")) or frozen.model.cfg.parallel_attn_mlp
    return Site("resid_pre" if attention else "resid_mid", layer, pos=pos)


def measured(graph, runs: Sequence, roots: Sequence[int], *, frozen: bool) -> Float[Tensor, "root run"]:
    """Each root's value in every run (lists of interventions); with `frozen`, attention patterns and scales are held.

    Cost: one sweep over the runs.
    """
    held = graph.attribution.frozen
    readers = {i: RootReader.of(graph, i) for i in roots if graph.roots[i].kind != "logit"}
    logits = [i for i in roots if i not in readers]
    metrics = [logit_metric(graph, graph.roots[i].index) for i in logits] or [_NOTHING]
    sites = list(dict.fromkeys(reader.site for reader in readers.values()))
    base = held.freeze(mlps=False) if frozen else []
    found = sweep(held.model, held.prompts, runs, metrics, base=base, read=sites)
    values = {i: found.scores[:, 0, k] for k, i in enumerate(logits)}
    values |= {i: one.value(found.read[one.site][:, 0], norms_held=frozen) for i, one in readers.items()}
    return torch.stack([values[i] for i in roots])


def logit_metric(graph, token: int) -> Metric:
    """A token's logit after the prompt, as the graph measures it: before a soft-cap, from the mean if centred."""
    centred, cap = graph.meta["logits"] != "raw", graph.attribution.frozen.soft_cap

    def compute(logits: Tensor, prompts) -> Tensor:
        last = logits[:, -1] if cap is None else cap * torch.atanh(logits[:, -1] / cap)
        return last[:, token] - last.mean(-1) if centred else last[:, token]

    return Metric("logit", "logits", "last", compute)


_NOTHING = Metric("nothing", "logits", "last", lambda logits, prompts: logits[:, -1, 0])
"""For sweeps that only read sites."""
