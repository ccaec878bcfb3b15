"""The base run: the pass that all runs of a sweep share, kept where they will need it.

It goes through the model's own modules, so that a value taken from such a pass (a cache of the clean prompt, say) is
known, bit for bit, as no change. While it runs, every edit is tried on it (`Scout`).
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from mechkit.core.engine.agenda import ATTENTION, HIDDEN, TOP, Agenda, Scout, Stage
from mechkit.core.loop import computes_results, head_outputs, hooked
from mechkit.core.prompts import Prompts
from mechkit.core.site import Site


class BaseRun:
    """Values of the base run by stage, `[prompt, pos, ...]` (patterns `[prompt, head, dest, src]`).

    Beside the stages where something happens it has, from the first of them on, the residual stream before every block
    (`resid_pre`), the queries, keys and values that attention takes (`Q`, `K`, `V`), and the stream that an MLP adds to
    (`mid`) where its insides or its output are edited.
    """

    def __init__(self, model, prompts: Prompts, agenda: Agenda) -> None:
        self.model, self.prompts, self.agenda = model, prompts, agenda
        self.n_prompts, self.n_pos = prompts.tokens.shape
        self.scout = Scout(agenda, self.n_pos)
        self.raw: dict[Stage, Tensor] = {}
        """Before the edits that all runs share."""
        self.value: dict[Stage, Tensor] = {}
        """After them."""
        self.pos = torch.arange(self.n_pos, device=prompts.tokens.device)
        with ExitStack() as stack:
            stack.enter_context(hooked(model, [(name, self._hook(stage)) for stage, name in self._wanted().items()]))
            for stage in agenda.stages:
                if stage[1] == "result" and not computes_results(model):
                    stack.enter_context(head_outputs(model, stage[0], lambda x, stage=stage: self.see(stage, x)))
            self.logits = model(prompts.tokens)
        self._name()

    def _wanted(self) -> dict[Stage, str]:
        """The stages to keep, with their hooks, in forward order where that matters."""
        first, cfg = min((stage[0] for stage in self.agenda.stages), default=self.model.cfg.n_layers), self.model.cfg
        rotary = cfg.positional_embedding_type == "rotary"
        stages = set(self.agenda.stages)
        for layer in range(max(first, 0), cfg.n_layers):
            names = ["resid_pre", "v", *(("rot_q", "rot_k") if rotary else ("q", "k"))]
            names += ATTENTION[:3] if self.agenda.any(layer, ATTENTION) else ()
            names += ("z",) if self.agenda.any(layer, ATTENTION) else ()
            if not cfg.attn_only and self.agenda.any(layer, (*HIDDEN, "mlp_out")):
                names += ("attn_out",) if cfg.parallel_attn_mlp else ("resid_mid",)
                names += HIDDEN if cfg.gated_mlp else ("mlp_pre", "mlp_post")
            stages |= {(layer, name) for name in names}
        if self.agenda.any(-1, TOP):
            stages |= {(-1, name) for name in (TOP if cfg.positional_embedding_type == "standard" else TOP[:1])}
        elif cfg.positional_embedding_type == "shortformer":
            stages.add((-1, "pos_embed"))
        if cfg.positional_embedding_type == "shortformer":
            stages.add((-1, "pos_embed"))
        own = computes_results(self.model)
        return {stage: _hook_name(stage) for stage in stages if own or stage[1] != "result"}

    def _hook(self, stage: Stage) -> Callable:
        return lambda x, hook: self.see(stage, x)

    def see(self, stage: Stage, value: Tensor) -> Tensor:
        """The value after the shared edits, kept; the runs' own edits are tried on it."""
        shared = self.agenda.base.get(stage, [])
        self.raw[stage] = value.clone() if shared else value
        for edit in shared:
            value = edit.apply(value, self.prompts, self.agenda.numbers)
        self.value[stage] = value
        self.scout.look(stage, value)
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


def _hook_name(stage: Stage) -> str:
    return Site(stage[1], layer=None if stage[0] < 0 else stage[0]).hook
