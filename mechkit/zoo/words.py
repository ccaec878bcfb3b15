"""Words that a model reads as one token, of which the prompts of the papers' tasks are made.

>>> single_tokens(model, ["35", "+"], before="")
{'35': 35, '+': 200}
"""

import random
from collections.abc import Mapping, Sequence

from mechkit.core.prompts import Prompts
from mechkit.core.spans import Span


def single_tokens(model, words: Sequence[str], *, before: str = " ") -> dict[str, int]:
    """Token id of each of `words` that is one token of the model's tokenizer, `before` (a space) in front of it.

    Raises ValueError for a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; the task needs words that it reads as one token")
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    found = {word: model.to_tokens(before + word, prepend_bos=False)[0].tolist() for word in words}
    return {word: ids[0] for word, ids in found.items() if len(ids) == 1 and ids[0] != unknown}


def require(found: Mapping[str, Sequence], least: Mapping[str, int]) -> None:
    """Raise ValueError where the tokenizer has too few of some kind of words, `least` of each being needed."""
    for kind, n in least.items():
        if len(found[kind]) < n:
            raise ValueError(
                f"the model's tokenizer has {len(found[kind])} of the {kind} as single tokens and the task needs {n}; "
                "take a model trained on English text, such as gpt2"
            )


def drawing(n: int, seed: int) -> random.Random:
    """Where a task's prompts are drawn from. Raises ValueError unless at least one is asked for."""
    if n < 1:
        raise ValueError(f"{n} prompts were asked for; ask for at least one")
    return random.Random(seed)


def tokenized(
    model, texts: Sequence[str], answers: Sequence[int], wrong: Sequence[int], *, prepend_bos: bool
) -> Prompts:
    """Prompts from text, with a BOS in front or none, on the model's device.

    Raises ValueError where one is longer than the model's context.
    """
    rows = [model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)[0].tolist() for text in texts]
    require_room(model, max(map(len, rows)))
    made = Prompts.from_tokens(rows, list(answers), list(wrong), text=tuple(texts))
    return made.to(next(model.parameters()).device)


def require_room(model, n_tokens: int) -> None:
    """Raise ValueError where a prompt of `n_tokens` does not fit into the model's context."""
    if n_tokens > model.cfg.n_ctx:
        raise ValueError(f"a prompt of {n_tokens} tokens does not fit; the model's context is {model.cfg.n_ctx}")


def at(*positions: int) -> list[Span]:
    """Spans of one token each."""
    return [(place, place + 1) for place in positions]
