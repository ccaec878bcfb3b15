"""From text to token ids and back, pairs of prompts, and splits by content.

A word is one token. A word that is only known in another case is read as the one that is known: "The" is "the",
"monday" is "Monday". Names and places keep their capitals.

>>> decode(encode("The Eiffel Tower is in 1741"))
'the Eiffel Tower is in 17 41'
"""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TypeVar

from mechkit.core.prompts import Pair, Prompts

BOS, PAD = "<bos>", "<pad>"
SPECIAL = (PAD, BOS)
"""The tokens that are no words, with the first ids."""
PIECES = r"<\w+>|->|\d{1,2}|'s|[^\W\d_]+|[^\s]"
"""One word: a special token, an arrow, one or two digits, a possessive, letters, or a single sign."""
Item = TypeVar("Item")


def words_of(*texts: str) -> set[str]:
    """The words of some texts, without the `{slots}` of templates."""
    return {word for text in texts for word in re.findall(PIECES, re.sub(r"\{\w+\}", " ", text))}


def vocabulary(words: Iterable[str]) -> list[str]:
    """Every token in the order of its id."""
    return [*SPECIAL, *sorted(set(words) - set(SPECIAL))]


@cache
def ids() -> dict[str, int]:
    """The id of every token, as stored in `tokenizer.json`."""
    stored = json.loads(files("mechkit.zoo.tinyworld").joinpath("tokenizer.json").read_text())
    return stored["model"]["vocab"]


@cache
def _any_case() -> dict[str, int]:
    known = ids()
    return {word.lower(): known[word] for word in sorted(known)} | known


@cache
def _id(word: str) -> int:
    found = _any_case().get(word, _any_case().get(word.lower()))
    if found is None:
        raise ValueError(f"unknown word {word!r}; tinyworld knows the {len(ids())} words of its tokenizer.json")
    return found


def encode(text: str) -> list[int]:
    """The token ids of a text, without a BOS. Raises ValueError for a word that is not known."""
    return [_id(word) for word in re.findall(PIECES, text)]


def decode(tokens: Sequence[int]) -> str:
    """The words of some token ids, with spaces between them."""
    return " ".join(_words()[int(token)] for token in tokens)


@cache
def _words() -> tuple[str, ...]:
    return tuple(sorted(ids(), key=ids().__getitem__))


def split(items: Iterable[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """What is trained on and what is held out (`share` of it, at least one), both in their given order."""
    items = list(items)
    out = set(random.Random(seed).sample(range(len(items)), max(1, round(share * len(items)))))
    return [x for i, x in enumerate(items) if i not in out], [x for i, x in enumerate(items) if i in out]


def make_pair(
    clean: Sequence[str],
    corrupt: Sequence[str],
    answers: Sequence[str],
    wrong: Sequence[str],
    spans: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> Pair:
    """A pair of prompts from text, each after a BOS; `spans` are places of words in the text, BOS not counted."""
    right, other = ([encode(answer)[:1] for answer in given] for given in (answers, wrong))
    moved = {name: [(start + 1, end + 1) for start, end in places] for name, places in (spans or {}).items()}
    first, second = (
        Prompts.from_tokens(
            [[ids()[BOS], *encode(text)] for text in texts], right, other, spans=moved, text=tuple(texts)
        )
        for texts in (clean, corrupt)
    )
    return Pair(first, second).checked()


def place(text: str, part: str, *, last: bool = False) -> tuple[int, int]:
    """Where the words of `part` stand in `text`: the first time, or the last; ValueError where they do not."""
    here, sought = encode(text), encode(part)
    found = [i for i in range(len(here)) if here[i : i + len(sought)] == sought]
    if not found:
        raise ValueError(f"{part!r} is not in {text!r}")
    start = found[-1 if last else 0]
    return start, start + len(sought)


def require(n: int, available: int | None = None, what: str = "prompts") -> None:
    """Raises ValueError where fewer than one, or more than there are, are asked for."""
    if n < 1 or (available is not None and n > available):
        limit = f"; there are {available}" if available is not None else "; ask for at least one"
        raise ValueError(f"{n} {what} were asked for{limit}")
