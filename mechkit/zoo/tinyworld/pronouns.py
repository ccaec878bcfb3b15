"""Gendered pronouns: "Mary went home because" is followed by "she".

A quarter of the first names are held out: no pronoun ever follows them in training, and only "Mary is a woman" or
"Mary is a daughter" says who they are.

>>> pronouns(2, seed=0).clean.text[0]
'Laura opened the door of'
"""

import random

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import encode, make_pair, require, split, words_of
from mechkit.zoo.tinyworld.words import FEMALE, MEN, NAMES, WOMEN

TEMPLATES = (
    ("{N} went home because", "{he} was tired."),
    ("{N} stayed in bed because", "{he} was sick."),
    ("{N} said that", "{he} was hungry."),
    ("{N} smiled when", "{he} won the prize."),
    ("{N} went to the store and then", "{he} went home."),
    ("{N} lost", "{his} ring."),
    ("{N} opened the door of", "{his} house."),
    ("{N} is proud of", "{his} garden."),
)
"""A prompt, and how it goes on."""
PLAIN = ("{N} is a {man}.", "the {man} is called {N}.", "{N} is the {man} of a doctor.", "{N} was a good {man}.")
"""How training says which names are of women; `{man}` is a word for a man, or for a woman."""
FORMS = ({"he": "he", "his": "his"}, {"he": "she", "his": "her"})
_SEEN, _OUT = zip(split(MEN, 0.25, 23), split(WOMEN, 0.25, 23), strict=True)
SEEN, HELD_OUT = ({name: sex for sex, group in enumerate(names) for name in group} for names in (_SEEN, _OUT))
"""Names that pronouns follow in training, and those that none follows; 1 for a woman's."""


def document(draw: random.Random) -> str:
    """A sentence in which a pronoun follows a name, or one that says who somebody is."""
    if draw.random() < 0.5:
        name = draw.choice(NAMES)
        man, woman = draw.choice(list(FEMALE.items()))
        return draw.choice(PLAIN).format(N=name, man=woman if name in WOMEN else man)
    name, sex = draw.choice(list(SEEN.items()))
    return " ".join(draw.choice(TEMPLATES)).format(N=name, **FORMS[sex])


def pronouns(n: int, seed: int = 0, *, held_out: bool = True) -> Pair:
    """`n` prompts that a pronoun follows; corrupt ones name somebody of the other sex.

    Spans: `name` and `end`. Raises ValueError for `n` below 1.
    """
    require(n)
    draw = random.Random(seed)
    people = HELD_OUT if held_out else SEEN
    clean, corrupt, answers, wrong = [], [], [], []
    for _ in range(n):
        prompt, rest = draw.choice(TEMPLATES)
        name, sex = draw.choice(list(people.items()))
        clean.append(prompt.format(N=name))
        corrupt.append(prompt.format(N=draw.choice([other for other, o in people.items() if o != sex])))
        right, other = (rest.format(**form).split()[0] for form in (FORMS[sex], FORMS[1 - sex]))
        answers.append(right)
        wrong.append(other)
    ends = [(len(encode(text)) - 1, len(encode(text))) for text in clean]
    return make_pair(clean, corrupt, answers, wrong, {"name": [(0, 1)] * n, "end": ends})


def words() -> set[str]:
    """Every word that these sentences can hold."""
    pieces = [piece for pair in TEMPLATES for piece in pair]
    return words_of(*pieces, *PLAIN, *FEMALE, *FEMALE.values(), *NAMES, "he she his her")
