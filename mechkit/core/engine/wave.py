"""The wave: all edited runs in one pass over the layers, each joining where its first edit changes something.

At every stage the rows that are due there are laid out in full, `[row, pos, ...]`, from the base run and their own
tokens; their edits are made; and what changed goes back to the packed tokens. Everything between stages is plain
arithmetic on packed tokens.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mechkit.core.engine.agenda import HIDDEN, Stage, bits
from mechkit.core.engine.attention import attend
from mechkit.core.engine.base import BaseRun
from mechkit.core.engine.front import Front, Rows
from mechkit.core.engine.fused import Fused, Layer
from mechkit.core.places import cut

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Packed values, each beside the base run's `[prompt, pos, ...]`."""


class Wave:
    """One pass over the layers with the rows of some runs."""

    def __init__(
        self,
        fused: Fused,
        base: BaseRun,
        rows: Rows,
        runs: Sequence[int],
        last_only: bool,
        slab: int,
        block: int,
        reads: dict,
    ) -> None:
        self.base, self.rows, self.slab, self.block, self.reads = base, rows, slab, block, reads
        self.fused, self.agenda = fused, base.agenda
        self.cfg, self.n_pos = fused.cfg, base.n_pos
        self.front = Front(rows, self.n_pos, base.logits.device)
        self.runs = set(runs)
        self.last_only = last_only
        self.floor = 0
        """Positions before it are no longer needed."""

    def run(self) -> Tensor:
        """The last block's residual stream of the packed tokens."""
        first = min((self.agenda.first_layer(run) for run in self.runs), default=0)
        x = self._embed() if first < 0 else self.base.logits.new_empty(0, self.cfg.d_model)
        for i in range(max(first, 0), self.cfg.n_layers):
            x = self._block(i, self.fused.layer(i), x)
        return x

    def _embed(self) -> Tensor:
        base, standard = self.base, self.cfg.positional_embedding_type == "standard"
        empty = base.logits.new_empty(0, self.cfg.d_model)
        embed, *rest = self.edit((-1, "embed"), empty, [(empty, base.value[-1, "pos_embed"])] if standard else [])
        if not standard:
            return embed
        positions, embed = self.edit((-1, "pos_embed"), rest[0], [(embed, base.value[-1, "embed"])])
        return embed + positions

    def _block(self, i: int, layer: Layer, x: Tensor) -> Tensor:
        at = self.edit
        (x,) = at((i, "resid_pre"), x, [])
        if not self.front.joined.any() and not self._any_due(i):
            return x
        x_base = self.base.value[i, "resid_pre"]
        trimmed = self.last_only and i == self.cfg.n_layers - 1
        z, x = attend(self, i, layer, x, self.n_pos - 1 if trimmed else 0)
        z, x = at((i, "z"), z, [(x, x_base)])
        if (i, "result") in self.agenda.stages:
            results, x = at((i, "result"), layer.results(z), [(x, x_base)])
            out = results.sum(1) + layer.b_O
        else:
            out = layer.out(z.flatten(1))
        out, x = at((i, "attn_out"), out, [(x, x_base)])
        mid = x + out
        if layer.mlp is None:
            return at((i, "resid_post"), mid, [])[0]
        if not self.cfg.parallel_attn_mlp:
            (mid,) = at((i, "resid_mid"), mid, [])
            x = mid
        mid, out = self._mlp(i, layer, mid, x)
        return at((i, "resid_post"), mid + out, [])[0]

    def _mlp(self, i: int, layer: Layer, mid: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stream that the MLP adds to, and what it adds, from its input `x`."""
        mid_base = self.base.value.get((i, "mid"), mid)  # looked at only where something happens
        if not self.agenda.any(i, HIDDEN):
            out = layer.mlp_in_blocks(x, self.block)
        else:
            pre, linear = layer.mlp_pre(layer.norm2(x))
            others = [(mid, mid_base)] + ([] if linear is None else [(linear, self.base.value[i, "mlp_pre_linear"])])
            pre, mid, *rest = self.edit((i, "mlp_pre"), pre, others)
            if rest:
                linear, mid, pre = self.edit(
                    (i, "mlp_pre_linear"), rest[0], [(mid, mid_base), (pre, self.base.value[i, "mlp_pre"])]
                )
            post, mid = self.edit((i, "mlp_post"), layer.mlp_post(pre, linear if rest else None), [(mid, mid_base)])
            out = layer.mlp_out(post)
        out, mid = self.edit((i, "mlp_out"), out, [(mid, mid_base)])
        return mid, out

    def _any_due(self, layer: int) -> bool:
        return any(stage[0] == layer and not self.runs.isdisjoint(edits) for stage, edits in self.agenda.edits.items())

    def due(self, stage: Stage) -> np.ndarray:
        """Which rows have edits of their own at `stage`."""
        here = [run for run in self.agenda.edits.get(stage, {}) if run in self.runs]
        return np.isin(self.rows.run, here) if here else np.zeros(len(self.rows), dtype=bool)

    def edit(self, stage: Stage, values: Tensor, others: Pairs) -> list[Tensor]:
        """Packed `values` after the edits at `stage`, then `others`, all with the rows that join here added."""
        tensors = [values, *(packed for packed, _ in others)]
        if stage not in self.agenda.stages:
            return tensors
        bases = [self.base.value[stage], *(base for _, base in others)]
        due, shared = self.due(stage), bool(self.agenda.base.get(stage))
        before = self.front.joined.copy()
        changing = before if shared else before & due
        if changing.any():
            tensors = self._edit_joined(stage, changing, tensors, bases)
        joining = due & ~before
        if joining.any():
            tensors = self._join(stage, np.flatnonzero(joining), tensors, bases)
        if stage in self.agenda.reads:
            self._read(stage, tensors[0])
        return tensors

    def apply(self, stage: Stage, values: Tensor, rows: np.ndarray, shared: bool) -> None:
        """Make the edits of `rows` at `stage` in `values[row, pos, ...]`; if `shared`, after those of all runs."""
        if shared and self.agenda.base.get(stage):
            self.agenda.apply(self.agenda.base[stage], values, self.rows.prompt[rows])
        own = self.agenda.edits.get(stage, {})
        runs = self.rows.run[rows]
        left = self.agenda.put(stage, values, runs, self.rows.prompt[rows])
        if not left.any():
            return
        ends = [0, *(np.flatnonzero(np.diff(runs)) + 1).tolist(), len(rows)]
        for a, b in pairwise(ends):
            if left[a] and (edits := own.get(int(runs[a]))):
                self.agenda.apply(edits, values[a:b], self.rows.prompt[rows[a:b]])

    def _edit_joined(self, stage: Stage, changing: np.ndarray, tensors: list, bases: list) -> list[Tensor]:
        front, raw, values = self.front, self.base.raw[stage], tensors[0].clone()
        for (start, rows), part in zip(front.groups, front.dense(values), strict=True):
            chosen = np.flatnonzero(changing[rows])
            for some in np.array_split(chosen, -(-len(chosen) // self.slab)) if len(chosen) else []:
                at = front.index(some)
                full = front.of_rows(raw, rows[some])
                full[:, start:] = part[at]
                self.apply(stage, full, rows[some], True)
                part[at] = full[:, start:]
        tensors = [values, *tensors[1:]]
        here = np.flatnonzero(changing[front.loose_row])
        return self._edit_loose(stage, here, tensors, bases) if len(here) else tensors

    def _edit_loose(self, stage: Stage, here: np.ndarray, tensors: list, bases: list) -> list[Tensor]:
        """Loose rows that are edited again, perhaps at positions they do not hold yet."""
        front = self.front
        rows, number = np.unique(front.loose_row[here], return_inverse=True)
        at, pos = front.index(front.n_dense + here), (front.index(number), front.index(front.loose_pos[here]))
        full = front.of_rows(self.base.raw[stage], rows)
        full[pos] = tensors[0][at]
        self.apply(stage, full, rows, True)
        tensors[0][at] = full[pos]
        held = np.zeros((len(rows), self.n_pos), dtype=bool)
        held[number, front.loose_pos[here]] = True
        return self._take(full, rows, ~held, tensors, bases)

    def _join(self, stage: Stage, rows: np.ndarray, tensors: list, bases: list) -> list[Tensor]:
        for some in np.array_split(rows, -(-len(rows) // self.slab)):
            full = self.front.of_rows(bases[0], some)
            self.apply(stage, full, some, False)
            tensors = self._take(full, some, np.ones((len(some), self.n_pos), dtype=bool), tensors, bases)
        return tensors

    def _take(self, full: Tensor, rows: np.ndarray, open_: np.ndarray, tensors: list, bases: list) -> list[Tensor]:
        """Add to the front what differs from the base run in `full[row, pos, ...]`, at `open_` positions."""
        differs = (bits(full) != bits(self.front.of_rows(bases[0], rows))).flatten(2).any(2).cpu().numpy()
        row, pos = np.nonzero(differs & open_ & (np.arange(self.n_pos) >= self.floor))
        if not len(row):
            return tensors
        new = full[self.front.index(row), self.front.index(pos)]
        others = self.front.extend(rows[row], pos, list(zip(tensors[1:], bases[1:], strict=True)))
        return [torch.cat([tensors[0], new]), *others]

    def _read(self, stage: Stage, values: Tensor) -> None:
        """Copy the slices that are read at `stage` from the rows that have joined."""
        front = self.front
        for (start, rows), part in zip(front.groups, front.dense(values), strict=True):
            full = front.of_rows(self.base.value[stage], rows)
            full[:, start:] = part
            self.keep_read(stage, full, rows)
        if len(front.loose_row):
            rows, number = np.unique(front.loose_row, return_inverse=True)
            full = front.of_rows(self.base.value[stage], rows)
            full[front.index(number), front.index(front.loose_pos)] = front.loose(values)
            self.keep_read(stage, full, rows)

    def keep_read(self, stage: Stage, full: Tensor, rows: np.ndarray) -> None:
        """Note the slices of `full[row, pos, ...]` for every site read at `stage`."""
        for site in self.agenda.reads.get(stage, []):
            for place, members in self.agenda.placed(site):
                chosen = np.flatnonzero(np.isin(self.rows.prompt[rows], members))
                if len(chosen):
                    part = cut(full[self.front.index(chosen)], site, place)
                    run, prompt = self.rows.run[rows[chosen]], self.rows.prompt[rows[chosen]]
                    self.reads[site][self.front.index(run), self.front.index(prompt)] = part.to(self.reads[site])
