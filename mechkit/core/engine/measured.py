"""What an engine gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mechkit.core.site import Site


@dataclass
class Measured:
    """Metrics of all runs of a sweep."""

    scores: Tensor
    """`[run, prompt, metric]`."""
    read: Mapping[Site, Tensor]
    """Slices by site, `[run, prompt, *slice]`."""
    passes: int
    """Passes over the layers."""
    n_rows: int
    """Runs on prompts that changed something."""
    path: str = ""
    """What ran."""


def refuse_nan(logits: Tensor, numbers: Sequence[int]) -> None:
    """Raise ValueError where the base run's logits `[prompt, pos, vocab]` hold NaN."""
    bad = logits.isnan().flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the model's logits are NaN on prompt {numbers[bad[0]]} before any edit of a run; "
            "check its weights (and the base edits) for NaN or overflow"
        )
