"""Prompts with their answers, and pairs of them.

A `Prompts` is a right-padded batch of token ids with what belongs to each prompt: text, mask, answer, wrong
answer and named spans. A `Pair` is a clean and a corrupt batch that match prompt by prompt.

    pair = Pair.from_text(model, clean="35+59=", corrupt="35+51=")   # answers: the model's own, 94 and 86
    noisy = Pair.from_edits(prompts, [Noise("embed@subject", 0.3)])  # corrupted by noise, as in causal tracing
    pair.clean.positions("subject[-1]")                              # spans resolve per prompt
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechkit.core.spans import Span, as_spans, check_spans, find_text, inside, stretch

NO_TOKEN = -1
"""Fills an answer of fewer tokens than the longest in the batch."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts, right-padded, with what belongs to each."""

    tokens: Int[Tensor, "prompt pos"]
    """Token ids; anything right of a prompt's own length is padding."""
    mask: Bool[Tensor, "prompt pos"]
    """True on real tokens."""
    text: tuple[str, ...] | None = None
    """The text of each prompt, where it came from text."""
    answers: Int[Tensor, "prompt answer"] | None = None
    """Token ids of each prompt's answer, `NO_TOKEN` to the right of shorter ones."""
    wrong: Int[Tensor, "prompt wrong"] | None = None
    """Token ids of each prompt's wrong answer."""
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    """Named stretches of tokens, one `(start, end)` per prompt."""

    def __post_init__(self) -> None:
        if self.tokens.shape[0] == 0 or not bool(self.mask.any(1).all()):
            raise ValueError("a prompt is empty; every prompt needs at least one token")
        if bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any()):
            raise ValueError("a prompt has padding before a real token; prompts are padded on the right")
        for name, spans in self.spans.items():
            check_spans(name, spans, self.lengths)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @cached_property
    def lengths(self) -> list[int]:
        """Number of real tokens of each prompt."""
        return self.mask.sum(1).tolist()

    @classmethod
    def from_tokens(cls, tokens, answers=None, wrong=None, *, spans=None, text=None) -> "Prompts":
        """Prompts from token ids: a tensor, a list of ids, or a list of lists of different lengths.

        `answers` and `wrong` hold one token id, or a list of them, per prompt. Raises ValueError for an empty
        prompt or a number of answers other than the number of prompts.
        """
        rows = _as_rows(tokens)
        width = max((len(row) for row in rows), default=0)
        device = tokens.device if isinstance(tokens, Tensor) else None
        ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
        mask = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
        for same in _by_width(rows):
            ids[same, : len(rows[same[0]])] = torch.tensor([rows[i] for i in same], dtype=torch.long, device=device)
            mask[same, : len(rows[same[0]])] = True
        answers, wrong = (_answer_ids(given, len(rows), device) for given in (answers, wrong))
        return cls(ids, mask, text, answers, wrong, {name: as_spans(given) for name, given in (spans or {}).items()})

    @classmethod
    def from_text(cls, model, text: str | Sequence[str], answers=None, wrong=None, *, spans=None) -> "Prompts":
        """Prompts from text, in `model`'s tokens, BOS where the model prepends it.

        `answers` and `wrong` are one string per prompt (or token ids). `spans` maps a name to `(start, end)` token
        positions, or to the text of the span, one per prompt. Raises ValueError for an empty or over-long prompt
        and for a span that is not in its prompt.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [_tokenize(model, one) for one in texts]
        answers, wrong = (_tokenize_answers(model, given) for given in (answers, wrong))
        made = cls.from_tokens(rows, answers, wrong, text=tuple(texts))
        found = {name: _find_spans(model, made, name, given) for name, given in (spans or {}).items()}
        return replace(made, spans=found).to(_device(model))

    def to(self, device) -> "Prompts":
        """The same prompts on `device`."""
        moved = {
            name: None if (value := getattr(self, name)) is None else value.to(device)
            for name in ("tokens", "mask", "answers", "wrong")
        }
        return replace(self, **moved)

    def with_answers(self, answers, wrong=None) -> "Prompts":
        """The same prompts with these token ids as answers and wrong answers."""
        answers, wrong = (_answer_ids(given, len(self), self.tokens.device) for given in (answers, wrong))
        return replace(self, answers=answers, wrong=wrong)

    def __getitem__(self, chosen: "int | slice | Sequence[int] | Tensor") -> "Prompts":
        """Some of the prompts, by number or by a mask, cut to the longest of them."""
        rows = _chosen_rows(chosen, len(self))
        width = max(self.lengths[i] for i in rows)
        pick = lambda value: None if value is None else value[rows]  # noqa: E731
        return Prompts(
            self.tokens[rows, :width],
            self.mask[rows, :width],
            None if self.text is None else tuple(self.text[i] for i in rows),
            pick(self.answers),
            pick(self.wrong),
            {name: tuple(spans[i] for i in rows) for name, spans in self.spans.items()},
        )

    def positions(self, pos: int | str | None) -> list[int | list[int]]:
        """Per prompt, the token positions that a site's `pos` names: an int for one, a list for a stretch.

        None is every token. Raises ValueError for a position outside a prompt or a span that is not named.
        """
        return [self._position(pos, i, length) for i, length in enumerate(self.lengths)]

    def _position(self, pos: int | str | None, prompt: int, length: int) -> int | list[int]:
        if pos is None:
            return list(range(length))
        if isinstance(pos, int):
            return inside(pos, length, pos)
        if ":" in pos:
            return list(stretch(pos, length))
        name, _, which = pos.partition("[")
        if name not in self.spans:
            known = ", ".join(sorted(self.spans)) or "none"
            raise ValueError(f"no span '{name}' (known spans: {known}); give it with spans={{'{name}': ...}}")
        start, end = self.spans[name][prompt]
        return start + inside(int(which[:-1]), end - start, pos) if which else list(range(start, end))


@dataclass(frozen=True, eq=False)
class Pair:
    """A clean and a corrupt batch that match prompt by prompt; both carry the same answers."""

    clean: Prompts
    """Prompts on which the behaviour shows; their answers are the right ones."""
    corrupt: Prompts
    """The same prompts, minimally changed so that `wrong` is right."""
    edits: Sequence[Any] = ()
    """Interventions that, made in every run on `corrupt`, corrupt it further: noise, as in causal tracing."""

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupt):
            raise ValueError(
                f"clean has {len(self.clean)} prompts, corrupt has {len(self.corrupt)}; they match in pairs"
            )
        spans = set(self.clean.spans) & set(self.corrupt.spans)
        if self.clean.lengths != self.corrupt.lengths and not spans:
            i = next(i for i, (a, b) in enumerate(zip(self.clean.lengths, self.corrupt.lengths, strict=True)) if a != b)
            raise ValueError(
                f"clean has {self.clean.lengths[i]} tokens, corrupt has {self.corrupt.lengths[i]}; "
                "patching matches positions, so the two must be equal, or both must name the same spans"
            )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, chosen: "int | slice | Sequence[int] | Tensor") -> "Pair":
        """Some of the pairs, chosen as in `Prompts`."""
        from mechkit.core.renumbered import renumbered

        edits = renumbered(self.edits, _chosen_rows(chosen, len(self))) if self.edits else ()
        return Pair(self.clean[chosen], self.corrupt[chosen], edits)

    @classmethod
    def from_edits(cls, clean: Prompts, edits: Sequence[Any]) -> "Pair":
        """A pair whose corrupt run is the clean prompts under `edits`, such as noise on the subject's embeddings.

        Source: Meng et al. 2022, section 2.1. Raises ValueError where there are no edits.
        """
        if not edits:
            raise ValueError("no edits are given; without any the corrupt run is the clean one")
        return cls(clean, clean, tuple(edits))

    @classmethod
    def from_tokens(cls, clean, corrupt, answer, wrong, *, spans=None) -> "Pair":
        """A pair from token ids; `answer` and `wrong` are one token id (or a list of ids) per prompt.

        Raises ValueError where an answer equals its wrong answer.
        """
        clean, corrupt = (Prompts.from_tokens(tokens, answer, wrong, spans=spans) for tokens in (clean, corrupt))
        return cls(clean, corrupt).checked()

    @classmethod
    def from_text(cls, model, clean, corrupt, answer=None, wrong=None, *, spans=None) -> "Pair":
        """A pair from text. Answers left out are the model's own: its likeliest next token on each prompt.

        Cost: one forward pass per side whose answer is left out. Raises ValueError where the answers are equal.
        """
        made = Prompts.from_text(model, clean, spans=spans), Prompts.from_text(model, corrupt, spans=spans)
        ids = [
            likeliest(model, prompts) if given is None else _tokenize_answers(model, given)
            for prompts, given in zip(made, (answer, wrong), strict=True)
        ]
        clean, corrupt = (prompts.with_answers(*ids) for prompts in made)
        return cls(clean, corrupt).checked()

    def checked(self) -> "Pair":
        """The pair itself. Raises ValueError where an answer equals its wrong answer."""
        answers, wrong = self.clean.answers, self.clean.wrong
        if answers is None or wrong is None:
            return self
        same = [i for i, (a, b) in enumerate(zip(_as_rows(answers), _as_rows(wrong), strict=True)) if _same(a, b)]
        if same:
            raise ValueError(
                f"answer and wrong answer are the same on prompts {same[:5]}; "
                "give answer= and wrong=, or prompts on which the model answers differently"
            )
        return self


@torch.no_grad()
def likeliest(model, prompts: Prompts) -> Int[Tensor, "prompt"]:
    """The model's likeliest next token after each prompt. Cost: one forward pass per prompt length."""
    check_tokens(model, prompts)
    best = torch.empty(len(prompts), dtype=torch.long, device=prompts.tokens.device)
    for rows in by_length(prompts):
        best[rows] = model(prompts[rows].tokens)[:, -1].argmax(-1)
    return best


