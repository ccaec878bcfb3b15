'''Docstring completion: a Python function whose docstring has named two of its arguments and comes to the third.

    def port(self, load, size, files, unit, page, last):
        """oil column piece

        :param files: crime group
        :param unit: field dark
        :param

is followed by " page". Corrupt prompts have other names in the definition and others again in the docstring, so that
neither tells the answer. `logit_margin(rivals(pair))` is the paper's metric: the answer's logit minus the largest
among the definition's other arguments.

Source: Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer". The
words are mechkit's own.
'''

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from mechkit.core.prompts import Pair
from mechkit.zoo.words import at, drawing, require, single_tokens, tokenized

ARGUMENTS = """
action angle block buffer cache channel child class client color column count data date day depth edge end error event
field file filter flag font force format frame graph group height hour image index input item key label layer length
level limit line list map mass message mode model month name node offset option order output owner page parent path
point port query queue range rate result row scale server session set shape size source speed stack start state status
step style table target text theme time title token tree type unit user value version weight width word year
"""
"""Names of arguments, and of functions."""
WORDS = """
animal apple bank beach bridge butter captain castle chair city cloud coast coffee corner cotton country crime crowd
dance desert doctor dream farm flower forest garden glass gold grass hand harbor heart hill horse hotel house
island kitchen lake leader letter market metal milk mountain music night ocean oil paper park piece planet population
prison rain river road rock roof salt school sea ship silver snow soil song spring stone street summer sun teacher
train valley village voice wall war water wind winter wood
"""
"""What descriptions are made of."""
N_PREFIX, N_MATCHING, N_SUFFIX = 2, 3, 1
"""Arguments before those that the docstring names, those it names, and those after."""
N_ARGUMENTS = N_PREFIX + N_MATCHING + N_SUFFIX
N_TITLE, N_ABOUT = 3, 2
"""Words that describe the function, and words that describe an argument."""


@dataclass(frozen=True)
class Function:
    """What is drawn for one prompt, bar the names of the arguments."""

    name: str
    """Name of the function."""
    title: str
    """What it does, in words."""
    about: tuple[str, ...]
    """What each argument is whose description is given."""

    def text(self, defined: Sequence[str], documented: Sequence[str]) -> str:
        """The prompt, with these arguments in the definition and in the docstring."""
        lines = [f"def {self.name}(self, {', '.join(defined)}):", f'    """{self.title}', ""]
        lines += [f"    :param {name}: {about}" for name, about in zip(documented, self.about, strict=True)]
        return "\n".join([*lines, "    :param"])


def docstring(n: int, seed: int = 0, *, model, prepend_bos: bool = True) -> Pair:
    """`n` prompts in which the model is to name the next argument, with corrupt ones of unrelated arguments.

    Names and words are drawn at random among those that are one token; the same seed gives the same pairs. Answers are
    the third argument that the docstring comes to, wrong answers the argument after it in the definition. Spans, on
    both sides: `A_def`, `B_def`, `C_def` (the arguments named, the answer last), `A_doc`, `B_doc`, `arguments` (the
    definition's, with the commas between) and `end`.
    Raises ValueError for a model without a tokenizer, or one that has not enough of the words as single tokens.
    """
    draw = drawing(n, seed)
    ids, words = single_tokens(model, ARGUMENTS.split()), list(single_tokens(model, WORDS.split()))
    kinds = {"arguments": list(ids), "words": words}
    require(kinds, {"arguments": 2 * N_ARGUMENTS + N_MATCHING, "words": N_TITLE + 2 * N_ABOUT})
    names = [draw.sample(list(ids), 2 * N_ARGUMENTS + N_MATCHING) for _ in range(n)]
    functions = [_function(drawn[-1], words, draw) for drawn in names]
    defined, other, unrelated = (
        [drawn[start:stop] for drawn in names]
        for start, stop in ((0, N_ARGUMENTS), (N_ARGUMENTS, 2 * N_ARGUMENTS), (2 * N_ARGUMENTS, -1))
    )
    documented = [row[N_PREFIX : N_PREFIX + N_MATCHING - 1] for row in defined]
    right = [ids[row[N_PREFIX + N_MATCHING - 1]] for row in defined]
    wrong = [ids[row[N_PREFIX + N_MATCHING]] for row in defined]
    clean, corrupt = (
        tokenized(model, [f.text(*names) for f, *names in zip(functions, *sides, strict=True)], right, wrong,
                  prepend_bos=prepend_bos)
        for sides in ((defined, documented), (other, unrelated))
    )  # fmt: skip
    spans = _spans(model, clean.tokens.tolist(), clean.lengths, [[ids[name] for name in row] for row in defined])
    return Pair(replace(clean, spans=spans), replace(corrupt, spans=spans)).checked()


def rivals(pair: Pair) -> Int[Tensor, "prompt rival"]:
    """Token ids of the clean definition's arguments but the answer, for `logit_margin`."""
    answers, spans = pair.clean.answers, pair.clean.spans.get("arguments")
    if answers is None or spans is None:
        raise ValueError("the pair names no 'arguments'; rivals are those of mk.tasks.docstring")
    rows = [
        pair.clean.tokens[i, start:stop:2][pair.clean.tokens[i, start:stop:2] != answers[i, 0]]
        for i, (start, stop) in enumerate(spans)
    ]
    return torch.stack(rows)


def _function(name: str, words: Sequence[str], draw: random.Random) -> Function:
    drawn = draw.sample(words, N_TITLE + N_ABOUT * (N_MATCHING - 1))
    pairs = zip(drawn[N_TITLE::2], drawn[N_TITLE + 1 :: 2], strict=True)
    return Function(name, " ".join(drawn[:N_TITLE]), tuple(" ".join(two) for two in pairs))


def _spans(model, rows: Sequence[Sequence[int]], lengths: Sequence[int], defined: Sequence[Sequence[int]]):
    """Where the arguments stand: in the definition first, in the docstring last."""
    found: dict[str, list[tuple[int, int]]] = {}
    for row, length, names in zip(rows, lengths, defined, strict=True):
        start = row.index(names[0])
        places = range(start, start + 2 * N_ARGUMENTS - 1, 2)
        if [row[place] for place in places] != list(names):
            raise ValueError("the model's tokenizer reads a comma after an argument as more than one token")
        a, b, c = places[N_PREFIX : N_PREFIX + N_MATCHING]
        last = length - 1
        a_doc, b_doc = (last - row[last::-1].index(row[place]) for place in (a, b))
        one: dict[str, tuple[int, int]] = dict(
            zip(("A_def", "B_def", "C_def", "A_doc", "B_doc", "end"), at(a, b, c, a_doc, b_doc, last), strict=True)
        )
        one["arguments"] = (start, places[-1] + 1)
        for name, span in one.items():
            found.setdefault(name, []).append(span)
    return {name: tuple(spans) for name, spans in found.items()}
