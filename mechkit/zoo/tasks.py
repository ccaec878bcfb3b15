"""Task builders: `mk.tasks.<name>(n, seed) -> Pair`, clean and corrupt prompts with their answers.

Tasks of the bundled language model "tinyworld" need no model: their prompts are held-out ones of its world. The papers'
tasks (`ioi`, `greater_than`, `induction`, `docstring`) also take any other model whose tokenizer reads their words as
one token each: `mk.tasks.ioi(50, model=gpt2)`.

>>> pair = addition(3, seed=0)
>>> pair.clean.tokens.shape, pair.clean.answers.shape
(torch.Size([3, 4]), torch.Size([3, 1]))
"""

import random
from dataclasses import replace
from typing import Any

from mechkit.core.prompts import Pair
from mechkit.zoo import greater_than as _greater_than
from mechkit.zoo import induction as _induction
from mechkit.zoo import ioi as _ioi
from mechkit.zoo.addition import seen_sums, sums_answers, sums_tokens, unseen_sums
from mechkit.zoo.docstring import docstring, rivals

PAPERS = ("docstring", "greater_than", "induction", "ioi")
"""Tasks of papers, for any model that reads their words; all but `docstring` are tasks of tinyworld too."""
TINYWORLD = (
    *("agreement", "analogies", "calendar", "facts", "false_belief", "greater_than", "in_context", "induction", "ioi"),
    *("pronouns", "sums"),
)
"""Tasks of the bundled language model."""
__all__ = [
    "PAPERS",
    "TINYWORLD",
    "addition",
    "agreement",
    "analogies",
    "calendar",
    "docstring",
    "facts",
    "false_belief",
    "greater_than",
    "in_context",
    "induction",
    "ioi",
    "pronouns",
    "rivals",
    "sums",
    "years",
]


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


def ioi(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` prompts whose answer is the indirect object, with corrupt ones that name three other people.

    Options are those of `mechkit.zoo.ioi.ioi` (`order`, `prepend_bos`), or of tinyworld's (`held_out`).
    """
    return _tinyworld("ioi", n, seed, model, options) if _bundled(model) else _ioi.ioi(n, seed, model=model, **options)


def greater_than(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` prompts that ask for a later year, with corrupt ones that start in year 01; for `prob_diff(years(model))`.

    Options are those of `mechkit.zoo.greater_than.greater_than` (`prepend_bos`), or of tinyworld's (`held_out`).
    """
    if _bundled(model):
        return _tinyworld("greater_than", n, seed, model, options)
    return _greater_than.greater_than(n, seed, model=model, **options)


def years(model=None) -> list[int]:
    """Token ids of the years 00 to 99, in order: what `prob_diff` sums over."""
    if not _bundled(model):
        return _greater_than.years(model)
    from mechkit.zoo.tinyworld.text import ids
    from mechkit.zoo.tinyworld.words import TWO_DIGITS

    return [ids()[year] for year in TWO_DIGITS]


def induction(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` sequences of random tokens, told twice but for the last token, which is the answer.

    Corrupt prompts of tinyworld differ in the answer's place alone, those of other models in the whole first copy.
    Options are those of `mechkit.zoo.induction.induction` (`length`, `prepend_bos`), or of tinyworld's (`length`).
    """
    if _bundled(model):
        return _tinyworld("induction", n, seed, model, options)
    return _induction.induction(n, seed, model=model, **options)


def facts(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` facts about subjects of two words, in sentences never trained on for them; corrupt ones of another subject.

    Options: `relation` (sport, city, country, founder, origin), `held_out`.
    """
    return _tinyworld("facts", n, seed, model, options)


def in_context(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` questions after examples of a task, "hot -> cold ; tall ->"; corrupt ones show another task.

    Options: `task`, `n_examples`, `held_out`.
    """
    return _tinyworld("in_context", n, seed, model, options)


def agreement(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` subjects with an attractor of the other number before their verb; corrupt subjects have the other number.

    Options: `held_out`.
    """
    return _tinyworld("agreement", n, seed, model, options)


def pronouns(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` prompts that "he" or "she" follows, "his" or "her"; corrupt ones name somebody of the other sex.

    Options: `held_out`.
    """
    return _tinyworld("pronouns", n, seed, model, options)


def analogies(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` analogies, "man is to king as woman is to"; corrupt ones ask for another couple.

    Options: `kind` (sex, capital, comparative), `held_out`.
    """
    return _tinyworld("analogies", n, seed, model, options)


def calendar(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` questions about days and months, "two days after Monday is"; corrupt ones start from another.

    Options: `held_out`.
    """
    return _tinyworld("calendar", n, seed, model, options)


def false_belief(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` stories of a thing that is moved while a person is away; in corrupt ones she sees it moved.

    Options: `question` (belief, truth, other), `held_out`.
    """
    return _tinyworld("false_belief", n, seed, model, options)


def sums(n: int, seed: int = 0, *, model=None, **options: Any) -> Pair:
    """`n` sums of small numbers in words; corrupt ones differ in the second number.

    Options: `held_out`.
    """
    return _tinyworld("sums", n, seed, model, options)


def _bundled(model) -> bool:
    """Whether a model is none at all or tinyworld, wherever it was loaded from."""
    return model is None or model.cfg.model_name == "tinyworld"


def _tinyworld(task: str, n: int, seed: int, model, options: dict[str, Any]) -> Pair:
    """A task of tinyworld, on the device of the model if one is given."""
    from mechkit.zoo.tinyworld import BUILDERS

    if not _bundled(model):
        raise ValueError(
            f"'{task}' is a task of tinyworld's words, and this model is '{model.cfg.model_name}'; "
            f"tasks for any model are {', '.join(PAPERS)}"
        )
    pair = BUILDERS[task](n, seed, **options)
    if model is None:
        return pair
    device = next(model.parameters()).device
    return replace(pair, clean=pair.clean.to(device), corrupt=pair.corrupt.to(device))
