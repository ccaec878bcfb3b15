"""Models by name: `load("addition")`, a local folder, or the Hub, always a plain `HookedTransformer`.

Nothing heavy is imported until a name is used.

>>> from mechkit import zoo
>>> model = zoo.load("addition")
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "Origin": "folder",
        "load": "loading",
        "load_folder": "folder",
        "origin_of": "folder",
        "processing_of": "folder",
        "save_folder": "folder",
        "zoo_names": "loading",
    },
)
