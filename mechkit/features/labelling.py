"""Descriptions of features that a program proposes, and a judge that tests them: both without a language model.

A labeller is a function of an `Evidence` that gives a description, or "" where it has none. A judge is a function of a
description and texts that says of each whether the feature fires in it, as a bool or a probability.

>>> word_list_judge("fires on: Paris, Rome", ["in Rome .", "in Romeo"])
[True, False]
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import pandas as pd

from mechkit.core.progress import progress
from mechkit.features.evidence import Evidence, evidence
from mechkit.features.ranked import Ranked

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex

Judge = Callable[[str, Sequence[str]], Sequence[bool | float]]
"""`(description, texts) -> whether, or how likely, the feature fires in each`."""
INTRO = "fires on: "
"""How a list of words begins."""
MOST, LEAST_SHARE, LEAST_RATIO = 5, 0.05, 2.0
"""Words of a label at most; share of the firings that each has at least, and how many times its share of the corpus."""


@runtime_checkable
class Labeller(Protocol):
    """What proposes a description."""

    def __call__(self, seen: Evidence, /) -> str:
        """A description of the feature, "" where there is none."""
        ...


def peak_words(seen: Evidence) -> str:
    """The words that a feature fires on far more often than they occur, as `fires on: Paris, Rome`.

    Ranked by count times the logarithm of share among the firings over share of the corpus; at most five, each on at
    least two firings and 5 % of them, and twice as common there as in the corpus. "" where no word is.
    """
    counts, n = Counter(seen.examples["word"]), len(seen.examples)
    floor = min(seen.background.values(), default=1.0)
    ratios = {word: count / n / seen.background.get(word, floor) for word, count in counts.items()}
    chosen = [w for w, count in counts.items() if count >= max(2, LEAST_SHARE * n) and ratios[w] >= LEAST_RATIO]
    chosen.sort(key=lambda word: (-counts[word] * math.log(ratios[word]), word))
    return INTRO + ", ".join(_quoted(word) for word in chosen[:MOST]) if chosen else ""


def word_list_judge(description: str, texts: Sequence[str]) -> list[bool]:
    """Whether a text holds one of the words that a description lists, after "fires on:" where it says so.

    Words are parted by commas, a word with a comma or quote in it is written as JSON text; upper and lower case differ.
    """
    words = listed(description)
    patterns = [re.compile(_pattern(word)) for word in words]
    return [any(pattern.search(text) for pattern in patterns) for text in texts]


def listed(description: str) -> list[str]:
    """The words that a description lists."""
    tail = description.split(INTRO.strip(), 1)[-1]
    found = [one.strip() for one in re.findall(r'\s*"(?:[^"\\]|\\.)*"|[^,]+', tail)]
    return [_unquoted(one) for one in found if one]


def propose_labels(
    index: "FeatureIndex", labeller: Labeller = peak_words, ids: Iterable[int] | None = None, seed: int = 0
) -> Ranked:
    """Labels for features (all that fire, unless told), stored as automatic under the labeller's name.

    Each labeller sees the half of a feature's examples on which `detection` with the same seed does not test. Columns:
    `feature`, `text`; features for which it has no words are left out, and lose what it called them before.
    Raises ValueError for a number the SAE lacks.
    """
    source = getattr(labeller, "__name__", type(labeller).__name__)
    chosen = [id for id, n in enumerate(index.n_firings.tolist()) if n] if ids is None else [int(id) for id in ids]
    found = {id: labeller(evidence(index, id, seed)).strip() for id in progress(chosen, "labelling features")}
    index.labels.add_all(((id, text) for id, text in found.items() if text), source, automatic=True)
    for id in [id for id, text in found.items() if not text]:
        index.labels.remove(id, source)
    rows = pd.DataFrame([(id, text) for id, text in found.items() if text], columns=["feature", "text"])
    return Ranked(rows, "label", {"source": source, "n_without": len(found) - len(rows)})


def _quoted(word: str) -> str:
    plain = word == word.strip() and not set(word) & set(',"\\') and word.isprintable()
    return word if plain else json.dumps(word, ensure_ascii=False)


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text)) if text[0] == '"' else text
    except ValueError:  # a quote that opens and does not close is a sign like others
        return text


def _pattern(word: str) -> str:
    """The word by itself: no letter or digit goes on where it begins or ends with one."""
    left, right = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return f"{left}{re.escape(word)}{right}"
