"""Analogies: "man is to king as woman is to" is followed by "queen".

Three kinds: a man's word and a woman's, a country and its capital, a quality and its comparative. Of the pairs of
couples, such as (man, woman) and (king, queen), a fifth are held out: they never meet in a training analogy. Titles and
family words also stand in sentences that differ by sex only, for their embeddings to be compared (king - man + woman).

>>> analogies(2, seed=0).clean.text[0]
'Kenya is to Nairobi as Morocco is to'
"""

import random
from functools import cache

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import encode, make_pair, require, words_of
from mechkit.zoo.tinyworld.words import CAPITALS, COMPARATIVES, FEMALE

TABLES = {"sex": FEMALE, "capital": CAPITALS, "comparative": COMPARATIVES}
PROMPT = "{a} is to {b} as {c} is to"
PLAIN = {
    "sex": (
        ("the {x} loves his wife.", "the {x} loves her husband."),
        ("the {x} is a good man.", "the {x} is a good woman."),
        ("once the {x} was a little boy.", "once the {x} was a little girl."),
        ("the {x} said that he was tired.", "the {x} said that she was tired."),
    ),
    "pair": ("the {x} talked to the {y}.", "the {y} is with the {x}.", "every {x} knows a {y}."),
}
"""What training says of people: each sex its sentences, and couples together."""
HELD_OUT = 0.2
SEED = 29


@cache
def meetings(kind: str, held_out: bool) -> tuple[tuple[str, str], ...]:
    """Pairs of left-hand words, such as "man" and "king", whose couples meet in one analogy, or never do."""
    words = tuple(TABLES[kind])
    pairs = [(a, b) for i, a in enumerate(words) for b in words[i + 1 :] if {a, b} != {"man", "king"}]
    out = set(random.Random(SEED).sample(range(len(pairs)), round(HELD_OUT * len(pairs))))
    held = [pair for i, pair in enumerate(pairs) if i in out]
    seen = [pair for i, pair in enumerate(pairs) if i not in out]
    return (*held, ("man", "king")) if held_out and kind == "sex" else tuple(held if held_out else seen)


def _filled(kind: str, pair: tuple[str, str], draw: random.Random) -> tuple[str, str]:
    """The prompt and its answer: along ("man is to woman as king") or, for sexes, across ("man is to king")."""
    table = TABLES[kind]
    one, other = pair if draw.random() < 0.5 else pair[::-1]
    if kind == "sex" and draw.random() < 0.5:
        a, b, c, d = one, other, table[one], table[other]
    else:
        a, b, c, d = one, table[one], other, table[other]
    if draw.random() < 0.5:
        a, b, c, d = (b, a, d, c) if (a, b) == (one, table[one]) else (c, d, a, b)
    return PROMPT.format(a=a, b=b, c=c), d


def document(draw: random.Random) -> str:
    """An analogy of two couples that may meet, or a sentence about people of one sex."""
    if draw.random() < 0.4:
        man, woman = draw.choice(list(FEMALE.items()))
        his, hers = draw.choice(PLAIN["sex"])
        plain = draw.choice(PLAIN["pair"]).format(x=man, y=woman)
        return draw.choice((plain, his.format(x=man), hers.format(x=woman)))
    kind = draw.choice(tuple(TABLES))
    prompt, answer = _filled(kind, draw.choice(meetings(kind, False)), draw)
    return f"{prompt} {answer}."


def analogies(n: int, seed: int = 0, *, kind: str | None = None, held_out: bool = True) -> Pair:
    """`n` analogies of couples that never met in training; corrupt ones ask for another couple.

    Spans: `query` (the third word) and `end`. Raises ValueError for an unknown kind or `n` below 1.
    """
    if kind not in (None, *TABLES):
        raise ValueError(f"no kind {kind!r}; the kinds are {', '.join(TABLES)}")
    require(n)
    draw = random.Random(seed)
    clean, corrupt, answers, wrong = [], [], [], []
    while len(clean) < n:
        chosen = kind or draw.choice(tuple(TABLES))
        pairs = meetings(chosen, held_out)
        pair, state = draw.choice(pairs), draw.getrandbits(32)
        other = draw.choice([p for p in pairs if not set(p) & set(pair)])
        # The same state makes the same choices of order, so both prompts ask alike.
        (text, answer), (changed, instead) = (_filled(chosen, p, random.Random(state)) for p in (pair, other))
        clean.append(text)
        corrupt.append(changed)
        answers.append(answer)
        wrong.append(instead)
    spans = {"query": [(5, 6)] * n, "end": [(len(encode(text)) - 1, len(encode(text))) for text in clean]}
    return make_pair(clean, corrupt, answers, wrong, spans)


def words() -> set[str]:
    """Every word that these sentences can hold."""
    pairs = [f"{a} {b}" for table in TABLES.values() for a, b in table.items()]
    plain = [text for group in PLAIN["sex"] for text in group]
    return words_of(PROMPT, *plain, *PLAIN["pair"], *pairs, ".")
