"""Edits of a batch of prompts, carried over to some of those prompts.

renumbered([Noise("embed@0", 1.0)], [4, 7])      # prompts 4 and 7, now 0 and 1, keep their own noise
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mechkit.core.interventions import Intervention, Slice
from mechkit.core.places import Place


@dataclass(frozen=True, eq=False)
class Renumbered(Intervention):
    """`whole` as it acts on the prompts `numbers` of its batch."""

    whole: Intervention
    """The edit of the whole batch."""
    numbers: Sequence[int]
    """For each prompt of the new batch, its number in the old."""

    @property
    def by_position(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.whole.by_position

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        return self.whole.edit(x, [self.numbers[i] for i in prompts], place)


def renumbered(edits: Iterable[Any], numbers: Sequence[int]) -> list[Intervention]:
    """The edits for a batch that holds the prompts `numbers`, in that order."""
    return [Renumbered(edit.site, edit, list(numbers)) for edit in edits]
