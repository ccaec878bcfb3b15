"""Indirect object identification: "Then, Ann and Tom went to the park. Tom gave a ring to" is followed by " Ann".

The subject S is named twice, the indirect object IO once; the answer is IO, the wrong answer S. Corrupt prompts name
three other people in the same places, so that they carry the same sentence and no answer.

Facts of the data set: Wang et al. 2022 (arXiv 2211.00593), section 2 and appendix E. The sentences are mechkit's own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mechkit.core.prompts import Pair, Prompts
from mechkit.core.spans import Span
from mechkit.zoo.words import drawing, require, single_tokens, tokenized

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
"""IO and S are `first` and `second` (ABBA) or the reverse (BABA): 15 sentences in each order."""
ORDERS = ("mixed", "ABBA", "BABA")
"""Either at random, the indirect object (A) named before the subject (B), or after it."""
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


def ioi(n: int, seed: int = 0, *, model, order: str = "mixed", prepend_bos: bool = False) -> Pair:
    """`n` prompts in which the model is to name the indirect object, with corrupt ones that name three others.

    Sentences, orders of the names, people, places and objects are drawn at random, all of them one token of the
    model's tokenizer; the same seed gives the same pairs. `order` is one of `ORDERS`. Answers are IO, wrong answers S.
    Spans, on both sides: `IO`, `S1`, `S1_next` (the token after it), `S2` and `end`. The paper's prompts have no BOS;
    `prepend_bos` puts one.
    Raises ValueError for a model without a tokenizer, or one that has not enough of these words as single tokens.
    """
    draw = drawing(n, seed)
    if order not in ORDERS:
        raise ValueError(f"order is mixed, ABBA or BABA, not {order!r}")
    names, places, objects = words_of(model)
    scenes, people = [], []
    for _ in range(n):
        template, place, thing = draw.choice(TEMPLATES), draw.choice(list(places)), draw.choice(list(objects))
        subject_first = draw.random() < 0.5 if order == "mixed" else order == "BABA"
        scenes.append(Scene(template, subject_first, place, thing))
        people.append(draw.sample(list(names), 5))
    clean = [(a, b, b) for a, b, *_ in people]
    corrupt = [(c, d, e) for _, _, c, d, e in people]
    answers, wrong = [names[a] for a, *_ in people], [names[b] for _, b, *_ in people]

    def side(trios: Sequence[Trio]) -> Prompts:
        texts = [scene.text(*trio) for scene, trio in zip(scenes, trios, strict=True)]
        made = tokenized(model, texts, answers, wrong, prepend_bos=prepend_bos)
        return _with_spans(made, [[names[name] for name in trio] for trio in trios])

    return Pair(side(clean), side(corrupt)).checked()


def words_of(model) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """The names, places and objects that are one token of a model's tokenizer after a space, with their ids.

    Raises ValueError where it has not enough of them.
    """
    kinds = {"names": NAMES.split(), "places": PLACES, "objects": OBJECTS}
    found = {kind: single_tokens(model, words) for kind, words in kinds.items()}
    require({kind: list(ids) for kind, ids in found.items()}, _LEAST)
    return found["names"], found["places"], found["objects"]


def templates_of(prompts: Prompts) -> list[tuple[int, str]]:
    """Number and order (ABBA or BABA) of each prompt's sentence: the labels by which the paper takes its means.

    Prompts of one label match token by token, so that `Mean(reference, by=(labels, labels))` is the mean per template
    and position. Raises ValueError for a prompt that `ioi` did not make.
    """
    patterns = [re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(template))) for template in TEMPLATES]
    labels = []
    for i, text in enumerate(prompts.text or [""] * len(prompts)):
        number = next((number for number, pattern in enumerate(patterns) if pattern.fullmatch(text)), None)
        if number is None or "IO" not in prompts.spans:
            raise ValueError(f"prompt {i} is none of the sentences of mk.tasks.ioi: {text[:60]!r}")
        labels.append((number, "ABBA" if prompts.spans["IO"][i] < prompts.spans["S1"][i] else "BABA"))
    return labels


def _with_spans(prompts: Prompts, people: Sequence[Sequence[int]]) -> Prompts:
    rows = [row[:length] for row, length in zip(prompts.tokens.tolist(), prompts.lengths, strict=True)]
    found = [_places(row, *who) for row, who in zip(rows, people, strict=True)]
    spans: dict[str, tuple[Span, ...]] = {name: tuple((at[name], at[name] + 1) for at in found) for name in found[0]}
    return replace(prompts, spans=spans)


def _places(row: Sequence[int], indirect: int, subject: int, again: int) -> dict[str, int]:
    """Where the people stand in a prompt's tokens; the second naming of the subject is the last one."""
    last = len(row) - 1
    first, second = row.index(subject), last - row[::-1].index(again)
    return {"IO": row.index(indirect), "S1": first, "S1_next": first + 1, "S2": second, "end": last}
