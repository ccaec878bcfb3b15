"""The training text: short documents of every behaviour, packed into rows, the same from the same seed.

Each document begins with a BOS and so does each row; the last document of a row is cut where the row ends. A batch is a
function of one number, so a run can stop and go on, and anyone can make the text again and hash it.

>>> batch(2, width=24, seed=0).shape
torch.Size([2, 24])
"""

import hashlib
import random
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from mechkit.zoo.tinyworld import (
    agreement,
    analogies,
    calendar,
    early,
    facts,
    false_belief,
    greater_than,
    in_context,
    induction,
    ioi,
    pronouns,
    sums,
)
from mechkit.zoo.tinyworld.text import BOS, encode, ids, vocabulary

Kind = Callable[[random.Random], str | list[int]]
"""What draws a document of one kind, as text or as token ids."""
MODULES = (facts, ioi, in_context, greater_than, agreement, pronouns, analogies, calendar, false_belief, sums)
"""Every module whose words make the vocabulary."""
MIX: dict[Kind, float] = {
    early.fact: 0.20,
    ioi.document: 0.11,
    induction.document: 0.14,
    greater_than.document: 0.05,
    early.lists: 0.18,
    early.sentence: 0.10,
    agreement.document: 0.02,
    pronouns.document: 0.03,
    analogies.document: 0.04,
    calendar.document: 0.04,
    false_belief.document: 0.05,
    sums.document: 0.04,
}
"""About which share of the tokens each kind of document has in the first stage of training."""
LATER_MIX: dict[Kind, float] = {
    early.fact: 0.14,
    ioi.document: 0.06,
    induction.document: 0.22,
    greater_than.document: 0.08,
    early.lists: 0.20,
    early.sentence: 0.08,
    agreement.document: 0.01,
    pronouns.document: 0.02,
    analogies.document: 0.03,
    calendar.document: 0.05,
    false_belief.document: 0.06,
    sums.document: 0.05,
}
"""The shares of the second stage: less of what is learned by then, more of copying, on which much else waits."""
THIRD_MIX: dict[Kind, float] = {
    facts.document: 0.13,
    ioi.document: 0.05,
    induction.document: 0.10,
    greater_than.document: 0.12,
    early.lists: 0.27,
    early.sentence: 0.09,
    agreement.document: 0.01,
    pronouns.document: 0.02,
    analogies.document: 0.02,
    calendar.document: 0.06,
    false_belief.document: 0.06,
    sums.document: 0.07,
}
"""The shares of the third stage, when copying is learned."""
FOURTH_MIX: dict[Kind, float] = {
    facts.document: 0.10,
    ioi.document: 0.04,
    induction.document: 0.08,
    greater_than.document: 0.14,
    early.lists_apart: 0.34,
    early.sentence: 0.08,
    agreement.document: 0.01,
    pronouns.document: 0.02,
    analogies.document: 0.02,
    calendar.document: 0.05,
    false_belief.document: 0.06,
    sums.document: 0.06,
}
"""The shares of the fourth stage."""
FIFTH_MIX: dict[Kind, float] = {
    facts.document: 0.10,
    ioi.document: 0.05,
    induction.document: 0.08,
    greater_than.document: 0.14,
    in_context.document: 0.32,
    in_context.sentence: 0.10,
    agreement.document: 0.01,
    pronouns.document: 0.02,
    analogies.document: 0.02,
    calendar.document: 0.05,
    false_belief.document: 0.06,
    sums.document: 0.05,
}
"""The shares of the fifth stage."""
SIXTH_MIX: dict[Kind, float] = {
    facts.document: 0.08,
    ioi.document: 0.04,
    induction.document: 0.07,
    greater_than.document: 0.28,
    in_context.document: 0.28,
    in_context.sentence: 0.08,
    agreement.document: 0.01,
    pronouns.document: 0.02,
    analogies.document: 0.02,
    calendar.document: 0.03,
    false_belief.document: 0.05,
    sums.document: 0.04,
}
"""The shares of the sixth stage: more years, which are slowest."""
LAST_MIX: dict[Kind, float] = {
    facts.document: 0.06,
    ioi.document: 0.03,
    induction.document: 0.06,
    greater_than.document: 0.45,
    in_context.document: 0.22,
    in_context.sentence: 0.06,
    agreement.document: 0.01,
    pronouns.document: 0.01,
    analogies.document: 0.01,
    calendar.document: 0.03,
    false_belief.document: 0.03,
    sums.document: 0.03,
}
"""The shares of the last stage: years above all."""
MEAN_LENGTHS: dict[Kind, float] = {
    facts.document: 16.6,
    early.fact: 16.6,
    ioi.document: 17.9,
    induction.document: 45.4,
    greater_than.document: 12.4,
    in_context.document: 28.1,
    early.lists: 28.1,
    in_context.sentence: 15.4,
    early.sentence: 15.4,
    early.lists_apart: 28.1,
    agreement.document: 8.7,
    pronouns.document: 8.1,
    analogies.document: 9.8,
    calendar.document: 9.6,
    false_belief.document: 39.5,
    sums.document: 13.1,
}
"""Tokens of an average document, BOS included."""


def all_words() -> list[str]:
    """The vocabulary in the order of token ids: what `tokenizer.json` is made from."""
    return vocabulary({word for module in MODULES for word in module.words()})


def document(draw: random.Random, mix: Mapping[Kind, float] = MIX) -> list[int]:
    """The token ids of a document of some kind, BOS first."""
    kinds = tuple(mix)
    made = draw.choices(kinds, [mix[kind] / MEAN_LENGTHS[kind] for kind in kinds])[0](draw)
    return [ids()[BOS], *(encode(made) if isinstance(made, str) else made)]


def batch(n_rows: int, *, width: int, seed: int, mix: Mapping[Kind, float] = MIX) -> Int[Tensor, "row pos"]:
    """`n_rows` rows of packed documents, `width` tokens each."""
    draw = random.Random(seed)
    return torch.tensor([_row(width, draw, mix) for _ in range(n_rows)])


def _row(width: int, draw: random.Random, mix: Mapping[Kind, float]) -> list[int]:
    row: list[int] = []
    while len(row) < width:
        row += document(draw, mix)
    return row[:width]


def batch_hash(tokens: Int[Tensor, "row pos"], before: str = "") -> str:
    """sha256 of the text before (its hash) and of these token ids as little-endian 16-bit numbers."""
    return hashlib.sha256(before.encode() + tokens.numpy().astype("<u2").tobytes()).hexdigest()
