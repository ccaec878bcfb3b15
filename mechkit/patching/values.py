"""What sites hold on given prompts: slices, heads' results, feature activations, and their means over a dataset."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechkit.core.interventions import Intervention, Slice
from mechkit.core.metrics import Metric
from mechkit.core.places import Place, cut, groups, places
from mechkit.core.prompts import Prompts, by_length
from mechkit.core.renumbered import renumbered
from mechkit.core.site import SQUARE_NAMES, Site
from mechkit.core.sweep import sweep
from mechkit.patching.features import dictionary_of, encode, source_hook
from mechkit.patching.rows import one_per_position, widths

Value = Tensor | list[Tensor]
"""Slices `[prompt, *slice]`; one `[1, *slice]` per prompt where their shapes differ. Features are on the last axis."""

_NOTHING = Metric("nothing", "", "last", lambda logits, prompts: logits.new_zeros(logits.shape[:-2]), batched=True)
"""Stands in for a metric where only activations are wanted."""

_FEW = 32
"""Parts of one hook that are read one by one; of more, the whole hook is read and cut."""

_BATCH = 64
"""Reference prompts that are read at a time."""


@dataclass(frozen=True, eq=False)
class Uneven(Intervention):
    """An edit whose value has another shape in each prompt; prompts alike are edited together."""

    by_position: ClassVar[bool] = True

    values: Sequence[Tensor]
    """One `[1, *slice]` per prompt."""
    make: Callable[[Site, Tensor], Intervention]
    """The edit that a value for all its prompts makes."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        value = torch.cat([self.values[i] for i in prompts])
        return self.make(self.site, value).edit(x, list(range(len(prompts))), place)


def edit_with(site: Site, value: Value, make: Callable[[Site, Tensor], Intervention]) -> Intervention:
    """The edit of `site` that `make` gives of a value, whether or not its shape is the same in every prompt."""
    return make(site, value) if isinstance(value, Tensor) else Uneven(site, value, make)


def map_values(function: Callable[..., Tensor], *values: Value) -> Value:
    """A function of slices on values of even or uneven shapes."""
    if all(isinstance(value, Tensor) for value in values):
        return function(*values)
    return [function(*slices) for slices in zip(*values, strict=True)]


class Reader:
    """Reads sites of one model, those inside dictionaries and the heads' `result` (from z and W_O) included."""

    def __init__(self, model, dictionaries: Mapping[str, Any]) -> None:
        self.model, self.dictionaries = model, dictionaries

    def read(
        self, prompts: Prompts, sites: Sequence[Site], metrics: Sequence[Metric] = (), base: Sequence[Intervention] = ()
    ) -> tuple[Tensor, dict[Site, Value]]:
        """The metrics `[prompt, metric]` and every site's slices, with the edits `base` in place.

        Cost: one forward pass per prompt length, one more where a site's slices differ in shape.
        """
        at = {site: self.hook_site(site) for site in sites}
        hooks = list(dict.fromkeys(at.values()))
        even = {_key(one) for one in one_per_position(hooks) if len(set(widths(one, prompts))) == 1}
        alike = [hook for hook in hooks if _key(hook) in even]
        wholes = _wholes(alike) if len(set(prompts.lengths)) == 1 else {}
        asked = [*wholes.values(), *(hook for hook in alike if (hook.name, hook.layer) not in wholes)]
        swept = sweep(self.model, prompts, [[]], list(metrics) or [_NOTHING], base=base, read=asked)
        found: dict[Site, Value] = {site: slices[0] for site, slices in swept.read.items()}
        cutter = _Cutter(prompts)
        for hook in alike:
            if hook not in found:
                found[hook] = cutter.cut(found[wholes[hook.name, hook.layer]], hook)
        found |= self._read_uneven(prompts, [hook for hook in hooks if _key(hook) not in even], base)
        return swept.scores[0], {site: self._value(site, found[at[site]]) for site in sites}

    def _read_uneven(self, prompts: Prompts, hooks: list[Site], base: Sequence[Intervention]) -> dict[Site, Value]:
        """Slices by prompt, read from the prompts of one shape at a time."""
        found: dict[Site, list] = {hook: [None] * len(prompts) for hook in hooks}
        for hook in one_per_position(hooks):
            same = [other for other in hooks if _key(other) == _key(hook)]
            for rows in _alike(widths(hook, prompts)):
                for part in (rows[i : i + _BATCH] for i in range(0, len(rows), _BATCH)):
                    edits = renumbered(base, part)
                    read = sweep(self.model, prompts[part], [[]], [_NOTHING], base=edits, read=same).read
                    for other in same:
                        for i, slices in zip(part, read[other][0], strict=True):
                            found[other][i] = slices[None]
        return dict(found)

    def hook_site(self, site: Site) -> Site:
        """The model's own site that tells what `site` holds."""
        if site.basis is not None:
            return source_hook(self.model, dictionary_of(self.dictionaries, site), site)
        return site.at(name="z", index=None) if site.name == "result" else site

    def _value(self, site: Site, read: Value) -> Value:
        if site.basis is not None:
            dictionary = self.dictionaries[site.basis]
            return map_values(lambda x: encode(dictionary, x)[..., chosen(site)], read)
        return map_values(lambda z: self._result(site, z), read) if site.name == "result" else read

    def _result(self, site: Site, z: Tensor) -> Tensor:
        W_O = self.model.blocks[site.layer].attn.W_O
        result = torch.einsum("...hd,hdm->...hm", z, W_O) if site.head is None else z @ W_O[int(site.head)]
        return result if site.index is None else result[..., int(site.index)]

    def means(self, reference: Prompts, sites: Sequence[Site], prompts: Prompts) -> dict[Site, Value]:
        """Means over the reference prompts by position, cut to what each site covers in each of `prompts`.

        Position p is averaged over the reference prompts that have a token p; a span or a position from the end over
        all of them. Cost: one forward pass per 64 reference prompts of a length. Raises ValueError where no
        reference prompt reaches a position.
        """
        totals = {site: _Total() for site in sites}
        for rows in by_length(reference):
            for part in (rows[i : i + _BATCH] for i in range(0, len(rows), _BATCH)):
                batch = reference[part]
                there = [site for site in sites if _reaches(site, batch)]
                for site, value in self.read(batch, there)[1].items():
                    for slices in [value] if isinstance(value, Tensor) else value:
                        totals[site].add(slices)
        return {site: _fitted(site, totals[site].mean(), reference, prompts) for site in sites}


