"""Which run is patched and where the values come from: the two sides of a pair, or other prompts.

>>> Contrast.of(pair, "denoise").target is pair.corrupt
True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from mechkit.core.interventions import Intervention
from mechkit.core.prompts import Pair, Prompts
from mechkit.core.site import Site
from mechkit.patching.rows import check_match

Kind = Literal["denoise", "noise", "zero", "mean", "resample"]


@dataclass(frozen=True, eq=False)
class Contrast:
    """The prompts that are patched and the prompts that values come from."""

    kind: Kind
    """What the sites of the target take: their values in the source run, or zero, or means over the source."""
    target: Prompts
    """Prompts of the run that is patched."""
    base: Sequence[Intervention]
    """Edits that belong to that run: a corrupt run's noise."""
    source: Prompts
    """Prompts that the values come from, one for each of the target; any number for a mean."""
    source_base: Sequence[Intervention]
    """Edits that belong to the source run."""

    @classmethod
    def of(cls, pair: Pair | Prompts, kind: Kind, reference: Prompts | None = None, seed: int = 0) -> "Contrast":
        """The contrast that a call asks for. Raises ValueError or TypeError where it gives too little for it."""
        if reference is not None and kind not in ("mean", "resample"):
            raise ValueError(f"'{kind}' takes no reference prompts; they are for ablate='mean' and ablate='resample'")
        if isinstance(pair, Prompts):
            return cls._ablation(pair, kind, reference, seed)
        pair.checked()
        if kind == "denoise":
            return cls(kind, pair.corrupt, pair.edits, pair.clean, ())
        if kind == "noise":
            return cls(kind, pair.clean, (), pair.corrupt, pair.edits)
        return cls._ablation(pair.clean, kind, reference or (None if pair.edits else pair.corrupt), seed)

    @classmethod
    def _ablation(cls, clean: Prompts, kind: Kind, reference: Prompts | None, seed: int) -> "Contrast":
        if kind == "zero":
            return cls(kind, clean, (), clean, ())
        if kind in ("denoise", "noise"):
            raise TypeError(f"'{kind}' needs a Pair; Prompts alone can be ablated: ablate='zero'")
        if reference is None:
            raise ValueError(f"ablate='{kind}' needs other prompts to take values from; give reference=Prompts(...)")
        return cls(kind, clean, (), reference if kind == "mean" else reference[_draw(clean, reference, seed)], ())

    def check(self, sites: Sequence[Site]) -> None:
        """Raise ValueError unless every site covers as many tokens of each target prompt as of its source."""
        if self.kind == "denoise":
            check_match(sites, self.source, self.target, "its corrupt prompt")
        elif self.kind == "noise":
            check_match(sites, self.target, self.source, "its corrupt prompt")
        elif self.kind == "resample":
            check_match(sites, self.target, self.source, "the reference prompt drawn for it")


def _draw(clean: Prompts, reference: Prompts, seed: int) -> list[int]:
    """For each clean prompt the number of another prompt of the reference, one of its length where there is one."""
    drawn = []
    for i, length in enumerate(clean.lengths):
        ours = clean.tokens[i, :length].tolist()
        others = [j for j, n in enumerate(reference.lengths) if reference.tokens[j, :n].tolist() != ours]
        if not others:
            raise ValueError(f"every reference prompt is the same as clean prompt {i}; give others")
        alike = [j for j in others if reference.lengths[j] == length]
        drawn.append(Random(f"{seed} {i}").choice(alike or others))
    return drawn
