"""Induction: random words, and then the same words again, which can only be copied.

>>> pair = induction(2, seed=0, length=10)
>>> pair.clean.tokens.shape      # BOS, ten words, the first nine again
torch.Size([2, 20])
"""

import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import BOS, SPECIAL, decode, ids, require


def document(draw: random.Random) -> list[int]:
    """Token ids of some random words, two to four times: four to forty of them, eighty at most in all."""
    length = draw.choice((4, 6, 8, 11, 14, 18, 23, 29, 34, 40))
    return _random(length, draw) * draw.randint(2, min(4, 80 // length))


def _random(length: int, draw: random.Random) -> list[int]:
    return draw.sample(range(len(SPECIAL), len(ids())), length)


def induction(n: int, seed: int = 0, *, length: int = 20) -> Pair:
    """`n` prompts of `length` random words and all but the last again; the answer is that last one.

    In a corrupt prompt the last word of the first half is another, the wrong answer, so the two differ in one token.
    Spans: `first` (the word before the answer, the first time), `source` (the answer itself), `first_copy`,
    `second_copy` and `end`.
    Raises ValueError for `n` below 1 or fewer than two words.
    """
    require(n)
    require(length - 1, what="words before the answer")
    draw = random.Random(seed)
    drawn = [_random(length + 1, draw) for _ in range(n)]
    clean, corrupt = (
        [[ids()[BOS], *row[: length - 1], row[last], *row[: length - 1]] for row in drawn] for last in (-2, -1)
    )
    spans = {"first": [(length - 1, length)] * n, "source": [(length, length + 1)] * n}
    spans |= {"first_copy": [(1, length + 1)] * n, "second_copy": [(length + 1, 2 * length)] * n}
    spans["end"] = [(2 * length - 1, 2 * length)] * n
    return Pair.from_tokens(clean, corrupt, [row[-2] for row in drawn], [row[-1] for row in drawn], spans=spans)


def repeated(n: int, seed: int = 0, *, length: int = 40) -> Int[Tensor, "prompt pos"]:
    """A BOS and `length` random words twice, for the loss of the second half and for prefix matching."""
    draw = random.Random(seed)
    return torch.tensor([[ids()[BOS], *(_random(length, draw) * 2)] for _ in range(n)])


@torch.no_grad()
def copy_losses(model, tokens: Int[Tensor, "prompt pos"]) -> tuple[float, float]:
    """Mean loss of the words of the first half and of the second, in nats; one forward pass.

    The first word of each half is left out: nothing says that it comes.
    """
    half = (tokens.shape[1] - 1) // 2
    logits = model(tokens.to(next(model.parameters()).device))[:, :-1]
    lost = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten().to(logits.device), reduction="none"
    )
    lost = lost.view(len(tokens), -1)
    return float(lost[:, 1:half].mean()), float(lost[:, half + 1 :].mean())


@torch.no_grad()
def prefix_matching(model, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "layer head"]:
    """How much of its attention each head gives, from a word's second place, to the word after its first place.

    Mean over the second half, 0 to 1; one forward pass. Source: Olsson et al. 2022, appendix (prefix matching).
    """
    half = (tokens.shape[1] - 1) // 2
    _, cache = model.run_with_cache(
        tokens.to(next(model.parameters()).device), names_filter=lambda name: name.endswith("hook_pattern")
    )
    there = torch.arange(half + 1, 2 * half + 1)
    scores = [
        cache["pattern", layer][:, :, there, there - half + 1].mean((0, 2)) for layer in range(model.cfg.n_layers)
    ]
    return torch.stack(scores).cpu()


def text(tokens: Int[Tensor, "pos"]) -> str:
    """The words of one prompt."""
    return decode(tokens.tolist())
