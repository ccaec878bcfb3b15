"""Indirect object identification: "Then Ann and Tom went to the park. Tom gave a ring to" is followed by "Ann".

The subject S is named twice, the indirect object IO once; the answer is IO, the wrong answer S. Corrupt prompts name
three other people in the same places. A fifth of all pairs of names are held out: while training the two never meet in
such a sentence, or in a story of false belief. One text in eight names a third person as giver; then either may follow.

Source: Wang et al. 2022 (arXiv 2211.00593), section 2; the sentences are mechkit's own.

>>> ioi(3, seed=0).clean.spans["S2"]
((10, 11), (11, 12), (12, 13))
"""

import random
from dataclasses import dataclass
from functools import cache

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import encode, make_pair, place, require, words_of
from mechkit.zoo.tinyworld.words import NAMES

TEMPLATES = (
    "then {first} and {second} went to the {place}. {S} gave a {thing} to",
    "then, {first} and {second} went to the {place}. {S} gave a {thing} to",
    "after lunch {first} and {second} met at the {place}. {S} handed a {thing} to",
    "when {first} and {second} came to the {place}, {S} showed a {thing} to",
    "yesterday {first} and {second} were at the {place}, and {S} passed a {thing} to",
    "while {first} and {second} waited near the {place}, {S} offered a {thing} to",
    "on Sunday {first} and {second} drove to the {place}. {S} brought a {thing} to",
    "since {first} and {second} both liked the {place}, {S} promised a {thing} to",
    "once {first} and {second} had left the {place}, {S} threw a {thing} to",
    "two friends, {first} and {second} worked at the {place}. {S} sold a {thing} to",
    "late at night {first} and {second} found the {place}, where {S} gave a {thing} to",
    "today {first} and {second} cleaned the {place}. In the evening {S} sent a {thing} to",
)
"""IO and S are `first` and `second`, in either order."""
PLACES = ("store", "garden", "park", "school", "hospital", "office", "house", "station", "museum", "library")
THINGS = ("ring", "ball", "bone", "book", "computer", "necklace", "drink", "snack", "letter", "map")
HELD_OUT = 0.2
"""Share of the unordered pairs of names that never meet in training."""
SEED = 11


@cache
def couples(held_out: bool) -> tuple[tuple[str, str], ...]:
    """The unordered pairs of names that are held out, or that are not."""
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
    out = set(random.Random(SEED).sample(range(len(pairs)), round(HELD_OUT * len(pairs))))
    return tuple(pair for i, pair in enumerate(pairs) if (i in out) == held_out)


def couple(draw: random.Random, held_out: bool = False) -> tuple[str, str]:
    """Two names in random order."""
    a, b = draw.choice(couples(held_out))
    return (a, b) if draw.random() < 0.5 else (b, a)


def document(draw: random.Random) -> str:
    """A sentence with its answer, of two names that may meet; now and then a third person gives."""
    indirect, subject = couple(draw)
    again = draw.choice(NAMES) if draw.random() < 0.125 else subject
    answer = indirect if again == subject else draw.choice((indirect, subject))
    return f"{Scene.drawn(draw).text(indirect, subject, again)} {answer}."


def ioi(n: int, seed: int = 0, *, held_out: bool = True) -> Pair:
    """`n` prompts whose answer is the indirect object; corrupt ones name three other people.

    Clean pairs of names never met in training, or did with `held_out=False`. Answers are IO, wrong answers S.
    Spans, on both sides: `IO`, `S1`, `S1_next` (the token after it), `S2` and `end`. Raises ValueError for `n` below 1.
    """
    require(n)
    draw = random.Random(seed)
    clean, corrupt, people = [], [], []
    for _ in range(n):
        indirect, subject = couple(draw, held_out)
        others = draw.sample([name for name in NAMES if name not in (indirect, subject)], 3)
        scene = Scene.drawn(draw)
        clean.append(scene.text(indirect, subject, subject))
        corrupt.append(scene.text(*others))
        people.append((indirect, subject))
    return make_pair(clean, corrupt, *zip(*people, strict=True), spans=_spans(clean, people))


@dataclass(frozen=True)
class Scene:
    """A sentence of this kind without its people."""

    template: str
    """One of `TEMPLATES`."""
    swapped: bool
    """Whether the subject is named before the indirect object."""
    place: str
    """One of `PLACES`."""
    thing: str
    """One of `THINGS`."""

    @classmethod
    def drawn(cls, draw: random.Random) -> "Scene":
        """A random one."""
        return cls(draw.choice(TEMPLATES), draw.random() < 0.5, draw.choice(PLACES), draw.choice(THINGS))

    def text(self, indirect: str, subject: str, again: str) -> str:
        """The prompt, in which `again` is who acts."""
        first, second = (subject, indirect) if self.swapped else (indirect, subject)
        return self.template.format(first=first, second=second, S=again, place=self.place, thing=self.thing)


def _spans(texts, people) -> dict[str, list[tuple[int, int]]]:
    rows = list(zip(texts, people, strict=True))
    first = [place(text, subject) for text, (_, subject) in rows]
    return {
        "IO": [place(text, indirect) for text, (indirect, _) in rows],
        "S1": first,
        "S1_next": [(start + 1, end + 1) for start, end in first],
        "S2": [place(text, subject, last=True) for text, (_, subject) in rows],
        "end": [(len(encode(text)) - 1, len(encode(text))) for text in texts],
    }


def words() -> set[str]:
    """Every word that these sentences can hold."""
    return words_of(*TEMPLATES, *PLACES, *THINGS, *NAMES, ".")
