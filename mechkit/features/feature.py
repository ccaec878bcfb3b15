"""One feature of an index in numbers."""

from dataclasses import dataclass

import pandas as pd

_SHOWN = 5
"""Tokens named when a feature is printed."""


@dataclass(frozen=True, eq=False, repr=False)
class Feature:
    """One feature in numbers."""

    id: int
    """Its number in the SAE."""
    n_firings: int
    """Tokens on which it fires."""
    density: float
    """Share of the tokens that count on which it fires."""
    mean: float
    """Mean strength where it fires, in units of the SAE's activations; NaN where it never does."""
    max: float
    """Greatest strength, NaN where it never fires."""
    histogram: pd.DataFrame
    """`from` (least strength of a bin) and `n` (firings), between the first and the last bin that is not empty."""
    promoted: pd.DataFrame
    """`token`, `text`, `logit`: what it adds to most, for an activation of 1 and a last norm of scale 1."""
    suppressed: pd.DataFrame
    """The same for what it takes away from most."""
    labels: pd.DataFrame
    """`text`, `source`, `automatic`."""

    def __repr__(self) -> str:
        lines = [
            f"feature {self.id}: fires on {self.density:.3%} of the tokens ({self.n_firings:,}), "
            f"mean {self.mean:.3g}, greatest {self.max:.3g}",
            f"promotes {_named(self.promoted)}",
            f"suppresses {_named(self.suppressed)}",
        ]
        told = zip(*(self.labels[key] for key in ("text", "source", "automatic")), strict=True)
        lines += [f"{source}{', automatic' * automatic}: {text}" for text, source, automatic in told]
        return "\n".join(lines)


def _named(tokens: pd.DataFrame) -> str:
    shown = tokens.head(_SHOWN)
    return (
        ", ".join(f"{text!r} {logit:+.2f}" for text, logit in zip(shown["text"], shown["logit"], strict=True))
        or "nothing"
    )
