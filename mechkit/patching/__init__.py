"""What a site does to an answer.

`activation` patches and ablates, `attribution` estimates that by gradients and gives direct effects on logits, `paths`
patches along paths, `compat` holds drop-in functions.

>>> from mechkit.patching import patch
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__, {"attribute": "attribution", "patch": "activation", "path_patch": "paths"}
)
