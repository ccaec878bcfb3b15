"""Whether a description of a feature is true: a judge who has nothing else must tell where the feature fires.

    found = detection(index, 12, "fires on: Paris, Rome")
    found.balanced_accuracy                              # 0.5 is chance, 1 is a description that says it all

Source: Paulo et al. 2024 (arXiv:2410.13928), section 3.2, detection, here on texts that the description was not made
from and with any judge; `word_list_judge` needs no language model.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechkit.features.evidence import held_out_firings, held_out_silence
from mechkit.features.labelling import INTRO, Judge, word_list_judge

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex


@dataclass(frozen=True)
class Detection:
    """What `detection` found."""

    id: int
    """The feature."""
    description: str
    """What the judge was told."""
    balanced_accuracy: float
    """Mean of `hits` and `rejections`: 0.5 is chance, however many texts there are of each kind."""
    hits: float
    """Share of the texts in which the feature fires where the judge says so."""
    rejections: float
    """Share of the texts in which it does not fire where the judge says that it does not."""
    n_firing: int
    """Texts in which it fires."""
    n_silent: int
    """Texts in which it does not."""
    texts: pd.DataFrame = field(repr=False)
    """`text`, `fires`, `judged` (what the judge said, as it said it)."""


def detection(
    index: "FeatureIndex", id: int, description: str | None = None, *, judge: Judge = word_list_judge,
    n: int = 50, seed: int = 0,
) -> Detection:  # fmt: skip
    """How well a description of a feature tells texts in which it fires from others.

    Without one its first label is tested; with the judge of word lists, its first that is a list ("fires on: ...").

    The judge is called once, with the description and texts in a random order: up to `n` around firings drawn alike
    from all of them, and as many from places where it fires nowhere in the window; all from the half of the corpus's
    rows that labellers do not see. A probability of at least 0.5 counts as yes.

    Unit: share, 0.5 is chance. Cost: forward passes, as far as the SAE's hook, of the rows drawn for silent texts.
    Raises ValueError without a description, where either kind has fewer than two texts, and for a judge's answers of
    another number than the texts or outside 0 to 1.
    """
    description = description if description is not None else _label(index, id, judge)
    index._require(id)
    fires = held_out_firings(index, id, n, seed)
    silent = held_out_silence(index, id, len(fires), seed) if len(fires) > 1 else []
    if min(len(fires), len(silent)) < 2:
        raise ValueError(
            f"feature {id} has {len(fires)} held-out texts in which it fires and {len(silent)} in which it does not; "
            "a score needs two of each: scan more text, or with a larger sample="
        )
    order = np.random.default_rng([seed, id]).permutation(len(fires) + len(silent))
    texts = [[*fires, *silent][i] for i in order.tolist()]
    truth = order < len(fires)
    judged = _judged(judge, description, texts)
    said = np.array([float(one) >= 0.5 for one in judged])
    hits, rejections = float(said[truth].mean()), float((~said[~truth]).mean())
    table = pd.DataFrame({"text": texts, "fires": truth, "judged": judged})
    score = (hits + rejections) / 2
    return Detection(id, description, score, hits, rejections, len(fires), len(silent), table)


def _label(index: "FeatureIndex", id: int, judge: Judge) -> str:
    """The first label of a feature that the judge can read: for the judge of word lists, one that is a list."""
    texts = [str(text) for text in index.feature(id).labels["text"].tolist()]
    if judge is word_list_judge:
        texts = [text for text in texts if text.startswith(INTRO.strip())]
    if not texts:
        raise ValueError(
            f"feature {id} has no label to test: the judge of word lists reads 'fires on: Paris, Rome'; give such a "
            "description, have labels proposed, or give a judge that reads free text"
        )
    return texts[0]


def _judged(judge: Judge, description: str, texts: list[str]) -> list[bool | float]:
    answers = list(judge(description, list(texts)))
    if len(answers) != len(texts):
        raise ValueError(f"the judge gave {len(answers)} answers for {len(texts)} texts; it must give one for each")
    odd = [one for one in answers if not 0 <= float(one) <= 1]
    if odd:
        raise ValueError(f"the judge answered {odd[0]!r}; an answer is a bool or a probability between 0 and 1")
    return answers
