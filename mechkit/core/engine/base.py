"""The base run: the pass that all runs of a sweep share, kept where they will need it.

It goes through the model's own modules, so that a value taken from such a pass (a cache of the clean prompt, say) is
known, bit for bit, as no change. Every edit is tried on it (`Scout`).
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from mechkit.core.engine.agenda import ATTENTION, HIDDEN, TOP, Agenda, Scout, Stage
from mechkit.core.loop import computes_results, head_outputs, hooked
from mechkit.core.prompts import Prompts
from mechkit.core.site import Site


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass through the model's own modules left, of prompts of one length."""

    raw: dict[Stage, Tensor]
    """Hook tensors before the edits that all runs share."""
    value: dict[Stage, Tensor]
    """After them."""
    logits: Tensor
    """`[prompt, pos, vocab]`."""

    @classmethod
    def of(cls, model, tokens: Tensor, stages: Iterable[Stage], edit: Callable = lambda stage, value: value) -> "Pass":
        """One hooked forward pass that keeps `stages`, each after `edit(stage, value)`."""
        raw, value, own = {}, {}, computes_results(model)

        def see(stage: Stage, x: Tensor) -> Tensor:
            raw[stage] = x
            value[stage] = edit(stage, x)
            return value[stage]

        apart = [stage for stage in stages if stage[1] == "result" and not own]
        hooks = [
            (_hook_name(stage), lambda x, hook, stage=stage: see(stage, x)) for stage in stages if stage not in apart
        ]
        with ExitStack() as stack:
            stack.enter_context(hooked(model, hooks))
            for stage in apart:
                stack.enter_context(head_outputs(model, stage[0], lambda x, stage=stage: see(stage, x)))
            return cls(raw, value, model(tokens))

    def rows(self, chosen: slice) -> "Pass":
        """The same of some of the prompts."""
        raw, value = ({stage: x[chosen] for stage, x in kept.items()} for kept in (self.raw, self.value))
        return Pass(raw, value, self.logits[chosen])


class BaseRun:
    """Values of the base run by stage, `[prompt, pos, ...]` (patterns `[prompt, head, dest, src]`).

    Beside the stages where something happens it has, from the first of them on, the residual stream before every block
    (`resid_pre`), the queries, keys and values that attention takes (`Q`, `K`, `V`), and the stream that an MLP adds to
    (`mid`) where its insides or its output are edited. `start` is the pass, where it has been made.
    """

    def __init__(self, model, prompts: Prompts, agenda: Agenda, start: Pass | None = None) -> None:
        self.model, self.prompts, self.agenda = model, prompts, agenda
        self.n_prompts, self.n_pos = prompts.tokens.shape
        self.pos = torch.arange(self.n_pos, device=prompts.tokens.device)
        made = start or Pass.of(model, prompts.tokens, kept_stages(model, agenda.stages), self._shared)
        self.raw, self.value, self.logits = made.raw, dict(made.value), made.logits
        self.scout = Scout(agenda, self.n_pos)
        for stage in agenda.edits:
            self.scout.look(stage, self.value[stage])
        self._name()

    def _shared(self, stage: Stage, value: Tensor) -> Tensor:
        """The value after the edits that all runs share; the one given is left as it is."""
        edits = self.agenda.base.get(stage, [])
        value = value.clone() if edits else value
        for edit in edits:
            value = edit.apply(value, self.prompts, self.agenda.numbers)
        return value

    def _name(self) -> None:
        """The names under which a wave asks."""
        cfg = self.model.cfg
        rotary = cfg.positional_embedding_type == "rotary"
        for layer in range(cfg.n_layers):
            if (layer, "v") not in self.value or (layer, "resid_pre") not in self.value:
                continue
            q, k = ("rot_q", "rot_k") if rotary else ("q", "k")
            for name, kept in (("Q", q), ("K", k), ("V", "v")):
                self.value[layer, name] = self.value[layer, kept]
            if (layer, "resid_mid") in self.value:
                self.value[layer, "mid"] = self.value[layer, "resid_mid"]
            elif (layer, "attn_out") in self.value:
                self.value[layer, "mid"] = self.value[layer, "resid_pre"] + self.value[layer, "attn_out"]

    @property
    def pos_embed(self) -> Tensor | None:
        """What a shortformer adds to the inputs of queries and keys, `[pos, d]`; None for other models."""
        shortformer = self.model.cfg.positional_embedding_type == "shortformer"
        return self.value[-1, "pos_embed"][0] if shortformer else None

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept."""
        kept = {}
        for value in (*self.raw.values(), *self.value.values(), self.logits):
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return sum(kept.values())


def kept_stages(model, happening: Iterable[Stage]) -> set[Stage]:
    """The stages of a base run that a wave needs, where something happens at those."""
    stages, cfg = set(happening), model.cfg
    first = min((layer for layer, _ in stages), default=cfg.n_layers)
    rotary = cfg.positional_embedding_type == "rotary"
    for layer in range(max(first, 0), cfg.n_layers):
        here = {name for at, name in stages if at == layer}
        names = ["resid_pre", "v", *(("rot_q", "rot_k") if rotary else ("q", "k"))]
        names += (*ATTENTION[:3], "z") if here.intersection(ATTENTION) else ()
        if not cfg.attn_only and here.intersection((*HIDDEN, "mlp_out")):
            names += ("attn_out",) if cfg.parallel_attn_mlp else ("resid_mid",)
            names += HIDDEN if cfg.gated_mlp else ("mlp_pre", "mlp_post")
        stages |= {(layer, name) for name in names}
    if stages.intersection((-1, name) for name in TOP):
        stages |= {(-1, name) for name in (TOP if cfg.positional_embedding_type == "standard" else TOP[:1])}
    if cfg.positional_embedding_type == "shortformer":
        stages.add((-1, "pos_embed"))
    return stages


def _hook_name(stage: Stage) -> str:
    return Site(stage[1], layer=None if stage[0] < 0 else stage[0]).hook
