"""Documents as the earlier stages of training had them, where the later ones were worded or split otherwise.

Kept so that the whole training text can be made again. The card says what was wrong with them.

>>> lists(random.Random(0))
'Germany -> Berlin ; Hungary -> Budapest ; Nepal -> Kathmandu ; Morocco -> Rabat ; Brazil -> Brasilia ; Peru -> Lima
; Croatia -> Zagreb ; Sweden -> Stockholm ; Cuba -> Havana.'
"""

import random
from collections.abc import Sequence
from functools import cache

from mechkit.zoo.tinyworld import facts, in_context
from mechkit.zoo.tinyworld.in_context import HELD_OUT, NOUNS_AND_QUALITIES, PARTNERS, POSITIONAL, SEED, TASKS
from mechkit.zoo.tinyworld.text import split

_NUMBERS = [f"{n:02d}" for n in range(10, 99)]
_TABLES = in_context.TABLES | {
    "next": {n: f"{int(n) + 1:02d}" for n in _NUMBERS},
    "previous": {n: f"{int(n) - 1:02d}" for n in _NUMBERS},
}
_TOLD = {task: tuple(table) for task, table in _TABLES.items()}


def fact(draw: random.Random) -> str:
    """Facts of the first two stages, where "is in" went on as "is in the city of" as well."""
    return facts.document(draw).replace("stands in the c", "is in the c")


def sentence(draw: random.Random) -> str:
    """Plain sentences before number words were told of."""
    return in_context.sentence(draw, _TOLD)


def lists(draw: random.Random) -> str:
    """Lists of the first three stages: words held out for a task stood in its partner's lists, and so told the task."""
    task = draw.choice(TASKS)
    return in_context.examples(task, _pool(task, False), _pool(task, False), draw)


def lists_apart(draw: random.Random) -> str:
    """Lists of the fourth stage: no words held out for the partner, but these stood beside what is copied."""
    hard = ("next", "previous", "copy_first", "copy_last")
    task = draw.choices(TASKS, [1 + (one in hard) for one in TASKS])[0]
    return in_context.examples(task, _shared(task), NOUNS_AND_QUALITIES, draw)


@cache
def _pool(task: str, held_out: bool) -> tuple[str, ...]:
    if task not in ("next", "previous", *POSITIONAL):
        return in_context.pool(task, held_out)
    items: Sequence[str] = tuple(_TABLES[task]) if task in _TABLES else NOUNS_AND_QUALITIES
    return tuple(split(items, HELD_OUT, SEED + TASKS.index(task))[held_out])


@cache
def _shared(task: str) -> tuple[str, ...]:
    out = set(_pool(PARTNERS[task], True)) if PARTNERS[PARTNERS[task]] == task else set()
    return tuple(word for word in _pool(task, False) if word not in out)