def check_tokens(model, prompts: Prompts) -> None:
    """Raise ValueError for a prompt longer than the model's context or a token id outside its vocabulary."""
    longest = max(prompts.lengths)
    if longest > model.cfg.n_ctx:
        raise ValueError(f"prompt {prompts.lengths.index(longest)} has {longest} tokens; {_context(model)}")
    outside = ((prompts.tokens < 0) | (prompts.tokens >= model.cfg.d_vocab)).nonzero().tolist()
    if outside:
        prompt, pos = outside[0]
        raise ValueError(
            f"token id {int(prompts.tokens[prompt, pos])} of prompt {prompt} is outside the vocabulary "
            f"(0 to {model.cfg.d_vocab - 1})"
        )


def _context(model) -> str:
    return f"the model's context is {model.cfg.n_ctx}"


def by_length(prompts: Prompts) -> list[list[int]]:
    """Prompt numbers grouped by length, so that each group runs without padding."""
    return _by_width([range(length) for length in prompts.lengths])


def _by_width(rows: Sequence[Sequence]) -> list[list[int]]:
    """Numbers of the rows, grouped by how long they are."""
    found: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(len(row), []).append(i)
    return list(found.values())


def _chosen_rows(chosen, n_prompts: int) -> list[int]:
    if isinstance(chosen, int):
        return [chosen]
    if isinstance(chosen, slice):
        rows = list(range(n_prompts))[chosen]
    else:
        rows = chosen.tolist() if hasattr(chosen, "tolist") else list(chosen)
        rows = [i for i, keep in enumerate(rows) if keep] if rows and isinstance(rows[0], bool) else rows
    if not rows:
        raise ValueError(f"no prompts are chosen, of {n_prompts}")
    return rows


