"""What a site does to an answer: activation patching and ablation (`activation`), drop-in `compat` functions.

>>> from mechkit.patching import patch
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(__name__, {"patch": "activation"})
