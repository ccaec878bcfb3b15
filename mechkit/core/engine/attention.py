"""Attention of a wave: every joined row from its start on, over the base run's keys and values before it.

Rows that edit queries, keys, values, scores or patterns, and all rows where these are read, are computed out in full.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mechkit.core.engine.agenda import ATTENTION
from mechkit.core.engine.front import Front
from mechkit.core.engine.fused import Layer

if TYPE_CHECKING:
    from mechkit.core.engine.wave import Wave

_SPAN = 16
"""Rows whose starts lie this near attend together: fewer, larger products for some queries that change nothing."""


def attend(wave: "Wave", i: int, layer: Layer, x: Tensor, floor: int) -> tuple[Tensor, Tensor]:
    """z `[token, head, d]` and the residual stream, both packed with all joined rows dense from `floor` on."""
    front = wave.front
    full = _in_full(wave, i)
    row, pos = front.tokens()
    q, k, v = _project(wave, layer, x, pos, full[row] | (pos >= floor))
    turned = [layer.rotate(part, front.index(pos)) for part in (q, k)] if layer.rotary else [q, k]
    parts = []
    for members in _near(_members(wave, i, (*turned, v, x), full)):
        parts += _attended(wave, i, layer, members, floor)
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


def _project(wave: "Wave", layer: Layer, x: Tensor, pos: np.ndarray, asked: np.ndarray) -> list[Tensor]:
    """Queries (of `asked` tokens; others are 0), keys and values of the packed tokens, before any rotation."""
    h = turned = layer.norm1(x)
    if wave.base.pos_embed is not None:
        turned = h + wave.base.pos_embed[wave.front.index(pos)]
    if asked.all() and turned is h:
        flat = layer.project(h, slice(0, layer.v_columns.stop))
        return [layer.heads(flat[:, columns]) for columns in (layer.q_columns, layer.k_columns, layer.v_columns)]
    at = wave.front.index(np.flatnonzero(asked))
    q = h.new_zeros(len(h), layer.q_columns.stop).index_copy(0, at, layer.project(turned[at], layer.q_columns))
    return [
        layer.heads(part) for part in (q, layer.project(turned, layer.k_columns), layer.project(h, layer.v_columns))
    ]


@dataclass(frozen=True, eq=False)
class Member:
    """Rows of one start that are not written out."""

    start: int
    """The first position that may differ from the base run."""
    rows: np.ndarray
    """Which rows."""
    qkv: list[Tensor]
    """Queries, keys and values `[row, pos, head, d]` from the start on."""
    stream: Tensor
    """The residual stream `[row, pos, d_model]` from the start on."""


def _members(wave: "Wave", i: int, packed: tuple[Tensor, ...], full: np.ndarray) -> list[Member]:
    """The joined rows that are not written out, by start: dense ones, and loose ones filled up from the base run."""
    front, found = wave.front, []
    dense = [front.dense(part) for part in packed]
    for number, (start, rows) in enumerate(front.groups):
        keep, parts = ~full[rows], [groups[number] for groups in dense]
        if not keep.all():
            chosen = front.index(np.flatnonzero(keep))
            parts = [part[chosen] for part in parts]
        found += [Member(start, rows[keep], parts[:3], parts[3])] if keep.any() else []
    loose = Loose(front, full, [wave.base.value[i, name] for name in ("Q", "K", "V", "resid_pre")], packed)
    for start in np.unique(loose.starts).tolist():
        here = loose.at(start)
        parts = [laid[here, start:] for laid in loose.laid]
        found.append(Member(start, loose.rows[here], parts[:3], parts[3]))
    return sorted(found, key=lambda member: member.start)


def _near(members: list[Member]) -> list[list[Member]]:
    """Members in order of their starts, those together whose starts lie within `_SPAN` positions."""
    near: list[list[Member]] = []
    for member in members:
        if near and member.start - near[-1][0].start < _SPAN:
            near[-1].append(member)
        else:
            near.append([member])
    return near


def _attended(wave: "Wave", i: int, layer: Layer, members: list[Member], floor: int) -> list:
    """`(start, rows, [z, stream])` of some members, in one attention from the first one's start on."""
    first = max(members[0].start, floor)
    bases = [wave.base.value[i, name] for name in "QKV"]
    prompt = wave.rows.prompt[np.concatenate([member.rows for member in members])]
    q, k, v = (
        _laid(base, wave.front.index(prompt), [(member.start, member.qkv[which]) for member in members], at)
        for which, (base, at) in enumerate(zip(bases, (first, 0, 0), strict=True))
    )
    z, parts, end = layer.attend(q, k, v, first), [], 0
    for member in members:
        start, begin = max(member.start, floor), end
        end += len(member.rows)
        parts.append((start, member.rows, [z[begin:end, start - first :], member.stream[:, start - member.start :]]))
    return parts


def _laid(base: Tensor, prompt: Tensor, members: list[tuple[int, Tensor]], first: int) -> Tensor:
    """Values `[row, pos, head, d]` from `first` on, of rows of several starts: before its start the base run's."""
    start, values = members[-1]
    if start <= first and len(members) == 1:
        return values[:, first - start :]
    out, ahead, end = _by_head(base, len(prompt), base.shape[1] - first), max(start - first, 0), 0
    if ahead:  # one prompt's values spread without being gathered
        early = base[:, first : first + ahead]
        out[:, :ahead] = early if len(base) == 1 else early[prompt]
    for start, values in members:
        begin, end = end, end + len(values)
        out[begin:end, max(start - first, 0) :] = values[:, max(first - start, 0) :]
    return out


def _by_head(like: Tensor, n_rows: int, n_pos: int) -> Tensor:
    """Room for `[row, pos, head, d]` that lies head by head in memory, so that products need no other copy."""
    return like.new_empty(n_rows, like.shape[2], n_pos, like.shape[3]).transpose(1, 2)


class Loose:
    """Loose rows that are not written out, by start, laid out in full over the base run's values."""

    def __init__(self, front: Front, full: np.ndarray, bases: list[Tensor], packed: Sequence[Tensor]) -> None:
        here = np.flatnonzero(~full[front.loose_row])
        rows = np.unique(front.loose_row[here])
        order = np.argsort(front.rows.start[rows], kind="stable")
        self.rows = rows[order]
        self.starts = front.rows.start[self.rows]
        number = np.argsort(order)[np.searchsorted(rows, front.loose_row[here])]
        where, at = (front.index(number), front.index(front.loose_pos[here])), front.index(front.n_dense + here)
        self.laid = [front.of_rows(base, self.rows) for base in bases]
        for values, part in zip(self.laid, packed, strict=True):
            values[where] = part[at]

    def at(self, start: int) -> slice:
        """Where the rows of one start lie."""
        return slice(*np.searchsorted(self.starts, [start, start + 1]).tolist())


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
