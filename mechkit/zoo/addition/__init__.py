"""The addition model: a two-layer transformer that adds two numbers below 100, and its transcoders.

`mechkit.zoo.load("addition")` gives the model; `card.md` beside this file says how it was made and how good it is.

>>> from mechkit.zoo.addition import sums_text, unseen_sums
>>> model.to_tokens(sums_text(unseen_sums()[:2])).shape
torch.Size([2, 4])
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "seen_sums": "tasks",
        "peaks": "fourier",
        "spectrum": "fourier",
        "sums_answers": "tasks",
        "sums_text": "tasks",
        "sums_tokens": "tasks",
        "unseen_sums": "tasks",
    },
)
