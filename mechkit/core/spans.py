"""Stretches of a prompt's tokens: a site's `@2:5` and the named spans of `Prompts`.

>>> stretch("-3:", 10)
range(7, 10)
"""

from collections.abc import Sequence

Span = tuple[int, int]
"""First token of a span and the one after its last."""


def inside(pos: int, length: int, quoted: int | str) -> int:
    """`pos` counted from 0. Raises ValueError, quoting the site's own words, outside a stretch of `length` tokens."""
    place = pos + length if pos < 0 else pos
    if not 0 <= place < length:
        where = "its span" if isinstance(quoted, str) else "a prompt"
        raise ValueError(f"position @{quoted} is outside {where} of {length} tokens (0 to {length - 1})")
    return place


def stretch(pos: str, length: int) -> range:
    """The tokens of `2:5`, `-3:` or `:2`, ends as in Python but never cut off or empty."""
    start, end = (int(part) if part else None for part in pos.split(":"))
    first = 0 if start is None else start + length * (start < 0)
    stop = length if end is None else end + length * (end < 0)
    if not 0 <= first < stop <= length:
        raise ValueError(f"position @{pos} is empty or reaches outside a prompt of {length} tokens (0 to {length - 1})")
    return range(first, stop)


def check_spans(name: str, spans: Sequence[Span], lengths: Sequence[int]) -> None:
    """Raise ValueError unless there is one span per prompt, not empty and inside it."""
    if len(spans) != len(lengths):
        raise ValueError(f"span '{name}' is given for {len(spans)} prompts, there are {len(lengths)}")
    for i, ((start, end), length) in enumerate(zip(spans, lengths, strict=True)):
        if not 0 <= start < end <= length:
            raise ValueError(
                f"span '{name}' of prompt {i} is ({start}, {end}); the prompt has tokens 0 to {length - 1}"
            )


def as_spans(given) -> tuple[Span, ...]:
    """One `(start, end)` per prompt; a single one is that of a single prompt."""
    given = list(given)
    return tuple((int(start), int(end)) for start, end in ([given] if given and isinstance(given[0], int) else given))


def find_text(model, ids: list[int], name: str, text: str) -> Span:
    """Where the tokens of `text`, with or without a space before, first lie in `ids`. Raises ValueError for nowhere."""
    for spelling in (text, " " + text):
        part = model.to_tokens(spelling, prepend_bos=False)[0].tolist()
        for start in range(len(ids) - len(part) + 1):
            if ids[start : start + len(part)] == part:
                return start, start + len(part)
    raise ValueError(f"span '{name}': '{text}' is not a stretch of tokens of its prompt")
