"""What a sweep will cost, said before anything runs.

print(plan(model, prompts, runs, logit_diff))
# 192 runs, 1 prompts (lean): at most 2 passes over the layers, 60.1 GFLOP ...
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mechkit.core.engine.agenda import ATTENTION, HIDDEN, Agenda
from mechkit.core.engine.choose import suits, suits_sites
from mechkit.core.engine.fused import obstacle
from mechkit.core.engine.memory import Budget, Costs, chunks, fused_bytes, itemsize
from mechkit.core.interventions import Intervention
from mechkit.core.metrics import as_metric
from mechkit.core.places import check_site, expand
from mechkit.core.prompts import Prompts, by_length, check_tokens
from mechkit.core.site import Site


@dataclass(frozen=True)
class Plan:
    """Cost of a sweep, at most: runs that turn out to change nothing are left out when it runs."""

    n_runs: int
    """Lists of edits."""
    n_prompts: int
    """Prompts each is measured on."""
    path: str
    """`lean`, `general` or both."""
    why: str | None
    """What keeps the model from the lean path, in words."""
    passes: int
    """Passes over the layers, the base run included."""
    flops: float
    """Floating-point operations, the base run included."""
    loop_flops: float
    """The same for one whole forward pass per run."""
    memory: int
    """Bytes above the loaded model."""

    def __str__(self) -> str:
        text = (
            f"{self.n_runs:,} runs, {self.n_prompts:,} prompts ({self.path}): at most {self.passes:,} passes over the "
            f"layers, {self.flops / 1e9:,.1f} GFLOP ({self.loop_flops / max(self.flops, 1):.1f} times fewer than one "
            f"forward pass a run), {self.memory / 2**20:,.0f} MiB"
        )
        return text if self.why is None else f"{text}; not all of it is lean, because {self.why}"


def plan(
    model,
    prompts: Prompts,
    runs: Sequence[Sequence[Intervention]],
    metric=None,
    *,
    base: Sequence[Intervention] = (),
    read: "str | Site | Iterable[str | Site]" = (),
    memory: int | None = None,
) -> Plan:
    """What `sweep` with the same arguments will cost, at most. Runs nothing.

    Without `metric` every position is taken to be read. FLOPs count products of weights and attention.
    Cost: none. Raises ValueError for a site the model lacks.
    """
    runs, wanted = [list(run) for run in runs], expand(model, read, prompts)
    for edit in [*base, *(edit for run in runs for edit in run)]:
        check_site(model, edit.site)
    check_tokens(model, prompts)
    metrics = [as_metric(one) for one in (metric if isinstance(metric, Sequence) else [metric])] if metric else []
    last = bool(metrics) and all(one.reads == "last" for one in metrics)
    device = next(model.parameters()).device
    lean = suits(model, [*(edit.site for edit in base), *wanted])
    easy = [lean and suits_sites(model, [edit.site for edit in run]) for run in runs]
    shape = _Shape(model)
    agendas = [Agenda(runs, base, wanted, prompts[rows], rows) for rows in by_length(prompts)]
    whole = sum(shape.forward(int(agenda.prompts.tokens.shape[1])) * len(agenda.prompts) for agenda in agendas)
    starts = [_starts(model, agenda) for agenda in agendas]
    flops = float(whole)
    for i in range(len(runs)):
        ran = [
            sum(shape.lean(agenda.first_layer(i), int(s), agenda.prompts.tokens.shape[1], last) for s in start[i])
            if easy[i]
            else len(agenda.prompts) * shape.forward(agenda.prompts.tokens.shape[1], agenda.first_layer(i))
            for agenda, start in zip(agendas, starts, strict=True)
        ]
        flops += sum(ran) if runs[i] else 0
    passes, used = _passes(
        model, agendas, starts, [i for i in range(len(runs)) if easy[i] and runs[i]], Budget.of(memory, device)
    )
    slow = sum(not one for one in easy)
    path = "lean" if not slow else "general" if slow == len(runs) else "lean+general"
    why = None if not slow else obstacle(model) or "it edits or reads sites the lean layers do not know"
    return Plan(len(runs), len(prompts), path, why, passes + slow + bool(slow), flops, float(whole * len(runs)), used)


class _Shape:
    """FLOPs of a model's parts."""

    def __init__(self, model) -> None:
        cfg = model.cfg
        self.n_layers, self.d_attn = cfg.n_layers, cfg.n_heads * cfg.d_head
        n_kv = cfg.n_key_value_heads or cfg.n_heads
        self.qkv = 2 * cfg.d_model * (cfg.n_heads + 2 * n_kv) * cfg.d_head
        per_token = 0 if cfg.attn_only else cfg.d_mlp * (3 if cfg.gated_mlp else 2) * (cfg.experts_per_token or 1)
        self.after = 2 * cfg.d_model * (self.d_attn + per_token)
        self.unembed = 2 * cfg.d_model * cfg.d_vocab_out

    def forward(self, n_pos: int, first: int = 0) -> float:
        """One prompt through the layers from `first` on, every position."""
        layers = self.n_layers - min(max(first, 0), self.n_layers)
        return float(n_pos * (layers * (self.qkv + self.after + 4 * n_pos * self.d_attn) + self.unembed))

    def lean(self, first: int, start: int, n_pos: int, last: bool) -> float:
        """One row that joins at a layer and a position."""
        n, layers = n_pos - start, max(self.n_layers - max(first, 0), 0)
        attention = 4 * n_pos * self.d_attn
        if not last:
            return float(n * (layers * (self.qkv + self.after + attention) + self.unembed))
        whole = n * (self.qkv + self.after + attention) * max(layers - 1, 0)
        return float(whole + n * self.qkv * (layers > 0) + self.after + attention + self.unembed)


