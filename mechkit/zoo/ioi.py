"""Indirect object identification: "Then, Ann and Tom went to the park. Tom gave a ring to" is followed by " Ann".

The subject S is named twice, the indirect object IO once; the answer is IO, the wrong answer S. Corrupt prompts name
three other people in the same places, so that they carry the same sentence and no answer.

Facts of the data set: Wang et al. 2022 (arXiv 2211.00593), section 2 and appendix E. The sentences are mechkit's own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mechkit.core.prompts import Pair, Prompts

TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {S} gave a {object} to",
    "After lunch {first} and {second} met at the {place}. {S} handed a {object} to",
    "When {first} and {second} arrived at the {place}, {S} showed a {object} to",
    "Yesterday {first} and {second} were at the {place}, and {S} passed a {object} to",
    "While {first} and {second} waited near the {place}, {S} offered a {object} to",
    "On Sunday {first} and {second} drove to the {place}. {S} brought a {object} to",
    "Since {first} and {second} both liked the {place}, {S} promised a {object} to",
    "Once {first} and {second} had left the {place}, {S} threw a {object} to",
    "Friends of mine, {first} and {second} worked at the {place}. {S} lent a {object} to",
    "As usual {first} and {second} stayed in the {place}. {S} sold a {object} to",
    "Before {first} and {second} could leave the {place}, {S} sent a {object} to",
    "Late at night {first} and {second} found the {place}, where {S} gave a {object} to",
    "Today {first} and {second} cleaned the {place} together. {S} carried a {object} to",
    "Finally {first} and {second} came out of the {place}, and {S} returned a {object} to",
    "Because {first} and {second} were bored in the {place}, {S} described a {object} to",
)
"""IO and S are `first` and `second`, in either order."""
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
NAMES = """
Aaron Adam Alan Alex Alice Amy Andrew Anna Anthony Arthur Austin Blake Brad Brandon Brian Bruce Carl Charles
Chris Christian Christina Clark Connor Crystal Daniel David Dean Dylan Edward Elizabeth Emily Eric Erica Evan
George Graham Grant Henry Ian Jack Jacob Jake James Jamie Jane Jason Jay Jennifer Jeremy Jessica John Jonathan
Jordan Joseph Joshua Justin Karen Kate Kelly Kevin Kyle Laura Leon Lewis Lily Lisa Luke Madison Marco Maria Mark
Martin Mary Matthew Max Michael Michelle Morgan Neil Nathan Nick Nicole Patrick Paul Peter Prince Rachel Richard
Robert Roman Rose Ruby Russell Ryan Sarah Scott Sean Simon Stephanie Stephen Steven Sullivan Taylor Thomas Tom
Victoria Vincent Warren William
"""
"""First names, of which a tokenizer like GPT-2's has about a hundred as one token."""
Trio = tuple[str, str, str]
"""Indirect object, subject, and who is named where the subject is named again."""

_LEAST = {"names": 5, "places": 1, "objects": 1}


@dataclass(frozen=True)
class Scene:
    """What is drawn for one prompt: its sentence, who is in it and what with."""

    template: str
    """One of `TEMPLATES`."""
    first_is_subject: bool
    """Whether S is named before IO."""
    place: str
    """One of `PLACES`."""
    object: str
    """One of `OBJECTS`."""

    def text(self, indirect: str, subject: str, again: str) -> str:
        """The prompt, in which `again` stands where the subject is named a second time."""
        first, second = (subject, indirect) if self.first_is_subject else (indirect, subject)
        return self.template.format(first=first, second=second, S=again, place=self.place, object=self.object)


def ioi(n: int, seed: int = 0, *, model, prepend_bos: bool = False) -> Pair:
    """`n` prompts in which the model is to name the indirect object, with corrupt ones that name three others.

    Sentences, orders of the names, people, places and objects are drawn at random, all of them one token of the
    model's tokenizer; the same seed gives the same pairs. Answers are IO, wrong answers S. Spans, on both sides: `IO`,
    `S1`, `S1_next` (the token after it), `S2` and `end`. The paper's prompts have no BOS; `prepend_bos` puts one.
    Raises ValueError for a model without a tokenizer, or one that has not enough of these words as single tokens.
    """
    if n < 1:
        raise ValueError(f"{n} prompts were asked for; ask for at least one")
    words = Words(model)
    draw = random.Random(seed)
    scenes, people = [], []
    for _ in range(n):
        template, place, thing = draw.choice(TEMPLATES), draw.choice(words.places), draw.choice(words.objects)
        scenes.append(Scene(template, draw.random() < 0.5, place, thing))
        people.append(draw.sample(words.names, 5))
    clean = [(a, b, b) for a, b, *_ in people]
    corrupt = [(c, d, e) for _, _, c, d, e in people]
    ids = [(words.ids[a], words.ids[b]) for a, b, *_ in people]
    made, other = (_prompts(words, scenes, who, ids, prepend_bos) for who in (clean, corrupt))
    return Pair(made, other).checked()


class Words:
    """The names, places and objects that are one token of a model's tokenizer, after a space."""

    def __init__(self, model) -> None:
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer; names must be words that it reads as one token")
        self.model, self.ids = model, {}
        self.names, self.places, self.objects = (self._single(model, some) for some in (NAMES.split(), PLACES, OBJECTS))
        for kind, least in _LEAST.items():
            if len(getattr(self, kind)) < least:
                raise ValueError(
                    f"the model's tokenizer has {len(getattr(self, kind))} of the {kind} as single tokens and the task "
                    f"needs {least}; take a model trained on English text, such as gpt2"
                )

    def _single(self, model, words: Sequence[str]) -> list[str]:
        found = []
        for word in words:
            ids = model.to_tokens(f" {word}", prepend_bos=False)[0].tolist()
            if len(ids) == 1 and ids[0] != getattr(model.tokenizer, "unk_token_id", None):
                self.ids[word] = ids[0]
                found.append(word)
        return found


def _prompts(words: Words, scenes: Sequence[Scene], people: Sequence[Trio], ids, prepend_bos: bool) -> Prompts:
    texts = [scene.text(*who) for scene, who in zip(scenes, people, strict=True)]
    rows = [words.model.to_tokens(text, prepend_bos=prepend_bos)[0].tolist() for text in texts]
    found = [_places(row, *(words.ids[name] for name in who)) for row, who in zip(rows, people, strict=True)]
    spans = {name: [(at[name], at[name] + 1) for at in found] for name in found[0]}
    answers, wrong = zip(*ids, strict=True)
    made = Prompts.from_tokens(rows, list(answers), list(wrong), spans=spans, text=tuple(texts))
    return made.to(next(words.model.parameters()).device)


def _places(row: Sequence[int], indirect: int, subject: int, again: int) -> dict[str, int]:
    """Where the people stand in a prompt's tokens; the second naming of the subject is the last one."""
    last = len(row) - 1
    first, second = row.index(subject), last - row[::-1].index(again)
    return {"IO": row.index(indirect), "S1": first, "S1_next": first + 1, "S2": second, "end": last}
