"""Pushing reading directions down a frozen model.

A target reads the residual stream at one layer and position. Its direction `g[pos, stream, target, d]` descends
through normalisation, attention and skip connections by matrix products inside the causal cone; at each place on
the way the product with what is written there is a contribution. Stream 0 holds paths that no head has carried
yet, the others what came through each head last.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.reach import Reach
from mechkit.graphs.reading import Reads

Streams = Float[Tensor, "stream target column"]
"""Contributions of the columns that targets can reach, split by the last head on the path; they sum to the rows."""


@torch.no_grad()
def push(engine, reads: Reads, reach: Reach, *, heads: bool = False) -> Streams:
    """Contributions to the targets of `reads`; one stream, or with `heads` one for no head and one for each head."""
    return Descent(engine, reads, reach, heads).run()


class Descent:
    """One descent: the directions `g` where they are now, and the contributions collected so far."""

    def __init__(self, engine, reads: Reads, reach: Reach, heads: bool) -> None:
        self.engine, self.frozen, self.reads, self.reach = engine, engine.frozen, reads, reach
        cfg = self.frozen.model.cfg
        self.width, self.heads, self.n_heads = reach.width, heads, cfg.n_heads
        n_streams = 1 + cfg.n_layers * cfg.n_heads if heads else 1
        self.out = reads.g.new_zeros(n_streams, reads.n_targets, reach.n_columns)
        self.g, self.start = reads.g[:, None], reads.start
        self.streams = [0]

    def run(self) -> Streams:
        """The contributions of everything below."""
        for (name, layer), values in self.reads.constants.items():
            self.collect(("bias", name, layer), values[None], [0])
        layer, stage = self.reads.layer, self.reads.stage
        if stage == "mlp":
            self.pass_mlp(layer, keep=False)
        if stage != "pre":
            self.pass_attention(layer, keep=stage != "attn")
        self.add_waiting()
        for below in reversed(range(layer)):
            self.pass_mlp(below)
            self.pass_attention(below)
            self.add_waiting()
        self.meet_embeddings()
        return self.out

    waiting: Tensor | None = None
    """Directions over a layer's input that wait until its attention is passed."""

    @property
    def stop(self) -> int:
        """One past the last position that `g` holds."""
        return self.start + len(self.g)

    @property
    def flat(self) -> Float[Tensor, "pos all d"]:
        """The directions of all streams in a row."""
        return self.g.flatten(1, 2)

    def collect(self, column: tuple, values: Float[Tensor, "stream target"], streams: list[int] | None = None) -> None:
        """Add to one column, where it is one of the sources."""
        if column in self.reach.local:
            self.out[self.streams if streams is None else streams, :, self.reach.local[column].start] += values

    def collect_range(self, columns: slice, values: Float[Tensor, "all column"]) -> None:
        """Add to neighbouring columns."""
        self.out[self.streams, :, columns] += values.unflatten(0, self.g.shape[1:3])

    def collect_places(self, column: tuple, first: int, written: Float[Tensor, "pos d_model"]) -> None:
        """Add to the columns of successive positions what is written at each; `first` is that of the first column."""
        start = max(self.start, first)
        if start < self.stop:
            offset = self.reach.local[column].start - first
            values = torch.einsum("pxd,pd->xp", self.flat[start - self.start :], written[start : self.stop])
            self.collect_range(slice(offset + start, offset + self.stop), values)

    def constant(self, written: Float[Tensor, "pos d_model"]) -> Float[Tensor, "stream target"]:
        """What is written at every position, as all targets see it."""
        return torch.einsum("pstd,pd->st", self.g, written[self.start : self.stop])

    # --- what is written on the way down

    def pass_mlp(self, layer: int, *, keep: bool = True) -> None:
        """Meet features, errors and biases of one MLP; go on through the residual path and any skip connection."""
        engine, first = self.engine, self.engine.mlp_positions.start
        if not engine.bases:
            return
        for written in engine.written[layer]:
            columns = written.columns(self.start, self.stop)
            if columns.start < columns.stop:
                local = self.reach.of_features(written.layer, columns)
                self.collect_range(local, written.meet(self.flat, self.start))
        self.collect_places(("error", layer), first, engine.errors[layer])
        for name, written in engine.mlp_constants[layer].items():
            self.collect(("bias", name, layer), self.constant(written))
        if engine.bos and self.start == 0:
            self.collect(("bos", layer), self.g[0] @ self.frozen.mlp_out(layer)[0])
        skip = self.over_skip(layer, first)
        self.g = self.g if keep else torch.zeros_like(self.g)
        if skip is not None and engine.inputs[layer].stage == "mid":
            self.g = self.g + skip
        else:
            self.waiting = skip

    def over_skip(self, layer: int, first: int) -> Tensor | None:
        """Directions over the stage that a dictionary's skip connection reads; None where it has none."""
        basis, where = self.engine.bases[layer], self.engine.inputs[layer]
        if basis.W_skip is None:
            return None
        norm, g = self.engine.norm_after(basis), self.flat
        skip = (g if norm is None else norm.back(g, self.start)) @ basis.W_skip
        skip[: max(0, first - self.start)] = 0
        return (skip if where.norm is None else where.norm.back(skip, self.start)).view_as(self.g)

    def pass_attention(self, layer: int, *, keep: bool = True) -> None:
        """Meet the biases of one attention layer; go on through the residual path and every head."""
        for name, written in self.engine.attention_constants[layer].items():
            if self.heads and len(written) > 1:
                own = torch.stack([self.constant(one)[0] for one in written])
                self.collect(("bias", name, layer), own, self.ids(layer))
                if len(self.streams) > 1:
                    self.collect(("bias", name, layer), self.constant(written.sum(0))[1:], self.streams[1:])
            else:
                self.collect(("bias", name, layer), self.constant(written.sum(0)))
        maps, (_, n_streams, n_targets, d) = self.frozen.layers[layer], self.g.shape
        n_new = len(self.ids(layer)) if self.heads else 0
        g = self.g.new_zeros(self.width, n_streams + n_new, n_targets, d)
        if keep:
            g[self.start : self.stop, :n_streams] = self.g
        if not self.heads:
            g[:, 0] += maps.through(self.flat, self.start, self.width)
        else:
            if n_streams > 1:
                g[:, 1:n_streams] += maps.through(self.g[:, 1:].flatten(1, 2), self.start, self.width).view(
                    self.width, n_streams - 1, n_targets, d
                )
            g[:, n_streams:] = maps.through_heads(self.g[:, 0], self.start, self.width).transpose(0, 1)
            self.streams = [*self.streams, *self.ids(layer)]
        self.before, self.g, self.start = self.start, g, 0

    def ids(self, layer: int) -> list[int]:
        """The streams of a layer's heads."""
        return [1 + layer * self.n_heads + head for head in range(self.n_heads)]

    def add_waiting(self) -> None:
        """What a skip connection read before the attention that has just been passed."""
        if self.waiting is not None:
            n_pos, n_streams = self.waiting.shape[:2]
            self.g[self.before : self.before + n_pos, :n_streams] += self.waiting
            self.waiting = None

    before: int = 0
    """The first position that `g` held before the last attention."""

    def meet_embeddings(self) -> None:
        """Meet tokens and positions."""
        values = self.frozen.values
        self.collect_places(("token",), 0, values["embed"][0])
        if ("position",) in self.reach.local:
            self.collect_places(("position",), 0, values["pos_embed"][0])