def _starts(model, agenda: Agenda) -> np.ndarray:
    """The first position that each run may change, `[run, prompt]`."""
    n_pos = agenda.prompts.tokens.shape[1]
    starts = np.zeros((len(agenda.runs), len(agenda.prompts)), dtype=np.int64)
    if model.cfg.attention_dir != "causal":
        return starts
    for i, run in enumerate(agenda.runs):
        starts[i] = n_pos
        for edit in run:
            for place, members in agenda.placed(edit.site):
                dest = place[0] if isinstance(place, tuple) else place
                starts[i, members] = np.minimum(starts[i, members], dest if isinstance(dest, int) else dest.start or 0)
    return starts


def _passes(model, agendas: Sequence[Agenda], starts: Sequence[np.ndarray], runs: list[int], budget: Budget) -> tuple:
    """Passes of the lean runs, and bytes in use at most."""
    n_pos = max(agenda.prompts.tokens.shape[1] for agenda in agendas)
    stages = set().union(*(agenda.stages for agenda in agendas))
    happens = [any(name in names for _, name in stages) for names in (HIDDEN, ATTENTION, ("result",))]
    costs, size = Costs.of(model, n_pos, *happens), itemsize(model)
    tokens = [
        sum(
            int((agenda.prompts.tokens.shape[1] - start[i]).sum())
            for agenda, start in zip(agendas, starts, strict=True)
        )
        for i in runs
    ]
    rows = [sum(len(start[i]) for start in starts) for i in runs]
    layers = model.cfg.n_layers - max(min((stage[0] for stage in stages), default=0), 0)
    kept = sum(agenda.prompts.tokens.numel() for agenda in agendas) * layers * 4 * model.cfg.d_model * size
    room = max(budget.planned - kept - fused_bytes(model), costs.row)
    found = list(chunks(tokens, rows, costs, room // 2))
    most = max((sum(tokens[i] * costs.token + rows[i] * costs.row for i in chunk) for chunk in found), default=0)
    return 1 + len(found), min(kept + fused_bytes(model) + most, max(budget.planned, kept))
