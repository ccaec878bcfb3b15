"""Induction: random tokens twice, `BOS a b c d a b c`, of which a model that copies expects `d`.

Corrupt prompts have another first copy, so that nothing in them tells the second one. `span_loss("second_copy")` is the
loss on the second copy and `span_loss("first_copy")` on the first.

Source: Olsson et al. 2022 (arXiv 2209.11895), "repeated random tokens".
"""

from collections.abc import Sequence

from mechkit.core.prompts import Pair, Prompts
from mechkit.zoo.words import at, drawing, require_room


def induction(n: int, seed: int = 0, *, model, length: int = 25, prepend_bos: bool | None = None) -> Pair:
    """`n` sequences of `length` random tokens and the same again but the last, which is the answer.

    No token occurs twice in the two copies of a pair's sequences. The corrupt prompt has other tokens in the first
    copy; the wrong answer is what stands there in the answer's place. Special tokens are not drawn. `prepend_bos`
    defaults to whether the tokenizer has a BOS. The same seed gives the same pairs. Spans, on both sides:
    `first_copy` and `second_copy`, `source` (the answer's place in the first copy) and `end`.
    Raises ValueError for prompts longer than the context, or a vocabulary too small to fill both copies.
    """
    draw = drawing(n, seed)
    if length < 2:
        raise ValueError(f"a sequence of {length} tokens cannot be told again; take at least 2")
    bos = _bos(model, prepend_bos)
    require_room(model, len(bos) + 2 * length - 1)
    tokens = ordinary_tokens(model)
    if len(tokens) < 2 * length:
        raise ValueError(f"{len(tokens)} tokens can be drawn and two sequences of {length} need {2 * length}")
    drawn = [draw.sample(tokens, 2 * length) for _ in range(n)]
    told, other = [row[:length] for row in drawn], [row[length:] for row in drawn]
    spans = _spans(len(bos), length, n)
    answers, wrong = [row[-1] for row in told], [row[-1] for row in other]
    device = next(model.parameters()).device
    clean, corrupt = (
        Prompts.from_tokens(
            [bos + once + again[:-1] for once, again in zip(first, told, strict=True)], answers, wrong, spans=spans
        ).to(device)
        for first in (told, other)
    )
    return Pair(clean, corrupt).checked()


def ordinary_tokens(model) -> list[int]:
    """Every token id of the model's vocabulary but the tokenizer's special ones."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return list(range(model.cfg.d_vocab))
    special = set(tokenizer.all_special_ids)
    return [i for i in range(min(model.cfg.d_vocab, len(tokenizer))) if i not in special]


def _bos(model, prepend_bos: bool | None) -> list[int]:
    known = None if model.tokenizer is None else model.tokenizer.bos_token_id
    if prepend_bos and known is None:
        raise ValueError("the model's tokenizer has no BOS token; leave prepend_bos out")
    return [] if known is None or prepend_bos is False else [known]


def _spans(bos: int, length: int, n: int) -> dict[str, Sequence[tuple[int, int]]]:
    again = bos + length
    return {
        "first_copy": [(bos, again)] * n,
        "second_copy": [(again, again + length - 1)] * n,
        "source": at(again - 1) * n,
        "end": at(again + length - 2) * n,
    }
