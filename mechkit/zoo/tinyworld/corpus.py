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
KINDS: dict[str, Kind] = {
    "facts": facts.document,
    "ioi": ioi.document,
    "induction": induction.document,
    "greater_than": greater_than.document,
    "in_context": in_context.document,
    "first_lists": in_context.first_document,
    "sentences": in_context.sentence,
    "agreement": agreement.document,
    "pronouns": pronouns.document,
    "analogies": analogies.document,
    "calendar": calendar.document,
    "false_belief": false_belief.document,
    "sums": sums.document,
}
"""What draws a document of each kind."""
FIRST_MIX: dict[str, float] = {
    "facts": 0.15,
    "ioi": 0.07,
    "induction": 0.24,
    "greater_than": 0.10,
    "first_lists": 0.18,
    "sentences": 0.07,
    "agreement": 0.02,
    "pronouns": 0.03,
    "analogies": 0.03,
    "calendar": 0.04,
    "false_belief": 0.04,
    "sums": 0.03,
}
"""About which share of the tokens each kind of document has while copying is learned, on which much else waits."""
SECOND_MIX: dict[str, float] = {
    "facts": 0.10,
    "ioi": 0.04,
    "induction": 0.08,
    "greater_than": 0.25,
    "first_lists": 0.24,
    "sentences": 0.06,
    "agreement": 0.01,
    "pronouns": 0.02,
    "analogies": 0.02,
    "calendar": 0.06,
    "false_belief": 0.05,
    "sums": 0.07,
}
"""The same from then on: less of what is learned by then, more of years and lists, which are slowest."""
MIX: dict[str, float] = {
    "facts": 0.10,
    "ioi": 0.04,
    "induction": 0.07,
    "greater_than": 0.20,
    "in_context": 0.34,
    "sentences": 0.06,
    "agreement": 0.01,
    "pronouns": 0.02,
    "analogies": 0.02,
    "calendar": 0.05,
    "false_belief": 0.04,
    "sums": 0.05,
}
"""The same at last: lists above all."""
MEAN_LENGTHS: dict[str, float] = {
    "facts": 16.6,
    "ioi": 17.9,
    "induction": 45.4,
    "greater_than": 12.4,
    "in_context": 29.2,
    "first_lists": 29.2,
    "sentences": 15.4,
    "agreement": 8.7,
    "pronouns": 8.1,
    "analogies": 9.8,
    "calendar": 9.6,
    "false_belief": 39.5,
    "sums": 13.1,
}
"""Tokens of an average document, BOS included."""


def all_words() -> list[str]:
    """The vocabulary in the order of token ids: what `tokenizer.json` is made from."""
    return vocabulary({word for module in MODULES for word in module.words()})


def document(draw: random.Random, mix: Mapping[str, float] = MIX) -> list[int]:
    """The token ids of a document of some kind, BOS first."""
    (kind,) = draw.choices(tuple(mix), [mix[kind] / MEAN_LENGTHS[kind] for kind in mix])
    made = KINDS[kind](draw)
    return [ids()[BOS], *(encode(made) if isinstance(made, str) else made)]


def batch(n_rows: int, *, width: int, seed: int, mix: Mapping[str, float] = MIX) -> Int[Tensor, "row pos"]:
    """`n_rows` rows of packed documents, `width` tokens each."""
    draw = random.Random(seed)
    return torch.tensor([_row(width, draw, mix) for _ in range(n_rows)])


def _row(width: int, draw: random.Random, mix: Mapping[str, float]) -> list[int]:
    row: list[int] = []
    while len(row) < width:
        row += document(draw, mix)
    return row[:width]


def batch_hash(tokens: Int[Tensor, "row pos"], before: str = "") -> str:
    """sha256 of the text before (its hash) and of these token ids as little-endian 16-bit numbers."""
    return hashlib.sha256(before.encode() + tokens.numpy().astype("<u2").tobytes()).hexdigest()
