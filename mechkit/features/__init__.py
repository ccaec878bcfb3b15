"""What the features of SAEs do on a corpus: one pass over it makes an index, which answers questions in milliseconds.

index = scan(model, sae, "stories.txt", "features")
index.feature(12).density, index.examples(12)
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "FeatureIndex": "index",
        "documents": "sources",
        "effect": "effects",
        "sae_quality": "quality",
        "scan": "scanning",
        "weights_hash": "provenance",
    },
)
