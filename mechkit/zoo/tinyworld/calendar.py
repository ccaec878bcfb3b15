"""Days and months: "two days after Monday is" is followed by "Wednesday".

A fifth of all questions (a day or month, a number, before or after) are held out: training never answers them.

>>> calendar(2, seed=0).clean.text[0]
'ten months after June comes'
"""

import random
from functools import cache

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import encode, make_pair, place, require, words_of
from mechkit.zoo.tinyworld.words import DAYS, MONTHS, NUMBERS

TEMPLATES = ("{n} {unit} {way} {x} is", "{n} {unit} {way} {x} comes", "what is {n} {unit} {way} {x}? it is")
CYCLES = {"day": DAYS, "month": MONTHS}
HELD_OUT = 0.2
SEED = 31
Question = tuple[str, int, int, int]
"""Cycle, place in it, how many steps, and 1 for after or -1 for before."""


@cache
def questions(held_out: bool) -> tuple[Question, ...]:
    """The questions that are held out, or that are not; two days after Monday is held out."""
    every = [
        (cycle, start, steps, way)
        for cycle, names in CYCLES.items()
        for start in range(len(names))
        for steps in range(1, len(names))
        for way in (1, -1)
        if (cycle, start, steps, way) != ("day", 0, 2, 1)
    ]
    out = set(random.Random(SEED).sample(range(len(every)), round(HELD_OUT * len(every))))
    held = [question for i, question in enumerate(every) if i in out]
    return (("day", 0, 2, 1), *held) if held_out else tuple(q for i, q in enumerate(every) if i not in out)


def asked(question: Question, template: str) -> str:
    """The prompt of a question."""
    cycle, start, steps, way = question
    unit = cycle if steps == 1 else f"{cycle}s"
    side = "after" if way == 1 else "before"
    return template.format(n=NUMBERS[steps], unit=unit, way=side, x=CYCLES[cycle][start])


def answer(question: Question) -> str:
    """The day or month that answers it."""
    cycle, start, steps, way = question
    return CYCLES[cycle][(start + way * steps) % len(CYCLES[cycle])]


def document(draw: random.Random) -> str:
    """A question with its answer, or a few days or months in a row."""
    if draw.random() < 0.1:
        names = draw.choice((DAYS, MONTHS))
        start, n = draw.randrange(len(names)), draw.randint(3, len(names))
        return ", ".join(names[(start + i) % len(names)] for i in range(n)) + "."
    question = draw.choice(questions(False))
    return f"{asked(question, draw.choice(TEMPLATES))} {answer(question)}."


def calendar(n: int, seed: int = 0, *, held_out: bool = True) -> Pair:
    """`n` questions about days and months; corrupt ones start from another day or month.

    Spans: `steps` (the number), `start` and `end`. Raises ValueError for `n` below 1.
    """
    require(n)
    draw = random.Random(seed)
    clean, corrupt, answers, wrong, marks = [], [], [], [], []
    for _ in range(n):
        question, template = draw.choice(questions(held_out)), draw.choice(TEMPLATES)
        cycle, start, steps, way = question
        moved = draw.choice([other for other in range(len(CYCLES[cycle])) if other != start])
        other = (cycle, moved, steps, way)
        clean.append(asked(question, template))
        corrupt.append(asked(other, template))
        answers.append(answer(question))
        wrong.append(answer(other))
        marks.append((NUMBERS[steps], CYCLES[cycle][start]))
    spans = {
        "steps": [place(text, number) for text, (number, _) in zip(clean, marks, strict=True)],
        "start": [place(text, name) for text, (_, name) in zip(clean, marks, strict=True)],
        "end": [(len(encode(text)) - 1, len(encode(text))) for text in clean],
    }
    return make_pair(clean, corrupt, answers, wrong, spans)


def words() -> set[str]:
    """Every word that these sentences can hold."""
    return words_of(*TEMPLATES, *DAYS, *MONTHS, *NUMBERS, "day days month months before after , .")
