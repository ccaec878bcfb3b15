"""Names of a package that are loaded when they are first used.

__getattr__, __dir__, __all__ = lazily(__name__, {"load": "loading", "save_folder": "folder"})
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's `__getattr__`, `__dir__` and `__all__` for names that live in the modules `homes[name]` below it.

    A name that is its own module's (`"tasks": "zoo.tasks"`) gives the module.
    """
    names = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(names)}")
        module = import_module(f"{package}.{homes[name]}")
        return getattr(module, name, module)

    return get, lambda: names, names
