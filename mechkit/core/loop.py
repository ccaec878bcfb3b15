"""The definition of a sweep: one hooked forward pass per run and prompt length, and nothing clever.

Faster engines must give these numbers; the tests compare them with `loop`.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from mechkit.core.interventions import Hook, Intervention
from mechkit.core.metrics import Metric
from mechkit.core.places import cut, groups, places
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts, by_length, check_tokens
from mechkit.core.site import Site

Measured = tuple[Tensor, dict[Site, Tensor], int]
"""Scores `[run, prompt, metric]`, slices `[run, prompt, *slice]` by site, forward passes made."""


@torch.no_grad()
def loop(
    model, prompts: Prompts, runs: Sequence, metrics: Sequence[Metric], base: Sequence, read: Sequence
) -> Measured:
    """Every metric on every prompt after each run's edits, one run after the other."""
    engine, scores, seen = Loop(model, prompts, read), [], []
    for run in progress(list(runs), "runs"):
        logits, slices = engine.forward([*base, *run])
        scores.append(torch.stack([metric(logits, prompts).detach() for metric in metrics], 1))
        seen.append(slices)
    table = torch.stack(scores) if scores else torch.empty(0, len(prompts), len(metrics))
    return table, {site: torch.stack([slices[site] for slices in seen]) for site in read} if seen else {}, engine.passes


class Loop:
    """Edited forward passes of one batch of prompts, which run without padding, grouped by length."""

    def __init__(self, model, prompts: Prompts, wanted: Sequence[Site]) -> None:
        self.model, self.prompts, self.wanted = model, prompts, list(wanted)
        check_tokens(model, prompts)
        self.batches = [(rows, prompts[rows]) for rows in by_length(prompts)]
        self.passes = 0

    def forward(self, edits: Sequence[Intervention]) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits `[prompt, pos, vocab]` (NaN on padding) and the wanted slices after `edits`."""
        outputs, parts = [], []
        for rows, batch in self.batches:
            fired, slices = set(), {}
            hooks = [_edit_hook(edit, batch, rows, fired) for edit in edits]
            hooks += [_read_hook(site, batch, slices) for site in self.wanted]
            with ExitStack() as stack:
                results = (
                    [] if computes_results(self.model) else [one for one in hooks if one[0].endswith("hook_result")]
                )
                stack.enter_context(hooked(self.model, [one for one in hooks if one not in results]))
                for name in dict.fromkeys(name for name, _ in results):
                    stack.enter_context(head_outputs(self.model, int(name.split(".")[1]), _in_turn(name, results)))
                outputs.append(self.model(batch.tokens))
            self.passes += 1
            require_fired([edit.site for edit in edits], fired)
            require_fired(self.wanted, slices)
            parts.append(slices)
        for site in self.wanted:
            require_one_shape(site, [part[site] for part in parts])
        members = [rows for rows, _ in self.batches]
        slices = {site: merge(self.prompts, members, [part[site] for part in parts]) for site in self.wanted}
        return merge(self.prompts, members, outputs), slices


def _in_turn(name: str, hooks: Sequence[Hook]) -> Callable[[Tensor], Tensor]:
    """The hooks of one point, one after the other."""

    def run(x: Tensor) -> Tensor:
        for own, function in hooks:
            new = function(x, None) if own == name else None
            x = x if new is None else new
        return x

    return run


def merge(prompts: Prompts, members: Sequence[Sequence[int]], values: Sequence[Tensor]) -> Tensor:
    """One tensor for all prompts from one per length, in the prompts' own order; NaN on padding."""
    if len(values) == 1:
        return values[0]
    widest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    merged = values[0].new_full((len(prompts), *widest), torch.nan)
    for rows, value in zip(members, values, strict=True):
        merged[(rows, *(slice(size) for size in value.shape[1:]))] = value
    return merged


@contextmanager
def hooked(model, hooks: Sequence[Hook]):
    """Forward hooks in place inside the block, and gone after it; the model's own stay."""
    handles = []
    try:
        for name, function in hooks:
            handles.append(_install(model.hook_dict[name], function))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _install(point, function):
    """A hook on one hook point, after those already there. A direct registration: resetting every point is slow."""
    shapes = getattr(point, "hook_conversion", None)  # a bridge's points hold its own shapes
    if shapes is None:
        return point.register_forward_hook(lambda module, inputs, output: function(output, module))

    def converted(module, inputs, output):
        new = function(shapes.convert(output), module)
        return None if new is None else shapes.revert(new)

    return point.register_forward_hook(converted)


@contextmanager
def head_outputs(model, layer: int, hook: Callable[[Tensor], Tensor | None]):
    """Inside the block, `hook` sees head outputs `[prompt, pos, head, d]` (`result`) and may change them.

    TransformerLens computes them only under a costly flag; here they come from z, and what the hook changes is added to
    what attention puts out, before any norm of it. Enter it after hooks that edit z.
    """
    attn, kept = model.blocks[layer].attn, {}

    def after(out: Tensor) -> Tensor | None:
        W_O = attn.W_O.reshape(kept["z"].shape[2], -1, out.shape[-1])
        results = torch.einsum("bphd,hdm->bphm", kept["z"].to(W_O.dtype), W_O)
        new = hook(results)
        return None if new is None or new is results else out + (new - results).sum(2)

    points = [(f"blocks.{layer}.attn.hook_z", lambda x, hook: kept.update(z=x))]
    plain = type(model).__name__ == "HookedTransformer"
    points += [] if plain else [(f"blocks.{layer}.hook_attn_out", lambda x, hook: after(x))]
    with hooked(model, points):
        handle = attn.register_forward_hook(lambda module, inputs, out: after(out)) if plain else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()


def computes_results(model) -> bool:
    """Whether the model's own `hook_result` fires."""
    return bool(getattr(model.cfg, "use_attn_result", False))


def _edit_hook(edit: Intervention, batch: Prompts, rows: list[int], fired: set) -> Hook:
    def hook(x: Tensor, hook) -> Tensor:
        fired.add(edit.site)
        return edit.apply(x, batch, rows)

    return edit.site.hook, hook


def _read_hook(site: Site, batch: Prompts, slices: dict[Site, Tensor]) -> Hook:
    alike = groups(places(site, batch))

    def hook(x: Tensor, hook) -> None:
        parts = [cut(x if len(alike) == 1 else x[rows], site, place) for place, rows in alike]
        require_one_shape(site, parts)
        back = torch.tensor([row for _, rows in alike for row in rows], device=x.device).argsort()
        slices[site] = (parts[0] if len(alike) == 1 else torch.cat(parts)[back]).clone()

    return site.hook, hook


def require_one_shape(site: Site, parts: Sequence[Tensor]) -> None:
    """Raise ValueError where the slices of a site differ in shape from prompt to prompt."""
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"site '{site}' has slices of shapes {sorted(shapes)} in these prompts; name one position, "
            "or read prompts of one length at a time"
        )


def require_fired(sites: Iterable[Site], fired) -> None:
    """Raise ValueError for a site whose hook did not fire."""
    for site in sites:
        if site not in fired:
            raise ValueError(
                f"site '{site}' was never reached: '{site.hook}' does not fire on this model as it is set up; "
                "use z for heads, or turn on the model's own flag for that hook"
            )
