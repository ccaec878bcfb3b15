"""Tasks given by examples: "hot -> cold ; big -> small ; tall ->" is followed by "short".

Thirteen tasks on words and numbers. Every word's answer is told in plain sentences ("the opposite of tall is short"),
but a fifth of each task's words (a tenth of those to repeat) are held out: they never stand in a list of examples of
that task while training, nor of its partner. Most tasks share their words with another (opposite and comparative, next
and previous number): only the examples tell which.

Source: the tasks are of the kind of Todd et al. 2023 (arXiv 2310.15213) and Hendel et al. 2023 (arXiv 2310.15916).

>>> in_context(3, seed=0, task="opposite", n_examples=4).clean.text[0]
'harsh -> mild ; angry -> calm ; big -> small ; low -> high ; early ->'
"""

import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld import words as w
from mechkit.zoo.tinyworld.text import encode, make_pair, require, split, words_of

HELD_OUT = 0.2
SEED = 13
_NUMBERS = [*w.TWO_DIGITS[1:], *w.NUMBERS]
_AFTER = {a: b for a, b in pairwise(_NUMBERS) if a != "99"}
TABLES = {
    "opposite": w.OPPOSITES,
    "comparative": w.COMPARATIVES,
    "plural": w.PLURALS,
    "kind": w.KINDS,
    "past": w.PASTS,
    "participle": w.PARTICIPLES,
    "capital": w.CAPITALS,
    "nationality": w.NATIONALITIES,
    "next": _AFTER,
    "previous": {b: a for a, b in _AFTER.items()},
}
"""The tasks that map a word to a word."""
POSITIONAL = ("copy_first", "copy_last", "marked")
"""The tasks on three words: repeat the first, the last, or the one after a `*`."""
TASKS = (*TABLES, *POSITIONAL)
COPIED = tuple(
    dict.fromkeys(
        word
        for table in (w.PLURALS, w.COMPARATIVES, w.PASTS, w.PARTICIPLES, w.CAPITALS, w.NATIONALITIES)
        for word in (*table, *table.values())
    )
)
"""Words that tasks on three words are about."""
COPIED_OUT = tuple(split(COPIED, HELD_OUT, SEED)[1])
"""Words held out for tasks on three words: half of them for repeating by place, the others for repeating by mark."""
HARD = ("next", "previous", *POSITIONAL)
"""Tasks that only the examples tell apart; they have twice as many lists."""
PARTNERS = {
    a: b
    for pair in ("opposite comparative", "plural kind", "past participle", "capital nationality", "next previous")
    for a, b in (pair.split(), pair.split()[::-1])
} | {"copy_first": "copy_last", "copy_last": "copy_first", "marked": "copy_first"}
"""Whose examples a corrupt prompt shows instead."""
SENTENCES = {
    "opposite": ("the opposite of {x} is {y}.", "if it is not {x} then it is {y}.", "{x} is the opposite of {y}."),
    "comparative": ("this is {x} but that is even {y}.", "more than {x} is {y}.", "it was {x} and then it became {y}."),
    "plural": ("one {x} and one more {x} are two {y}.", "I have a {x} and she has many {y}.", "{x} becomes {y}."),
    "kind": ("every {x} is a kind of {y}.", "the {x} is a {y}.", "a {x} is some kind of {y}."),
    "past": ("today they {x} and yesterday they {y}.", "we {x} now as we {y} before.", "yesterday to {x} was {y}."),
    "participle": ("they {x} because they like {y}.", "to {x} is called {y}.", "who can {x} is good at {y}."),
    "capital": ("the capital of {x} is {y}.", "{x} is ruled from {y}.", "the largest city of {x} is {y}."),
    "nationality": ("people from {x} are {y}.", "a person born in {x} is {y}.", "in {x} the people are {y}."),
    "next": ("after {x} comes {y}.", "count on from {x} to {y}.", "{x} is just before {y}."),
    "previous": ("before {x} comes {y}.", "count back from {x} to {y}.", "{x} is just after {y}."),
}
"""How training tells what belongs to a word, held out or not."""
ARROW, PART, MARK = "->", ";", "*"


@cache
def pool(task: str, held_out: bool) -> tuple[str, ...]:
    """The words of a task that are held out, or that are not; an opposite goes with its word."""
    if task == "opposite":
        heads = sorted({min(pair) for pair in w.OPPOSITES.items()} - {"tall", "short", "hot", "cold", "big", "small"})
        out = {"tall", *split(heads, HELD_OUT, SEED)[1]}
        out |= {w.OPPOSITES[word] for word in out}
    elif task in ("next", "previous"):
        out = set(split(_NUMBERS, HELD_OUT, SEED)[1])
    elif task in POSITIONAL:
        out = set(split(COPIED_OUT, 0.5, SEED)[task == "marked"])
    else:
        out = set(split(TABLES[task], HELD_OUT, SEED + TASKS.index(task))[1])
    return tuple(word for word in TABLES.get(task, COPIED) if (word in out) == held_out)


@cache
def listed(task: str) -> tuple[str, ...]:
    """The words of a task that stand in lists: held out neither for it nor for its partner; no word tells the task."""
    out = pool(PARTNERS[task], True) if PARTNERS[PARTNERS[task]] == task else ()
    return tuple(word for word in pool(task, False) if word not in out)


