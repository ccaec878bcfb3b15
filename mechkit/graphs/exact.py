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
    runs = [_frozen_run(graph, []), *(_frozen_run(graph, suppression(graph, graph.sources[i])) for i in chosen)]
    values = {hook: torch.stack([run[hook] for run in runs]) for hook in runs[0]}
    moved = torch.stack([_read_target(graph, target, values) for target in graph.targets], 1)
    change = moved[1:] - moved[:1]
    matrix = graph.matrix()
    sizes = matrix.abs().sum(1)
    return float(((change + matrix[:, chosen].T).abs() / sizes).max())


def suppression(graph, *nodes: Node) -> list[Add]:
    """Take what features write out of the MLP outputs that they write to, norms after the MLP held at their scales."""
    written: dict[tuple[int, int], Tensor] = {}
    for node in nodes:
        for layer, row in graph.attribution.writes(node).items():
            place = layer, node.pos or 0
            written[place] = written[place] + row if place in written else row
    return [Add(f"L{layer}.mlp_out@{pos}", -row) for (layer, pos), row in written.items()]


def _frozen_run(graph, edits: Sequence[Add]) -> dict[str, Float[Tensor, "pos d_model"]]:
    """What dictionaries read, and the last residual stream, with all else frozen and `edits` made."""
    engine, frozen, seen = graph.attribution, graph.attribution.frozen, {}
    last = f"blocks.{frozen.model.cfg.n_layers - 1}.hook_resid_post"
    hooks = [(name, lambda x, hook, name=name: seen.__setitem__(name, x[0])) for name in _read_hooks(engine, last)]
    hooks += [hook for held in frozen.freeze(mlps=True) for hook in held.hooks(frozen.model, frozen.prompts)]
    hooks += [_skip_hook(engine, basis, seen) for basis in engine.bases if basis.W_skip is not None]
    hooks += [hook for edit in edits for hook in edit.hooks(frozen.model, frozen.prompts)]
    with hooked(frozen.model, hooks):
        frozen.model(frozen.prompts.tokens)
    return seen


def _read_hooks(engine, last: str) -> list[str]:
    return [*(basis.hook_in for basis in engine.bases), last]


def _skip_hook(engine, basis, seen: dict[str, Tensor]) -> Hook:
    """The part of an MLP's output that a skip connection lets move with its input; not at a BOS position."""
    before, norm = engine.mlp_in(basis), engine.norm_after(basis)

    def hook(x: Tensor, hook) -> Tensor:
        moved = (seen[basis.hook_in] - before) @ basis.W_skip.T
        moved = moved if norm is None else norm.forward(moved)
        moved[: engine.mlp_positions.start] = 0
        return x + moved

    return f"blocks.{basis.layer}.hook_mlp_out", hook


def _read_target(graph, target: Node, values: dict[str, Tensor]) -> Float[Tensor, "run"]:
    """A target's pre-activation in each run (logits from the last residual, the final norm's scale held).

    Raises ValueError for a target that is neither feature nor logit.
    """
    engine, frozen = graph.attribution, graph.attribution.frozen
    if target.kind == "feature":
        basis = engine.bases[target.layer]
        rows, added = basis.reads([target.index], target.part or basis.parts[0])
        return values[basis.hook_in][:, target.pos] @ rows[0] + added[0]
    root, norm = engine.roots[target.root or 0], frozen.final_norm
    if root.site.name != "logits":
        raise ValueError(f"the exact level reads features and logits, not '{target}'")
    through = root.vector[None, None] if norm is None else norm.back(root.vector[None, None], target.pos or 0)
    return values[f"blocks.{frozen.model.cfg.n_layers - 1}.hook_resid_post"][:, target.pos] @ through[0, 0]
