"""What a sweep has to do at each hook: its runs' edits, those under all runs, and the sites to read.

A stage is a layer and a hook name, such as `(3, "attn_out")`; the embeddings are layer -1, the final norm is after all.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mechkit.core.engine.alike import Alike
from mechkit.core.interventions import Intervention
from mechkit.core.places import Place, cut, groups, key, places
from mechkit.core.prompts import Prompts
from mechkit.core.site import SQUARE_NAMES, Site

Stage = tuple[int, str]

ATTENTION = ("q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern")
"""Stages that are computed out in full for the rows that edit them."""

HIDDEN = ("mlp_pre", "mlp_pre_linear", "mlp_post")
"""Stages inside an MLP."""

BLOCK = ("resid_pre", *ATTENTION, "z", "result", "attn_out", "resid_mid", *HIDDEN, "mlp_out", "resid_post")
"""The stages of a block, in forward order."""

TOP = ("embed", "pos_embed")
"""The stages before the first block."""

_AFTER = 1 << 20
"""The layer of stages after the last block."""

_QUERY_SIDE = frozenset({"q", "rot_q", "attn_scores", "pattern"})


def stage_of(site: Site) -> Stage:
    """The stage of a concrete site."""
    if site.layer is None:
        return (-1 if site.name in TOP else _AFTER, site.name)
    return (int(site.layer), site.name)


def lean_site(model, site: Site) -> bool:
    """Whether the lean layers know the stage of `site` on `model`."""
    cfg, name = model.cfg, site.name
    if site.layer is None:
        return name == "embed" or (name == "pos_embed" and cfg.positional_embedding_type == "standard")
    if name in ("rot_q", "rot_k"):
        return cfg.positional_embedding_type == "rotary"
    if name == "resid_mid":
        return not (cfg.attn_only or cfg.parallel_attn_mlp)
    if name in (*HIDDEN, "mlp_out"):
        return not cfg.attn_only and (name != "mlp_pre_linear" or cfg.gated_mlp)
    return name in BLOCK


def bits(x: Tensor) -> Tensor:
    """The bits of a float tensor as integers of its width, which compare equal only where the floats are the same."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


