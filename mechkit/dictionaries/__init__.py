"""Feature bases of MLPs: transcoders from disk, a model's own neurons, and the training loop.

>>> from mechkit.dictionaries import neurons, transcoders_for
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Scores": "scores",
    "Transcoder": "transcoder",
    "load_transcoders": "loading",
    "measure": "scores",
    "neurons": "transcoder",
    "sample_rows": "training",
    "train_transcoder": "training",
    "transcoders_for": "loading",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"mechkit.dictionaries has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"mechkit.dictionaries.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
