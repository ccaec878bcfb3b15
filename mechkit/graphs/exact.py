"""Level (i): with all else frozen, every target must move as its matrix column says.

Patterns, scales and MLP outputs are held at their values; what still flows are the residual stream, attention's
values and the skip connections of transcoders. That is what the matrix claims to be the derivative of, so the two
must be equal.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Add, Hook
from mechkit.core.loop import hooked
from mechkit.graphs.nodes import Node


@torch.no_grad()
def exact_error(graph, chosen: Sequence[int]) -> float:
    """Suppress each of the sources `chosen` (features) with all else frozen and compare every target's change with
    its column. The largest difference, relative to the sum of sizes of the target's row. 0 where none are chosen.

    Cost: one forward pass per feature and one more.
    """
    if not chosen:
        return 0.0
    runs = [_frozen_run(graph, None), *(_frozen_run(graph, suppression(graph, graph.sources[i])) for i in chosen)]
    values = {hook: torch.stack([run[hook] for run in runs]) for hook in runs[0]}
    moved = torch.stack([_read_target(graph, target, values) for target in graph.targets], 1)
    change = moved[1:] - moved[:1]
    sizes = graph.weighted.values.abs().sum(1)
    return float(((change + graph.weighted.values[:, chosen].T).abs() / sizes).max())


def suppression(graph, node: Node) -> Add:
    """Take what a feature writes out of its MLP's output."""
    basis = graph.attribution.bases[node.layer]
    return Add(f"L{node.layer}.mlp_out@{node.pos}", -node.value * basis.W_dec[node.index])


def _frozen_run(graph, edit: Add | None) -> dict[str, Float[Tensor, "pos d_model"]]:
    """What dictionaries read, and the last residual stream, with all else frozen and `edit` made."""
    engine, frozen, seen = graph.attribution, graph.attribution.frozen, {}
    last = f"blocks.{frozen.model.cfg.n_layers - 1}.hook_resid_post"
    hooks = [(name, lambda x, hook, name=name: seen.__setitem__(name, x[0])) for name in _read_hooks(engine, last)]
    hooks += [hook for held in frozen.freeze(mlps=True) for hook in held.hooks(frozen.model, frozen.prompts)]
    hooks += [_skip_hook(engine, basis, seen) for basis in engine.bases if basis.W_skip is not None]
    hooks += edit.hooks(frozen.model, frozen.prompts) if edit is not None else []
    with hooked(frozen.model, hooks):
        frozen.model(frozen.prompts.tokens)
    return seen


def _read_hooks(engine, last: str) -> list[str]:
    return [*(basis.hook_in for basis in engine.bases), last]


def _skip_hook(engine, basis, seen: dict[str, Tensor]) -> Hook:
    """The part of an MLP's output that a skip connection lets move with its input; not at a BOS position."""
    before = engine.mlp_in(basis)

    def hook(x: Tensor, hook) -> Tensor:
        moved = (seen[basis.hook_in] - before) @ basis.W_skip.T
        moved[: engine.mlp_positions.start] = 0
        return x + moved

    return basis.hook_out, hook


def _read_target(graph, target: Node, values: dict[str, Tensor]) -> Float[Tensor, "run"]:
    """A target's pre-activation in each run (logits from the last residual, the final norm's scale held)."""
    engine, frozen = graph.attribution, graph.attribution.frozen
    if target.kind == "feature":
        basis = engine.bases[target.layer]
        return values[basis.hook_in][:, target.pos] @ basis.W_enc[:, target.index] + basis.b_enc[target.index]
    model = frozen.model
    direction = model.W_U[:, target.index] - (model.W_U.mean(1) if engine.centred else 0)
    over_all = direction.new_zeros(frozen.n_positions, len(direction))
    over_all[-1] = direction
    through = frozen.norm_back(over_all, "ln_final", affine=True)[-1]
    return values[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"][:, target.pos] @ through
