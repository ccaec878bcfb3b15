"""Feature bases of MLPs: transcoders from disk, a model's own neurons, and the training loop.

>>> from mechkit.dictionaries import neurons, transcoders_for
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "Scores": "scores",
        "Transcoder": "transcoder",
        "load_transcoders": "loading",
        "measure": "scores",
        "neurons": "transcoder",
        "sample_rows": "training",
        "train_transcoder": "training",
        "transcoders_for": "loading",
    },
)
