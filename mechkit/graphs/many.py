"""`trace_many`: the attribution graphs of many prompts, kept slim and aligned by feature.

graphs = trace_many(model, ["35+59=", "36+59=", "12+34="], by=["carry", "carry", "no carry"])
graphs.common(0.8)                        # features that pruning keeps in four graphs of five
graphs.compare("carry", "no carry")       # where the two kinds of sums differ
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from mechkit.core.progress import progress, showing
from mechkit.core.prompts import Prompts
from mechkit.graphs.engine.frozen import FrozenModel
from mechkit.graphs.sets.graph_set import GraphSet
from mechkit.graphs.sets.set_files import SetFiles
from mechkit.graphs.sets.slim import Part, Slim
from mechkit.graphs.trace import as_prompts, fitting_bases, graph_on, sites_kept

PART = 256
"""Prompts that are kept, and with `out` written, together."""

_ROOM = 1 << 28
"""Bytes of values that one forward pass of several prompts may keep."""


@torch.no_grad()
def trace_many(
    model,
    prompts: "Iterable[str | Sequence[int] | Tensor | Prompts] | Prompts",
    dictionaries: Sequence | None = None,
    *,
    by: Iterable | Callable[[str], Any] | None = None,
    out: str | PathLike | None = None,
    **options: Any,
) -> GraphSet:
    """The attribution graphs of many prompts, slim and aligned by feature: a `GraphSet`.

    `prompts` are texts, token ids or `Prompts`, of any lengths; a generator will do. `by` gives each prompt its class,
    for comparisons: one label a prompt, or a function of the prompt's text. `dictionaries` and `options` are those of
    `trace`, all but `check`; with both thresholds at 1 all edges that carry anything are kept. With `out`, a folder,
    graphs are written there as they are made, and a run that was cut short goes on from there.

    Each graph is that of `trace(..., check=False)` to float precision: prompts of one length share a forward pass.
    Only active nodes and kept edges stay, about 5 kB a prompt of the addition model.

    Unit: that of `trace`. Cost: that of `trace` without its check for each prompt, and fewer forward passes.
    Raises ValueError, with the number of the prompt, where one cannot be traced; where there are none, where labels do
    not fit, and where `out` holds graphs made otherwise; TypeError for options that `trace` has not.

    >>> graphs = trace_many(model, ["35+59=", "12+34="], by=["carry", "no carry"])
    >>> len(graphs), graphs.frame()["answer"].tolist()
    (2, ['94', '46'])
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts is one text, {prompts[:60]!r}; give a list of texts, or call trace")
    if options.pop("check", False):
        raise TypeError("trace_many makes no checks; trace a prompt by itself for that")
    total = len(prompts) if isinstance(prompts, Sized) else None
    bases = fitting_bases(model, dictionaries)
    files = None if out is None else SetFiles.at(out, model, bases, options)
    asked = _asked(model, prompts, by, total)
    parts = _collected(_Tracing(model, bases, options), asked, total, files)
    if not parts:
        raise ValueError("there are no prompts to trace; give at least one")
    meta = _meta(model, bases, options)
    if files is not None:
        files.finish(meta)
    return GraphSet.of(parts, meta)


@dataclass(frozen=True, eq=False)
class _Asked:
    """One prompt that is to be traced."""

    number: int
    """Its number, from 0."""
    prompts: Prompts
    """It alone."""
    text: str
    """Its text, or its token ids."""
    label: str
    """Its class; empty where there are none."""


def _asked(model, prompts: Any, by: Any, total: int | None) -> Iterator[_Asked]:
    """The prompts one by one, tokenized, each with its class."""
    labels = None if by is None or callable(by) else list(by)
    if labels is not None and total is not None and len(labels) != total:
        raise ValueError(f"by has {len(labels)} labels for {total} prompts; give one each")
    for number, prompt in enumerate(_one_by_one(prompts)):
        try:
            made = as_prompts(model, prompt)
            if len(made) != 1:
                raise ValueError(f"it is {len(made)} prompts; give each by itself")
        except (ValueError, TypeError) as error:
            raise type(error)(f"prompt {number}: {error}") from error
        text = made.text[0] if made.text else str(made.tokens[0].tolist())
        if labels is not None and number >= len(labels):
            raise ValueError(f"by has {len(labels)} labels and there are more prompts; give one each")
        label = "" if by is None else str(by(text) if labels is None else labels[number])
        yield _Asked(number, made, text, label)


def _one_by_one(prompts: Any) -> Iterable:
    return (prompts[i] for i in range(len(prompts))) if isinstance(prompts, Prompts) else prompts


def _collected(tracing: "_Tracing", asked: Iterator[_Asked], total: int | None, files: SetFiles | None) -> list[Part]:
    """Graphs in parts of `PART` prompts: read where `files` has them, else traced, and written."""
    found: list[Part] = []
    fresh: list[Slim] = []

    def run() -> Iterator[Slim | Part]:
        while some := list(islice(asked, PART)):
            kept = None if files is None else files.read(len(found), some)
            if kept is not None:
                found.append(kept)
                yield kept
                continue
            for one in tracing.slims(some):
                fresh.append(one)
                yield one
            found.append(Part.of(fresh))
            fresh.clear()
            if files is not None:
                files.write(len(found) - 1, found[-1])

    for _ in progress(run(), "tracing", total):
        pass
    return found


@dataclass(frozen=True, eq=False)
class _Tracing:
    """What all prompts share."""

    model: Any
    """The model."""
    bases: Sequence
    """Its dictionaries."""
    options: dict[str, Any]
    """Those of `graph_on`."""

    def slims(self, asked: Sequence[_Asked]) -> Iterator[Slim]:
        """The slim graphs of some prompts, those of one length after one another."""
        lengths: dict[int, list[_Asked]] = {}
        for one in asked:
            lengths.setdefault(one.prompts.tokens.shape[1], []).append(one)
        for n_pos, group in lengths.items():
            step = max(1, _ROOM // self.bytes_of(n_pos))
            for start in range(0, len(group), step):
                yield from self.together(group[start : start + step])

    def together(self, asked: Sequence[_Asked]) -> Iterator[Slim]:
        """Graphs of prompts of one length from one forward pass."""
        tokens = torch.cat([one.prompts.tokens for one in asked])
        batch = Prompts.from_tokens(tokens, text=tuple(one.text for one in asked))
        sites = sites_kept(self.model, self.bases, self.options.get("targets"))
        made = FrozenModel.each(self.model, batch, sites)
        for one in asked:
            try:
                with showing(lambda items, label, total: items):
                    graph = graph_on(next(made), self.bases, **self.options)
            except (ValueError, MemoryError) as error:
                raise type(error)(f"prompt {one.number} ({one.text[:60]!r}): {error}") from error
            yield Slim.of(graph, one.number, one.text, one.label)

    def bytes_of(self, n_pos: int) -> int:
        """About what a prompt's kept values take."""
        cfg = self.model.cfg
        each = cfg.n_layers * (8 * cfg.d_model + cfg.n_heads * n_pos) + 2 * cfg.d_vocab_out
        return max(1, each * n_pos * self.model.W_E.element_size())


def _meta(model, bases: Sequence, options: dict[str, Any]) -> dict[str, Any]:
    from mechkit import __version__

    return {
        "verb": "trace_many",
        "mechkit": __version__,
        "model": model.cfg.model_name or "",
        "dictionaries": [basis.name for basis in bases],
        "targets": [str(target)[:60] for target in options.get("targets") or ()],
        "options": {name: value for name, value in options.items() if isinstance(value, int | float | str)},
    }
