"""Greater-than: "The war lasted from the year 1732 to the year 17" is followed by a year of that century after 32.

Corrupt prompts start in year 01, after which nearly every year is right. The answer is the first right year, the wrong
answer the year before the one named, so that `prob_diff(years(model))` is the paper's probability difference (right
years minus the others) and the two answers' difference its cutoff sharpness.

Source: Hanna et al. 2023 (arXiv 2305.00586), section 2. The nouns are mechkit's own.
"""

from collections.abc import Sequence
from dataclasses import replace

from mechkit.core.prompts import Pair
from mechkit.zoo.words import drawing, require, single_tokens, tokenized

TEMPLATE = "The {noun} lasted from the year {century}{year:02d} to the year {century}"
NOUNS = """
alliance assault attack ban battle blockade boycott campaign case ceasefire chase collapse competition conflict
conspiracy construction contract controversy course crisis crusade custody debate decline delay deployment depression
dispute drought dynasty education embargo emergency engagement epidemic eruption excavation exhibition exile expansion
expedition experiment exploration famine feud fight fire flood friendship government growth harvest hearing hunt
imprisonment inquiry invasion investigation journey labor lawsuit lease marriage migration mission movement negotiation
occupation operation partnership peace performance persecution pilgrimage plague process production program project
prosecution protest pursuit quest race raid rebellion recession reconstruction recovery reform regime reign repair
research resistance restoration retreat revolt revolution riot rivalry romance rule scandal search sentence siege
silence storm strike struggle study survey tour trade training treaty trial truce uprising vacation visit voyage war
winter work
"""
"""Things that last, of which a tokenizer like GPT-2's has all as one token."""
CENTURIES = range(11, 18)
"""First two digits of a year."""
YEARS = range(2, 99)
"""Last two digits of the year named in clean prompts: one before and two after are years too."""
FIRST = 1
"""Last two digits of the year named in corrupt prompts."""


def greater_than(n: int, seed: int = 0, *, model, prepend_bos: bool = False) -> Pair:
    """`n` prompts in which the model is to name a later year, with corrupt ones that start in year 01.

    Nouns, centuries and years are drawn at random, among those that the tokenizer reads as one token each, a year of
    four digits as two; the same seed gives the same pairs. Answers are the year after the one named, wrong answers the
    year before it, two digits each. Spans, on both sides: `noun`, `century`, `start` (the two digits after it), `end`.
    Raises ValueError for a model without a tokenizer, or one that reads years as other tokens.
    """
    draw = drawing(n, seed)
    nouns, ids = single_tokens(model, NOUNS.split()), years(model)
    known = readable_years(model)
    require({"nouns": list(nouns), "years": known}, {"nouns": 1, "years": 1})
    scenes = [(draw.choice(list(nouns)), *draw.choice(known)) for _ in range(n)]
    answers, wrong = [ids[year + 1] for _, _, year in scenes], [ids[year - 1] for _, _, year in scenes]
    texts = [TEMPLATE.format(noun=noun, century=century, year=year) for noun, century, year in scenes]
    early = [TEMPLATE.format(noun=noun, century=century, year=FIRST) for noun, century, _ in scenes]
    clean, corrupt = (tokenized(model, some, answers, wrong, prepend_bos=prepend_bos) for some in (texts, early))
    wanted = [(nouns[noun], ids[year]) for noun, _, year in scenes]
    places = [_places(row, *pair) for row, pair in zip(clean.tokens.tolist(), wanted, strict=True)]
    spans = {name: tuple((one[name], one[name] + 1) for one in places) for name in places[0]}
    return Pair(replace(clean, spans=spans), replace(corrupt, spans=spans)).checked()


def years(model) -> list[int]:
    """Token ids of the years 00 to 99, in order: what `prob_diff` sums over.

    Raises ValueError where the tokenizer does not read all of them as one token.
    """
    words = [f"{year:02d}" for year in range(100)]
    ids = single_tokens(model, words, before="")
    require({"years 00 to 99": list(ids)}, {"years 00 to 99": 100})
    return [ids[word] for word in words]


def readable_years(model) -> list[tuple[int, int]]:
    """Every (century, year) that is read as two tokens, the century and the year, where that century's 01 is too."""
    centuries = single_tokens(model, [str(century) for century in CENTURIES])
    ids = years(model)

    def splits(century: int, year: int) -> bool:
        read = model.to_tokens(f" {century}{year:02d}", prepend_bos=False)[0].tolist()
        return read == [centuries[str(century)], ids[year]]

    known = [century for century in CENTURIES if str(century) in centuries and splits(century, FIRST)]
    return [(century, year) for century in known for year in YEARS if splits(century, year)]


def _places(row: Sequence[int], noun: int, year: int) -> dict[str, int]:
    """Where things stand in a prompt's tokens."""
    last = len(row) - 1
    named = row.index(year)
    return {"noun": row.index(noun), "century": named - 1, "start": named, "end": last}
