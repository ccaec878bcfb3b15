"""Pushing reading directions down a frozen model.

A target reads the residual stream at one layer and position. Its direction `g[pos, target, d]` descends through
normalisation, attention and skip connections by matrix products inside the causal cone; at each place on the way the
product with what is written there is a contribution. With heads apart there is one direction for each stream: the
first holds paths that no head has carried yet, the others what came through each head last.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.engine.layers import Directions
from mechkit.graphs.engine.reach import Reach
from mechkit.graphs.engine.reading import Reads

Streams = Float[Tensor, "stream target column"]
"""Contributions of the columns that targets can reach, split by the last head on the path; they sum to the rows."""


@torch.no_grad()
def push(engine, reads: Reads, reach: Reach, *, heads: bool = False) -> Streams:
    """Contributions to the targets of `reads`; one stream, or with `heads` one for no head and one for each head."""
    return Descent(engine, reads, reach, heads).run()


class Descent:
    """One descent: the directions `g` where they are now, those of one stream after another, and what they met."""

    def __init__(self, engine, reads: Reads, reach: Reach, heads: bool) -> None:
        self.engine, self.frozen, self.reads, self.reach = engine, engine.frozen, reads, reach
        cfg = self.frozen.model.cfg
        self.width, self.heads, self.n_heads, self.n_targets = reach.width, heads, cfg.n_heads, reads.n_targets
        n_streams = 1 + cfg.n_layers * cfg.n_heads if heads else 1
        self.all = reads.g.new_zeros(n_streams * reads.n_targets, reach.n_columns)
        self.g: Directions = reads.g
        self.start = reads.start
        self.streams = [0]
        self.waiting: Directions | None = None
        self.first = engine.first if self.start > 0 and not heads else None
        if self.first is not None:  # they are sorted by layer, so those that are reached come first
            reached = [reach.local[column].start for column in self.first.columns if column in reach.local]
            self.first_columns = torch.tensor(reached, device=self.all.device)

    def run(self) -> Streams:
        """The contributions of everything below."""
        for (name, layer), values in self.reads.constants.items():
            self.collect(("bias", name, layer), values)
        layer, stage = self.reads.layer, self.reads.stage
        if stage == "mlp":
            self.pass_mlp(layer, keep=False)
        if stage != "pre":
            self.pass_attention(layer, keep=stage != "attn")
        for below in reversed(range(layer)):
            self.pass_mlp(below)
            self.pass_attention(below)
        self.meet_embeddings()
        return self.in_order()

    def in_order(self) -> Streams:
        """The streams by layer and head; they came in descending layers."""
        every = self.all.unflatten(0, (-1, self.n_targets))
        if not self.heads:
            return every
        out = torch.zeros_like(every)
        out[self.streams] = every[: len(self.streams)]
        return out

    # --- what is met

    @property
    def out(self) -> Float[Tensor, "target column"]:
        """The contributions of the streams that there are."""
        return self.all[: len(self.streams) * self.n_targets]

    def collect(self, column: tuple, values: Float[Tensor, "target"], start: int = 0) -> None:
        """Add to one column, where it is one of the sources; `start` is the first of the rows that these are for."""
        if column in self.reach.local:
            self.all[start : start + len(values), self.reach.local[column].start] += values

    def collect_places(self, column: tuple, first: int, values: Float[Tensor, "pos target"], start: int) -> None:
        """Add to the columns of successive positions from `start` on; `first` is that of the first column."""
        skipped = max(0, first - start)
        if skipped < len(values):
            there = self.reach.local[column].start + start + skipped - first
            self.out[:, there : there + len(values) - skipped] += values[skipped:].T

    def meet_beside(self, layer: int, place: str) -> None:
        """Meet errors and biases, which are written at the MLP's output or by attention."""
        beside = self.engine.beside[layer][place]
        met = beside.meet(self.g, self.start)
        sums = met.sum(0).T
        for i, column in enumerate(beside.columns):
            if column[0] == "error":
                self.collect_places(column, self.engine.mlp_positions.start, met[..., i], self.start)
            elif self.heads and column[:2] == ("bias", "ln1.b"):
                self.collect_by_head(column, sums[i])
            else:
                self.collect(column, sums[i])

    def collect_by_head(self, column: tuple, values: Float[Tensor, "target"]) -> None:
        """Add what a bias writes through each head: to the head's own stream where no head has come before."""
        self.collect(column, values[self.n_targets :], self.n_targets)
        own = self.engine.by_head(column[2])[:, self.start : self.start + len(self.g)]
        met = torch.einsum("ptd,hpd->ht", self.g[:, : self.n_targets], own)
        self.collect(column, met.flatten(), len(values))

    def meet_embeddings(self) -> None:
        """Meet tokens and positions."""
        for kind, site in (("token", "embed"), ("position", "pos_embed")):
            if (kind,) in self.reach.local:
                written = self.frozen.values[site][0, self.start : self.start + len(self.g)]
                self.collect_places((kind,), 0, (self.g @ written[..., None])[..., 0], self.start)

    # --- the way down

    def pass_mlp(self, layer: int, *, keep: bool = True) -> None:
        """Meet features, errors and biases of one MLP; go on through the residual path and any skip connection."""
        engine, stop = self.engine, self.start + len(self.g)
        if not engine.bases:
            return
        for written in engine.written[layer]:
            columns = written.columns(self.start, stop)
            if columns.start < columns.stop:
                written.meet(self.g, self.start, self.out[:, self.reach.of_features(written.layer, columns)])
        self.meet_beside(layer, "mlp")
        if engine.bos and self.start == 0:
            self.collect(("bos", layer), self.g[0] @ self.frozen.mlp_out(layer)[0])
        skip = self.over_skip(layer, engine.mlp_positions.start)
        self.g = self.g if keep else torch.zeros_like(self.g)
        if skip is not None and engine.inputs[layer].stage == "mid":
            self.g = self.g + skip
        else:
            self.waiting = skip

    def over_skip(self, layer: int, first: int) -> Directions | None:
        """Directions over the stage that a dictionary's skip connection reads; None where it has none."""
        basis, where = self.engine.bases[layer], self.engine.inputs[layer]
        if basis.W_skip is None:
            return None
        norm = self.engine.norm_after(basis)
        skip = (self.g if norm is None else norm.back(self.g, self.start)) @ basis.W_skip
        skip[: max(0, first - self.start)] = 0
        return skip if where.norm is None else where.norm.back(skip, self.start)

    def pass_attention(self, layer: int, *, keep: bool = True) -> None:
        """Meet the biases of one attention layer; go on through the residual path and every head."""
        self.meet_beside(layer, "attention")
        if layer == 0 and keep and not self.heads and self.engine.spread:
            self.meet_spread()
            return
        seen = range(0 if self.first is None else 1, self.width)
        here = slice(self.start - seen.start, self.start - seen.start + len(self.g))
        below = self.below_by_head(layer) if self.heads else self.below(layer, seen)
        if keep:
            below[here, : self.g.shape[1]] += self.g
        if self.waiting is not None:  # a skip connection read what goes into this attention
            below[here, : self.waiting.shape[1]] += self.waiting
        self.g, self.start, self.waiting = below, seen.start, None

    def below(self, layer: int, seen: range) -> Directions:
        """Directions below one attention layer, all heads together; at a known first position they end."""
        maps = self.frozen.layers[layer]
        z = maps.over_z(self.g, self.start)
        if self.first is not None:
            met = maps.over_first(z, self.start) @ self.first.values[layer]
            self.out.index_add_(1, self.first_columns[: met.shape[1]], met)
        return maps.below(z, self.start, seen)

    def meet_spread(self) -> None:
        """Meet embeddings through the first attention and past it; what a skip connection read before it is left."""
        for kind, written in self.engine.spread.items():
            met = self.g @ written[self.start : self.start + len(self.g), :, : self.width]
            self.out[:, self.reach.local[kind,]] += met.sum(0)
        self.g = self.g[:0] if self.waiting is None else self.waiting

    def below_by_head(self, layer: int) -> Directions:
        """Directions below one attention layer, and a new stream for each head from what no head has carried yet."""
        maps, n = self.frozen.layers[layer], self.n_targets
        fresh = maps.through_heads(self.g[:, :n], self.start, self.width).transpose(0, 1).flatten(1, 2)
        carried = maps.through(self.g[:, n:], self.start, self.width)
        self.streams = [*self.streams, *(1 + layer * self.n_heads + head for head in range(self.n_heads))]
        return torch.cat([torch.zeros_like(fresh[:, :n]), carried, fresh], 1)
