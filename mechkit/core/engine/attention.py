"""Attention of a wave: every joined row from its start on, over the base run's keys and values before it.

Rows that edit queries, keys, values, scores or patterns, and all rows where these are read, are computed out in full.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mechkit.core.engine.agenda import ATTENTION
from mechkit.core.engine.fused import Layer

if TYPE_CHECKING:
    from mechkit.core.engine.wave import Wave


def attend(wave: "Wave", i: int, layer: Layer, x: Tensor, floor: int) -> tuple[Tensor, Tensor]:
    """z `[token, head, d]` and the residual stream, both packed with all joined rows dense from `floor` on."""
    front = wave.front
    full = _in_full(wave, i)
    row, pos = front.tokens()
    q, k, v = _project(wave, layer, x, pos)
    turned = [layer.rotate(part, front.index(pos)) for part in (q, k)] if layer.rotary else [q, k]
    parts = _in_groups(wave, i, layer, x, (*turned, v), full, floor)
    raw_rows = np.flatnonzero(full)
    held = np.flatnonzero(full[row])
    late = []
    for some in np.array_split(raw_rows, -(-len(raw_rows) // wave.slab)) if len(raw_rows) else []:
        z, stream = _written_out(wave, i, layer, some, held, (row, pos), (q, k, v), x)
        old = front.joined[some]
        for start in np.unique(wave.rows.start[some[old]]):
            chosen = np.flatnonzero(old & (wave.rows.start[some] == start))
            at, first = front.index(chosen), max(int(start), floor)
            parts.append((first, some[chosen], [z[at, first:], stream[at, first:]]))
        late.append((some[~old], z[front.index(np.flatnonzero(~old))]))
    wave.floor = floor
    if parts:
        z, x = front.regroup(parts)
    else:
        z, x = x.new_empty(0, layer.n_heads * layer.d_head), x[:0]
    for rows, values in late:
        z, x = _join(wave, i, rows, values, z, x)
    return z.unflatten(-1, (layer.n_heads, layer.d_head)), x


def _in_full(wave: "Wave", i: int) -> np.ndarray:
    """Rows whose attention is written out: those with edits of it here, and all that have joined where all have."""
    full = np.zeros(len(wave.rows), dtype=bool)
    for name in ATTENTION:
        full |= wave.due((i, name))
        if wave.agenda.base.get((i, name)) or wave.agenda.reads.get((i, name)):
            full |= wave.front.joined
    return full


def _project(wave: "Wave", layer: Layer, x: Tensor, pos: np.ndarray) -> list[Tensor]:
    """Queries, keys and values of the packed tokens, `[token, head, d]`, before any rotation."""
    h = layer.norm1(x)
    if wave.base.pos_embed is None:
        flat = layer.project(h, slice(0, layer.v_columns.stop))
        return [layer.heads(flat[:, columns]) for columns in (layer.q_columns, layer.k_columns, layer.v_columns)]
    turned = h + wave.base.pos_embed[wave.front.index(pos)]
    sides = ((turned, layer.q_columns), (turned, layer.k_columns), (h, layer.v_columns))
    return [layer.heads(layer.project(side, columns)) for side, columns in sides]


def _in_groups(wave: "Wave", i: int, layer: Layer, x: Tensor, qkv: tuple, full: np.ndarray, floor: int) -> list:
    """`(start, rows, [z, stream])` of the joined rows that are not written out, by start."""
    front = wave.front
    streams, queries, keys, values = ([*front.dense(part), front.loose(part)] for part in (x, *qkv))
    loose = np.unique(front.loose_row[~full[front.loose_row]])
    starts = sorted({start for start, _ in front.groups} | set(wave.rows.start[loose].tolist()))
    dense = {start: (number, rows) for number, (start, rows) in enumerate(front.groups)}
    parts = []
    for start in starts:
        first = max(start, floor)
        blocks: list[list[Tensor]] = []
        members: list[np.ndarray] = []
        if start in dense:
            number, rows = dense[start]
            keep = np.flatnonzero(~full[rows])
            if len(keep):
                members.append(rows[keep])
                own = [
                    part[number] if len(keep) == len(rows) else part[number][front.index(keep)]
                    for part in (queries, keys, values, streams)
                ]
                blocks.append(_with_prefix(wave, i, rows[keep], start, first, own))
        scattered = loose[wave.rows.start[loose] == start]
        if len(scattered):
            members.append(scattered)
            blocks.append(
                _scattered(wave, i, scattered, first, [part[-1] for part in (queries, keys, values, streams)])
            )
        if members:
            q, k, v, stream = (torch.cat(same) if len(same) > 1 else same[0] for same in zip(*blocks, strict=True))
            parts.append((first, np.concatenate(members), [layer.attend(q, k, v, first), stream]))
    return parts


def _with_prefix(wave: "Wave", i: int, rows: np.ndarray, start: int, first: int, own: list[Tensor]) -> list[Tensor]:
    """Dense rows' queries from `first` on, all keys and values (the base run's before `start`), and their stream."""
    q, k, v, stream = own
    if start:
        prompt = wave.front.index(wave.rows.prompt[rows])
        k, v = (
            torch.cat([wave.base.value[i, name][:, :start][prompt], part], 1) for name, part in (("K", k), ("V", v))
        )
    return [q[:, first - start :], k, v, stream[:, first - start :]]


def _scattered(wave: "Wave", i: int, rows: np.ndarray, first: int, own: list[Tensor]) -> list[Tensor]:
    """The same for loose rows: the base run's values, with their own tokens put in."""
    front = wave.front
    here = np.flatnonzero(np.isin(front.loose_row, rows))
    at, row, pos = (
        front.index(here), front.index(np.searchsorted(rows, front.loose_row[here])), front.index(front.loose_pos[here])
    )  # fmt: skip
    laid = []
    for name, part in zip(("Q", "K", "V", "resid_pre"), own, strict=True):
        values = front.of_rows(wave.base.value[i, name], rows)
        values[row, pos] = part[at]
        laid.append(values if name in "KV" else values[:, first:])
    return laid


