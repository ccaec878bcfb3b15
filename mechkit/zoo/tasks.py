"""Task builders: `mk.tasks.<name>(n, seed) -> Pair`, clean and corrupt prompts with their answers.

The papers' tasks (`ioi`, `greater_than`, `induction`, `docstring`) take the model whose tokenizer reads them, and need
words that it reads as one token.

>>> pair = addition(3, seed=0)
>>> pair.clean.tokens.shape, pair.clean.answers.shape
(torch.Size([3, 4]), torch.Size([3, 1]))
"""

import random

from mechkit.core.prompts import Pair
from mechkit.zoo.addition import seen_sums, sums_answers, sums_tokens, unseen_sums
from mechkit.zoo.docstring import docstring, rivals
from mechkit.zoo.greater_than import greater_than, years
from mechkit.zoo.induction import induction
from mechkit.zoo.ioi import ioi

__all__ = ["addition", "docstring", "greater_than", "induction", "ioi", "rivals", "years"]


def addition(n: int, seed: int = 0, *, unseen: bool = True) -> Pair:
    """`n` sums `a+b=`, each with a corrupt one that differs in `b` alone; answers are the two sums.

    For the bundled model "addition". Clean sums are drawn without repeats from those it never trained on, or from
    those it did with `unseen=False`; the corrupt `b` is any other. The same seed gives the same pairs.
    Raises ValueError where there are not as many sums.
    """
    pool = unseen_sums() if unseen else seen_sums()
    if not 1 <= n <= len(pool):
        raise ValueError(f"{n} sums were asked for; there are {len(pool)} {'unseen' if unseen else 'seen'} ones")
    draw = random.Random(seed)
    clean = draw.sample(pool, n)
    corrupt = [(a, draw.choice([other for other in range(100) if other != b])) for a, b in clean]
    answers, wrong = sums_answers(clean), sums_answers(corrupt)
    return Pair.from_tokens(sums_tokens(clean), sums_tokens(corrupt), answers, wrong)