class Agenda:
    """Edits and reads by stage, for the runs of one sweep on prompts of one length."""

    def __init__(
        self,
        runs: Sequence[Sequence[Intervention]],
        base: Sequence[Intervention],
        read: Sequence[Site],
        prompts: Prompts,
        numbers: Sequence[int],
    ) -> None:
        self.runs, self.prompts, self.numbers = runs, prompts, list(numbers)
        self.edits: dict[Stage, dict[int, list[Intervention]]] = {}
        self.base: dict[Stage, list[Intervention]] = {}
        self.reads: dict[Stage, list[Site]] = {}
        self._places: dict[Site, list[tuple[Place, list[int]]]] = {}
        self._alike: dict[Stage, tuple[list[Alike], np.ndarray]] = {}
        for i, run in enumerate(runs):
            for edit in run:
                self.edits.setdefault(stage_of(edit.site), {}).setdefault(i, []).append(edit)
        for edit in base:
            self.base.setdefault(stage_of(edit.site), []).append(edit)
        for site in read:
            self.reads.setdefault(stage_of(site), []).append(site)
        self.stages = {*self.edits, *self.base, *self.reads}
        sites = [*(edit.site for edit in base), *(edit.site for run in runs for edit in run), *read]
        self.hooks = {stage_of(site): site.hook for site in sites}
        """TransformerLens's hook of every stage where something happens."""

    @property
    def all_prompts(self) -> np.ndarray:
        """The numbers of the prompts."""
        return np.arange(len(self.prompts))

    def any(self, layer: int, names: Sequence[str]) -> bool:
        """Whether anything happens at one of these stages."""
        return any((layer, name) in self.stages for name in names)

    def needs_all(self, layer: int) -> bool:
        """Whether something after the attention of `layer` looks at more positions than it changes."""
        after = [(layer, name) for name in BLOCK[BLOCK.index("z") :]]
        edits = [edit for stage in after for run in self.edits.get(stage, {}).values() for edit in run]
        edits += [edit for stage in after for edit in self.base.get(stage, [])]
        return any(stage in self.reads for stage in after) or not all(edit.by_position for edit in edits)

    def at(self, site: Site) -> Stage:
        """The stage of `site`."""
        return stage_of(site)

    def first_layer(self, run: int) -> int:
        """The layer where a run first differs from the base run, at the earliest."""
        return min((stage_of(edit.site)[0] for edit in self.runs[run]), default=1 << 30)

    def placed(self, site: Site) -> list[tuple[Place, list[int]]]:
        """Where `site` lies in the prompts: places and the prompts that share each."""
        if site not in self._places:
            self._places[site] = groups(places(site, self.prompts))
        return self._places[site]

    def alike(self, stage: Stage, shape: torch.Size) -> tuple[list[Alike], np.ndarray]:
        """The edits at `stage` that are made together, in sets, and for every run its set (-1: none)."""
        if stage not in self._alike:
            found = Alike.among(self.edits.get(stage, {}), self.placed, shape, self.numbers)
            of = np.full(len(self.runs), -1)
            for i, alike in enumerate(found):
                of[alike.runs] = i
            self._alike[stage] = found, of
        return self._alike[stage]

    def put(self, stage: Stage, values: Tensor, runs: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Make the edits at `stage` that go together, in place, in `values[row, pos, ...]`; which rows are left."""
        found, of = self.alike(stage, values.shape)
        own = np.asarray(self.numbers)
        for alike in found:
            row, number = alike.of_rows(runs)
            if len(row):
                alike.put(values, row, number, own[prompts[row]])
        return of[runs] < 0

    def apply(self, edits: Sequence[Intervention], values: Tensor, prompts: np.ndarray) -> None:
        """Make `edits`, in order and in place, in `values[row, pos, ...]`, whose rows belong to `prompts`."""
        for edit in edits:
            placed = self.placed(edit.site)
            if len(placed) == 1:
                _write(edit, values, placed[0][0], [self.numbers[p] for p in prompts])
                continue
            for place, members in placed:
                chosen = np.flatnonzero(np.isin(prompts, members))
                if len(chosen):
                    at = torch.from_numpy(chosen).to(values.device)
                    part = values[at]
                    _write(edit, part, place, [self.numbers[p] for p in prompts[chosen]])
                    values[at] = part

    def reach(self, run: int, layer: int) -> tuple[bool, set[int] | None]:
        """For a run's attention edits in `layer`: whether only query positions change, and which (None: any)."""
        edits = [edit for name in ATTENTION for edit in self.edits.get((layer, name), {}).get(run, [])]
        if any(edit.site.name not in _QUERY_SIDE for edit in edits):
            return False, None
        found: set[int] = set()
        for edit in edits:
            for place, _ in self.placed(edit.site):
                dest = place[0] if isinstance(place, tuple) else place
                if isinstance(dest, slice):
                    found.update(
                        range(dest.start or 0, dest.stop if dest.stop is not None else max(self.prompts.lengths))
                    )
                else:
                    found.add(dest)
        return True, found


def _write(edit: Intervention, values: Tensor, place: Place, numbers: list[int]) -> None:
    where = (slice(None), *key(edit.site, place))
    values[where] = edit.edit(values[where], numbers, place).to(values.dtype)


class Scout:
    """What each run's edits change in the base run: whether, and from which position on."""

    def __init__(self, agenda: Agenda, n_pos: int) -> None:
        self.agenda, self.n_pos = agenda, n_pos
        n_runs, n_prompts = len(agenda.runs), len(agenda.prompts)
        self.live = np.zeros((n_runs, n_prompts), dtype=bool)
        self.start = np.full((n_runs, n_prompts), n_pos)

    def look(self, stage: Stage, value: Tensor) -> None:
        """Try every run's edits at `stage` on the base run's value `[prompt, pos, ...]`."""
        found, of = self.agenda.alike(stage, value.shape)
        for alike in found:
            self._look_at(alike, value)
        tried = []
        for run, edits in self.agenda.edits.get(stage, {}).items() if (of < 0).any() else ():
            for edit in edits if of[run] < 0 else ():
                for place, members in self.agenda.placed(edit.site):
                    part = value if len(members) == len(self.agenda.prompts) else value[members]
                    numbers = [self.agenda.numbers[p] for p in members]
                    old, new = _try(edit, part, place, numbers)
                    tried.append((run, edit, place, members, _changed(edit.site, place, old, new)))
        if tried:
            flat = torch.cat([mask.flatten() for *_, mask in tried]).cpu().numpy()
            ends = np.cumsum([mask.numel() for *_, mask in tried])
            for (run, edit, place, members, mask), part in zip(tried, np.split(flat, ends[:-1]), strict=True):
                self._note(run, edit, place, members, part.reshape(mask.shape))

    def _look_at(self, alike: Alike, value: Tensor) -> None:
        """Try edits that go together."""
        prompts, own = np.arange(len(value)), np.asarray(self.agenda.numbers)
        for numbers in alike.slabs(value):
            rows, each = np.tile(prompts, len(numbers)), np.repeat(numbers, len(prompts))
            old = value[alike.where(each, rows, value.device)]
            new = alike.incoming(each, own[rows], value, old.ndim).expand_as(old)
            changed = _changed(alike.site, alike.place, old, new).cpu().numpy().reshape(len(numbers), len(prompts), -1)
            hit, runs = changed.any(2), alike.runs[numbers]
            start = np.where(hit, alike.first(numbers)[:, None] + changed.argmax(2), self.n_pos)
            np.logical_or.at(self.live, runs, hit)
            np.minimum.at(self.start, runs, start)

    def _note(self, run: int, edit: Intervention, place: Place, members: list[int], changed: np.ndarray) -> None:
        """`changed[prompt, pos of the place]` says where the edit changes the base run."""
        dest = place[0] if isinstance(place, tuple) else place
        first = dest if isinstance(dest, int) else dest.start or 0
        hit = changed.any(1)
        start = np.where(hit, first + changed.argmax(1), self.n_pos)
        if not edit.by_position and (len(self.agenda.runs[run]) > 1 or self.agenda.base):
            start = np.full_like(start, first)
        self.live[run, members] |= hit
        self.start[run, members] = np.minimum(self.start[run, members], start)


def _try(edit: Intervention, value: Tensor, place: Place, numbers: list[int]) -> tuple[Tensor, Tensor]:
    old = cut(value, edit.site, place)
    return old, edit.edit(old.clone(), numbers, place).to(value.dtype)


def _changed(site: Site, place: Place, old: Tensor, new: Tensor) -> Tensor:
    """Which positions of the place change, `[prompt, pos]`; one column for a single position."""
    differs = bits(old) != bits(new)
    if isinstance(place[0] if isinstance(place, tuple) else place, int):
        return differs.reshape(len(differs), -1).any(1, keepdim=True)
    axis = 2 if site.name in SQUARE_NAMES and site.head is None else 1
    return differs.movedim(axis, 1).flatten(2).any(2) if differs.ndim > 2 else differs