def _wholes(hooks: Sequence[Site]) -> dict[tuple, Site]:
    """Hooks of which so many parts are wanted that they are better read whole, by name and layer."""
    counts = Counter((hook.name, hook.layer) for hook in hooks)
    return {(name, layer): Site(name, layer) for (name, layer), count in counts.items() if count > _FEW}


class _Cutter:
    """Slices of hook tensors that hold prompts of one length; views where the prompts agree on the place."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts
        self.found: dict[tuple, list[tuple[Place, list[int]]]] = {}

    def cut(self, x: Any, site: Site) -> Tensor:
        placed = self.found.get(_key(site))
        if placed is None:
            placed = self.found[_key(site)] = groups(places(site, self.prompts))
        if len(placed) == 1:
            return cut(x, site, placed[0][0])
        back = torch.tensor([row for _, rows in placed for row in rows], device=x.device).argsort()
        return torch.cat([cut(x[rows], site, place) for place, rows in placed])[back]


class _Total:
    """A running sum of slices, of one size or several, and of how many there were of each entry."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.count = torch.zeros(())

    def add(self, slices: Tensor) -> None:
        size = slices.shape[1:]
        if self.sum is None:
            wide = torch.promote_types(slices.dtype, torch.float32)
            self.sum, self.count = slices.new_zeros(size, dtype=wide), slices.new_zeros(size, dtype=wide)
        widest = [max(sizes) for sizes in zip(self.sum.shape, size, strict=True)]
        self.sum, self.count = _grown(self.sum, widest), _grown(self.count, widest)
        here = tuple(slice(length) for length in size)
        self.sum[here] += slices.to(self.sum.dtype).sum(0)
        self.count[here] += len(slices)

    def mean(self) -> Tensor | None:
        return None if self.sum is None else self.sum / self.count


def _grown(x: Tensor, size: Sequence[int]) -> Tensor:
    out = x.new_zeros(size)
    out[tuple(slice(length) for length in x.shape)] = x
    return out


def _fitted(site: Site, mean: Tensor | None, reference: Prompts, prompts: Prompts) -> Value:
    """The mean, cut to as many positions as the site covers in each prompt."""
    found = []
    for i, width in enumerate(covers := widths(site, prompts)):
        axis = 1 if site.name in SQUARE_NAMES and site.head is None else 0
        if mean is None or any(mean.shape[axis + k] < length for k, length in enumerate(width)):
            raise ValueError(
                f"no reference prompt reaches all of site '{site}' in prompt {i}: the longest has "
                f"{max(reference.lengths)} tokens, the prompt {prompts.lengths[i]}; give longer ones"
            )
        cut = mean[(slice(None),) * axis + tuple(slice(length) for length in width)][None]
        if len(set(covers)) == 1:
            return cut
        found.append(cut)
    return found


def _reaches(site: Site, batch: Prompts) -> bool:
    """Whether prompts of one length have the single positions that `site` names."""
    length = batch.lengths[0]
    return all(-length <= pos < length for pos in (site.pos, site.src) if isinstance(pos, int))


def chosen(site: Site) -> list[int] | slice:
    """The features that a site in a dictionary names."""
    return slice(None) if site.index is None else [int(site.index)]


def _key(site: Site) -> tuple:
    return site.pos, site.src, site.name in SQUARE_NAMES


def _alike(keys: Sequence) -> list[list[int]]:
    """Numbers of equal keys."""
    found: dict[Any, list[int]] = {}
    for i, one in enumerate(keys):
        found.setdefault(one, []).append(i)
    return list(found.values())
