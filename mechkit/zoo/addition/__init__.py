"""The addition model: a two-layer transformer that adds two numbers below 100, and its transcoders.

`mechkit.zoo.load("addition")` gives the model; `card.md` beside this file says how it was made and how good it is.

>>> from mechkit.zoo.addition import sums_text, unseen_sums
>>> model.to_tokens(sums_text(unseen_sums()[:2])).shape
torch.Size([2, 4])
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "seen_sums": "tasks",
    "peaks": "fourier",
    "spectrum": "fourier",
    "sums_answers": "tasks",
    "sums_text": "tasks",
    "sums_tokens": "tasks",
    "unseen_sums": "tasks",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"mechkit.zoo.addition has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"mechkit.zoo.addition.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
