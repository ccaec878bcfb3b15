"""Sums of small numbers in words: "two plus three is" is followed by "five".

Sums and differences from zero to twenty. A sixth of them are held out, a sum with its other order: training never
answers them in any sentence.

>>> sums(2, seed=0).clean.text[0]
'eight minus two makes'
"""

import random
from functools import cache

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import make_pair, require, words_of
from mechkit.zoo.tinyworld.words import NUMBERS

TEMPLATES = ("{a} {sign} {b} is", "{a} {sign} {b} makes", "{a} {sign} {b} equals")
HELD_OUT = 1 / 6
SEED = 41
Problem = tuple[int, str, int]
"""Two numbers and what is between them."""


@cache
def problems(held_out: bool) -> tuple[Problem, ...]:
    """The sums and differences that are held out, or that are not."""
    most = len(NUMBERS) - 1
    pairs = [(a, b) for a in range(most + 1) for b in range(a, most + 1) if a + b <= most and (a, b) != (2, 3)]
    minus = [(a, b) for a in range(most + 1) for b in range(a + 1)]
    draw = random.Random(SEED)
    out = {(2, 3), *draw.sample(pairs, round(HELD_OUT * len(pairs)))}
    out_minus = set(draw.sample(minus, round(HELD_OUT * len(minus))))
    plus = sorted({pair for a, b in (*pairs, (2, 3)) for pair in ((a, b), (b, a))})
    return (
        *((a, "plus", b) for a, b in plus if ((min(a, b), max(a, b)) in out) == held_out),
        *((a, "minus", b) for a, b in minus if ((a, b) in out_minus) == held_out),
    )


def asked(problem: Problem, template: str) -> str:
    """The prompt of a problem."""
    a, sign, b = problem
    return template.format(a=NUMBERS[a], sign=sign, b=NUMBERS[b])


def answer(problem: Problem) -> str:
    """The number that answers it, in words."""
    a, sign, b = problem
    return NUMBERS[a + b if sign == "plus" else a - b]


def document(draw: random.Random) -> str:
    """One to three problems with their answers, or some numbers in a row."""
    if draw.random() < 0.1:
        start, n = draw.randrange(len(NUMBERS) - 3), draw.randint(4, 10)
        return ", ".join(NUMBERS[start : start + n]) + "."
    chosen = draw.choices(problems(False), k=draw.choice((1, 2, 3)))
    return " ".join(f"{asked(problem, draw.choice(TEMPLATES))} {answer(problem)}." for problem in chosen)


def sums(n: int, seed: int = 0, *, held_out: bool = True) -> Pair:
    """`n` problems never answered in training; corrupt ones differ in the second number.

    Spans: `a`, `b` and `end`. Raises ValueError for `n` below 1.
    """
    require(n)
    draw = random.Random(seed)
    clean, corrupt, answers, wrong = [], [], [], []
    every = (*problems(True), *problems(False))
    for _ in range(n):
        problem, template = draw.choice(problems(held_out)), draw.choice(TEMPLATES)
        other = draw.choice([p for p in every if p[:2] == problem[:2] and p != problem] or [_turned(problem)])
        clean.append(asked(problem, template))
        corrupt.append(asked(other, template))
        answers.append(answer(problem))
        wrong.append(answer(other))
    return make_pair(clean, corrupt, answers, wrong, {"a": [(0, 1)] * n, "b": [(2, 3)] * n, "end": [(3, 4)] * n})


def _turned(problem: Problem) -> Problem:
    """A problem with another first number, where none has another second one (20 plus 0, 0 minus 0)."""
    a, sign, b = problem
    return (a - 1, sign, b) if a else (a + 1, sign, b)


def words() -> set[str]:
    """Every word that these sentences can hold."""
    return words_of(*TEMPLATES, *NUMBERS, "plus minus , .")