def _same(answer: list[int], wrong: list[int]) -> bool:
    return [i for i in answer if i != NO_TOKEN] == [i for i in wrong if i != NO_TOKEN]


def _as_rows(tokens) -> list[list[int]]:
    """Lists of ids from a tensor, an array, a list of ids or a list of any of these."""
    rows = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if rows and not isinstance(rows[0], list | tuple):
        rows = [rows]
    return [list(row) for row in rows]


def _answer_ids(given, n_prompts: int, device) -> Int[Tensor, "prompt answer"] | None:
    if given is None:
        return None
    given = given.tolist() if hasattr(given, "tolist") else given
    rows: list[Any] = [given] if isinstance(given, int) else list(given)
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    rows = [[row] if isinstance(row, int) else list(row) for row in rows]
    if len(rows) != n_prompts:
        raise ValueError(
            f"{len(rows)} answers for {n_prompts} prompts; give one per prompt, [[3, 4]] for one of two ids"
        )
    if [] in rows:
        raise ValueError(f"answer {rows.index([])} is empty; every answer needs at least one token")
    ids = torch.full((n_prompts, max(map(len, rows))), NO_TOKEN, dtype=torch.long, device=device)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def _tokenize(model, text: str) -> list[int]:
    if not text:
        raise ValueError("a prompt is empty; every prompt needs at least one token")
    if model.tokenizer is None:
        raise ValueError(f"the model has no tokenizer to read {text[:60]!r} with; give token ids instead")
    ids = model.to_tokens(text, truncate=False)[0].tolist()
    if len(ids) > model.cfg.n_ctx:
        raise ValueError(f"prompt of {len(ids)} tokens; {_context(model)}: {text[:60]!r}")
    return ids


def _tokenize_answers(model, given):
    """One list of token ids per answer; ids and tensors pass as they are."""
    if given is None or isinstance(given, Tensor | int):
        return given
    given = [given] if isinstance(given, str) else list(given)
    return [model.to_tokens(one, prepend_bos=False)[0].tolist() if isinstance(one, str) else one for one in given]


def _find_spans(model, prompts: Prompts, name: str, given) -> tuple[Span, ...]:
    given = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if len(given) != len(prompts):
        raise ValueError(f"span '{name}' is given for {len(given)} prompts, there are {len(prompts)}")
    return tuple(
        find_text(model, prompts.tokens[i, : prompts.lengths[i]].tolist(), name, one) if isinstance(one, str) else one
        for i, one in enumerate(given)
    )


def _device(model):
    return next(model.parameters()).device
