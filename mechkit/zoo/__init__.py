"""Models by name: `load("addition")`, a local folder, or the Hub, always a plain `HookedTransformer`.

Nothing heavy is imported until a name is used.

>>> from mechkit import zoo
>>> model = zoo.load("addition")
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Origin": "folder",
    "load": "loading",
    "load_folder": "folder",
    "origin_of": "folder",
    "processing_of": "folder",
    "save_folder": "folder",
    "zoo_names": "loading",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"mechkit.zoo has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"mechkit.zoo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
