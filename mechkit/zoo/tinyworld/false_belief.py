"""False belief: a thing is moved while somebody is away. Where does she look, and where is it?

    Anna put the ball in the box. Anna walked out of the room. Tom moved the ball to the bag. Anna came back.
    Anna looked for the ball in the        -> box
    The ball was in the                    -> bag

Where Anna sat down in the room instead, she saw it, and looks in the bag. A fifth of the meetings of a thing with a
first place and a second place are held out: no training story has them.

Source: the unexpected-transfer task of Wimmer and Perner 1983; the sentences are mechkit's own.

>>> false_belief(2, seed=0).clean.text[0]
'Sarah put the doll in the chest. Sarah walked out of the room. Jason moved the doll to the drawer. Sarah came back
to the doll. Sarah looked for the doll in the'
"""

import random
from dataclasses import dataclass
from functools import cache

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.ioi import couple
from mechkit.zoo.tinyworld.text import encode, make_pair, place, require, words_of

THINGS = ("ball", "ring", "book", "hat", "shoe", "doll", "kite", "letter", "map", "knife", "cup", "glove")
PLACES = ("box", "basket", "bag", "bucket", "jar", "drawer", "chest", "crate", "barrel", "desk")
STORY = (
    "{A} put the {thing} in the {first}. {A} {does} the room. {B} moved the {thing} to the {second}. "
    "{A} came back to the {thing}."
)
ABSENT, PRESENT = "walked out of", "sat down in"
"""What she does while the thing is moved."""
QUESTIONS = {
    "belief": "{A} looked for the {thing} in the",
    "other": "{B} looked for the {thing} in the",
    "truth": "the {thing} was in the",
}
"""Where she looks, where the other looks, and where it is."""
HELD_OUT = 0.2
SEED = 37


@dataclass(frozen=True)
class Story:
    """Who moved what, from where to where."""

    A: str
    """Who put the thing away first."""
    B: str
    """Who moved it."""
    thing: str
    """One of `THINGS`."""
    first: str
    """One of `PLACES`."""
    second: str
    """Another one."""

    def text(self, question: str, away: bool) -> str:
        """The prompt, with her away or there."""
        template = f"{STORY} {QUESTIONS[question]}"
        return template.format(does=ABSENT if away else PRESENT, **vars(self))

    def answer(self, question: str, away: bool) -> str:
        """The place that is looked in, or in which the thing is."""
        return self.first if question == "belief" and away else self.second


@cache
def meetings(held_out: bool) -> tuple[tuple[str, str, str], ...]:
    """Thing, first and second place, that are held out, or that are not."""
    every = [(thing, a, b) for thing in THINGS for a in PLACES for b in PLACES if a != b]
    out = set(random.Random(SEED).sample(range(len(every)), round(HELD_OUT * len(every))))
    return tuple(meeting for i, meeting in enumerate(every) if (i in out) == held_out)


def _story(draw: random.Random, held_out: bool) -> Story:
    return Story(*couple(draw, held_out), *draw.choice(meetings(held_out)))


def document(draw: random.Random) -> str:
    """A story, with her away or there, and an answered question."""
    story, away = _story(draw, False), draw.random() < 0.5
    question = draw.choice(("belief", "belief", "other", "truth"))
    return f"{story.text(question, away)} {story.answer(question, away)}."


def false_belief(n: int, seed: int = 0, *, question: str = "belief", held_out: bool = True) -> Pair:
    """`n` stories in which she is away; in corrupt ones she sees the thing moved.

    For `question="belief"` the answer is the first place and the wrong answer the second. For "truth" and "other",
    whose answer is the second place either way, corrupt stories have the two places the other way round instead.
    Spans: `does` (what she does), `first`, `second` (the places) and `end`. Raises ValueError for an unknown question.
    """
    if question not in QUESTIONS:
        raise ValueError(f"no question {question!r}; the questions are {', '.join(QUESTIONS)}")
    require(n)
    draw = random.Random(seed)
    stories = [_story(draw, held_out) for _ in range(n)]
    clean = [story.text(question, True) for story in stories]
    if question == "belief":
        corrupt = [story.text(question, False) for story in stories]
    else:
        turned = [Story(s.A, s.B, s.thing, s.second, s.first) for s in stories]
        corrupt = [story.text(question, True) for story in turned]
    answers = [story.answer(question, True) for story in stories]
    wrong = [s.second if a == s.first else s.first for s, a in zip(stories, answers, strict=True)]
    spans = {
        "does": [place(text, ABSENT) for text in clean],
        "first": [place(text, s.first) for text, s in zip(clean, stories, strict=True)],
        "second": [place(text, s.second) for text, s in zip(clean, stories, strict=True)],
        "end": [(len(encode(text)) - 1, len(encode(text))) for text in clean],
    }
    return make_pair(clean, corrupt, answers, wrong, spans)


def words() -> set[str]:
    """Every word that these stories can hold."""
    return words_of(STORY, *QUESTIONS.values(), ABSENT, PRESENT, *THINGS, *PLACES)