def question(task: str, word: str, draw: random.Random, others: Sequence[str]) -> tuple[str, str]:
    """What stands before the arrow and after it; tasks on three words draw two of `others` beside `word`.

    >>> question("plural", "dog", random.Random(0), ())
    ('dog', 'dogs')
    """
    if task in TABLES:
        return word, TABLES[task][word]
    three = [word, *draw.sample([other for other in others if other != word], 2)]
    return _three(task, three, draw)


def _three(task: str, three: list[str], draw: random.Random) -> tuple[str, str]:
    """Three words of which the first is the answer, put where the task wants it."""
    answer, *others = three
    at = {"copy_first": 0, "copy_last": 2}.get(task, draw.randrange(3))
    order = [*others[:at], answer, *others[at:]]
    shown = [f"{MARK} {one}" if task == "marked" and i == at else one for i, one in enumerate(order)]
    return " ".join(shown), answer


def document(draw: random.Random) -> str:
    """A list of three to ten examples of one task, of words that are not held out for it or its partner."""
    task = draw.choices(TASKS, [1 + (one in HARD) for one in TASKS])[0]
    return examples(task, listed(task), listed(task), draw)


def first_document(draw: random.Random) -> str:
    """The same as training has it at first, when no three words have any that are held out for one of their tasks."""
    task = draw.choices(TASKS, [1 + (one in HARD) for one in TASKS])[0]
    words = tuple(word for word in listed(task) if task in TABLES or word not in COPIED_OUT)
    return examples(task, words, words, draw)


def examples(task: str, words: Sequence[str], others: Sequence[str], draw: random.Random) -> str:
    """A list of some of these words; tasks on three words have two of the others beside each."""
    n = draw.randint(3, 10 if task in TABLES else 7)
    told = [question(task, word, draw, others) for word in draw.sample(words, n)]
    return f" {PART} ".join(f"{x} {ARROW} {y}" for x, y in told) + "."


def sentence(draw: random.Random) -> str:
    """One to three plain sentences, each telling what belongs to some word, held out or not."""
    told = []
    for _ in range(draw.choice((1, 2, 3))):
        task = draw.choice(tuple(TABLES))
        x, y = draw.choice(tuple(TABLES[task].items()))
        told.append(draw.choice(SENTENCES[task]).format(x=x, y=y))
    return " ".join(told)


def in_context(n: int, seed: int = 0, *, task: str | None = None, n_examples: int = 5, held_out: bool = True) -> Pair:
    """`n` questions after `n_examples` examples; corrupt prompts show the same words under another task.

    The word asked for is one that never stood in a list of this task in training, unless `held_out` is False. Examples
    are of words that were trained on. The corrupt prompt of "hot -> cold ; tall ->" is "hot -> hotter ; tall ->", and
    its answer the wrong one; that of "marked" has its marks moved. Spans: `query` and `end`, the last arrow.
    Raises ValueError for an unknown task or `n` below 1.
    """
    if task not in (None, *TASKS):
        raise ValueError(f"no task {task!r}; the tasks are {', '.join(TASKS)}")
    require(n)
    draw = random.Random(seed)
    rows = [_contrast(task or draw.choice(TASKS), n_examples, held_out, draw) for _ in range(n)]
    clean, corrupt, answers, wrong, queries = zip(*rows, strict=True)
    ends = [len(encode(text)) for text in clean]
    spans = {
        "query": [(end - 1 - length, end - 1) for end, length in zip(ends, queries, strict=True)],
        "end": [(end - 1, end) for end in ends],
    }
    return make_pair(clean, corrupt, answers, wrong, spans)


def _contrast(task: str, n_examples: int, held_out: bool, draw: random.Random):
    """Clean text, corrupt text, answer, wrong answer, tokens of the query."""
    beside = pool(task, True) if held_out else listed(task)
    asked = draw.choice(_askable(task, beside))
    shown = draw.sample([word for word in _askable(task, listed(task)) if word != asked], n_examples)
    items = [*(question(task, word, draw, listed(task)) for word in shown), question(task, asked, draw, beside)]
    others = [_other(task, x, y) for x, y in items]
    clean, corrupt = (_list(some) for some in (items, others))
    return clean, corrupt, items[-1][1], others[-1][1], len(encode(items[-1][0]))


@cache
def _askable(task: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Those words that the task's partner knows as well."""
    other = TABLES.get(PARTNERS[task])
    return tuple(word for word in words if other is None or word in other)


def _other(task: str, x: str, y: str) -> tuple[str, str]:
    """The same words under the partner task."""
    if task in TABLES:
        return x, TABLES[PARTNERS[task]][x]
    three = [word for word in x.split() if word != MARK]
    if task != "marked":
        return x, three[0 if task == "copy_last" else 2]
    moved = (three.index(y) + 1) % 3
    return " ".join(f"{MARK} {word}" if i == moved else word for i, word in enumerate(three)), three[moved]


def _list(items) -> str:
    *examples, (x, _) = items
    return "".join(f"{a} {ARROW} {b} {PART} " for a, b in examples) + f"{x} {ARROW}"


def words() -> set[str]:
    """Every word that lists and sentences can hold."""
    plain = [sentence for group in SENTENCES.values() for sentence in group]
    entries = [f"{x} {y}" for table in TABLES.values() for x, y in table.items()]
    return words_of(*plain, *entries, f"{ARROW} {PART} {MARK} .")
