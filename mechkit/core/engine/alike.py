"""Replacements at one stage, many at once: one comparison with the base run, one write into the rows of a wave.

    for alike in Alike.among(edits, agenda.placed, values.shape, prompts):      # others go one by one
        alike.put(values, rows, numbers, prompts)

A sweep often patches thousands of places in the same way; taken one by one they cost more than the arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mechkit.core.interventions import Intervention, Zero
from mechkit.core.places import Place, key
from mechkit.core.site import SQUARE_NAMES, Site

_BYTES = 1 << 22
"""Bytes of slices that are compared at a time."""

Placed = Callable[[Site], list[tuple[Place, list[int]]]]


class Alike:
    """Edits at a stage that each put a value in place of a slice; slices and values have one shape each."""

    def __init__(
        self, runs: Sequence[int], site: Site, place: Place, keys: Sequence[tuple], values: Sequence[Tensor]
    ) -> None:
        self.runs, self.values = np.asarray(runs, dtype=np.int64), values
        """The run of each edit, in order, and what it puts in."""
        self.site, self.place = site, place
        """The first edit's; the others' differ in numbers alone."""
        self.parts = [
            first if isinstance(first, slice) else np.array([one[axis] for one in keys])
            for axis, first in enumerate(keys[0])
        ]
        """What follows the row axis in an index: slices that all share, and the edits' own numbers."""

    @staticmethod
    def among(
        edits: Mapping[int, Sequence[Intervention]], placed: Placed, shape: torch.Size, prompts: Sequence[int]
    ) -> "list[Alike]":
        """The sets of edits that go together, of `edits` by run in a hook tensor of this shape on these prompts.

        A run's edits are in one set, all of them and in places of their own, or in none.
        """
        sets: dict[tuple, list] = {}
        for run, made in edits.items():
            found = [one for edit in made if (one := _placement(edit, placed, shape, prompts))]
            forms, apart = {one[0] for one in found}, {one[3] for one in found}
            if len(forms) == 1 and len(apart) == len(made):
                sets.setdefault(forms.pop(), []).extend((run, *one[1:]) for one in found)
        made_of = []
        for members in sets.values():
            runs, sites, at, _, keys, values = zip(*members, strict=True)
            made_of.append(Alike(runs, sites[0], at[0], keys, values))
        return made_of

    def of_rows(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For rows of these runs, the edits that are theirs: each edit's row, and its number in this set."""
        first, after = np.searchsorted(self.runs, runs, "left"), np.searchsorted(self.runs, runs, "right")
        each = after - first
        row = np.repeat(np.arange(len(runs)), each)
        return row, np.arange(len(row)) + np.repeat(first - (np.cumsum(each) - each), each)

    def __len__(self) -> int:
        return len(self.runs)

    def first(self, numbers: np.ndarray) -> np.ndarray:
        """The first position of some edits' slices; destinations, of attention patterns."""
        part = self.parts[1 if self.site.name in SQUARE_NAMES else 0]
        return np.full(len(numbers), part.start or 0) if isinstance(part, slice) else part[numbers]

    def slabs(self, value: Tensor) -> list[np.ndarray]:
        """The edits' numbers in this set, as many at a time as are compared together."""
        taken = [axis for axis, part in enumerate(self.parts, 1) if isinstance(part, np.ndarray)]
        slice_size = value.numel() // max(1, int(np.prod([value.shape[axis] for axis in taken])))
        size = max(1, _BYTES // max(1, slice_size * value.element_size()))
        return [np.arange(at, min(at + size, len(self))) for at in range(0, len(self), size)]

    def where(self, numbers: np.ndarray, rows: np.ndarray, device: torch.device) -> tuple:
        """The index of the slices of some edits in `values[row, ...]`: it gives `[edit, *slice]`."""
        parts = [part if isinstance(part, slice) else _on(part[numbers], device) for part in self.parts]
        return (_on(rows, device), *parts)

    def incoming(self, numbers: np.ndarray, prompts: np.ndarray, like: Tensor, ndim: int) -> Tensor:
        """What edits put in, `[edit, *slice]` of `ndim` axes or a number each; `prompts` has their own numbers."""
        few, back = np.unique(numbers, return_inverse=True)
        values, at = torch.stack([self.values[number] for number in few.tolist()]).to(like), _on(back, like.device)
        if values.ndim == 1:
            return values[at].reshape(-1, *([1] * (ndim - 1)))
        if values.ndim == ndim:
            return values if np.array_equal(few, numbers) else values[at]
        return values[at, _on(prompts if values.shape[1] > 1 else np.zeros_like(prompts), like.device)]

    def put(self, values: Tensor, rows: np.ndarray, numbers: np.ndarray, prompts: np.ndarray) -> None:
        """Write what some edits put in, in place, into the rows of `values[row, ...]` that are theirs."""
        n_taken = sum(isinstance(part, np.ndarray) for part in self.parts)
        new = self.incoming(numbers, prompts, values, values.ndim - n_taken)
        values[self.where(numbers, rows, values.device)] = new


def _placement(edit: Intervention, placed: Placed, shape: torch.Size, prompts: Sequence[int]) -> tuple | None:
    """What sets are made by, then site, place, its numbers, its index and the value; None where an edit goes alone."""
    value = _incoming(edit)
    if value is None or len(at := placed(edit.site)) > 1:
        return None
    here = _plain_key(edit.site, at[0][0], shape)
    if here is None or not _fits(value, here, shape, prompts):
        return None
    numbers = tuple(part for part in here if not isinstance(part, slice))
    form = tuple((part.start, part.stop) if isinstance(part, slice) else None for part in here)
    return (form, tuple(value.shape), value.dtype, value.device), edit.site, at[0][0], numbers, here, value


def _incoming(edit: Intervention) -> Tensor | None:
    """The value that an edit puts in whatever the slice holds; None for edits of other kinds."""
    if type(edit) is Zero:
        return torch.zeros(())
    value = getattr(edit, "value", None)
    if not vars(type(edit)).get("replaces", False) or value is None:
        return None
    return value if isinstance(value, Tensor) else torch.tensor(float(value))


def _plain_key(site: Site, place: Place, shape: torch.Size) -> tuple | None:
    """The slice's index after the prompt axis, with one entry per axis it names; None where that cannot be said."""
    named = key(site, place)
    parts = tuple(part for part in named if part is not ...)
    return None if len(parts) >= len(shape) or (len(parts) < len(named) and len(parts) + 1 < len(shape)) else parts


def _fits(value: Tensor, here: tuple, shape: torch.Size, prompts: Sequence[int]) -> bool:
    """Whether `value` is one number, a slice for all prompts, or one per prompt: what needs no broadcasting."""
    named = [len(range(*part.indices(n))) for part, n in zip(here, shape[1:], strict=False) if isinstance(part, slice)]
    wanted = (*named, *shape[1 + len(here) :])
    if value.ndim == 0 or tuple(value.shape) == wanted:
        return True
    return tuple(value.shape[1:]) == wanted and (value.shape[0] == 1 or value.shape[0] > max(prompts))


def _on(numbers: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)