def _written_out(
    wave: "Wave", i: int, layer: Layer, rows: np.ndarray, held: np.ndarray, tokens: tuple, qkv: tuple, x: Tensor
) -> tuple[Tensor, Tensor]:
    """z `[row, pos, d_attn]` and stream of some rows, all positions, with their edits made at every step."""
    front, base = wave.front, wave.base
    held = held[np.isin(tokens[0][held], rows)]
    at = front.index(held)
    where = front.index(np.searchsorted(rows, tokens[0][held])), front.index(tokens[1][held])

    def laid(base_values: Tensor, own: Tensor) -> Tensor:
        values = front.of_rows(base_values, rows)
        values[where] = own[at]
        return values

    def see(name: str, values: Tensor) -> Tensor:
        if (i, name) in wave.agenda.stages:
            wave.apply((i, name), values, rows, True)
            if wave.agenda.reads.get((i, name)):
                wave.keep_read((i, name), values, rows)
        return values

    q, k, v = (see(name, laid(base.raw[i, name], part)) for name, part in zip("qkv", qkv, strict=True))
    every = base.pos.expand(len(rows), -1)
    if layer.rotary:
        q, k = see("rot_q", layer.rotate(q, every)), see("rot_k", layer.rotate(k, every))
    scores = see("attn_scores", layer.scores(q, k, 0))
    pattern = see("pattern", scores.softmax(-1).nan_to_num(0.0))
    return layer.mix(pattern, v), laid(base.value[i, "resid_pre"], x)


def _join(wave: "Wave", i: int, rows: np.ndarray, values: Tensor, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Add rows whose first edit is in this attention: loose, at the positions it can have reached."""
    reached = np.zeros((len(rows), wave.n_pos), dtype=bool)
    for number, row in enumerate(rows):
        queries_only, found = wave.agenda.reach(int(wave.rows.run[row]), i)
        reached[number, sorted(found) if queries_only and found is not None else slice(None)] = True
    after = np.arange(wave.n_pos) >= np.maximum(wave.rows.start[rows], wave.floor)[:, None]
    row, pos = np.nonzero(reached & after)
    new = values[wave.front.index(row), wave.front.index(pos)]
    (x,) = wave.front.extend(rows[row], pos, [(x, wave.base.value[i, "resid_pre"])])
    return torch.cat([z, new]), x
