"""What does an attribution matrix cost, against one backward pass per target and against its floor?

Both sides compute the same rows of the same model: mechkit by one descent per (layer, position), the other by
autograd through one forward pass with patterns, scales and MLP outputs held, which is the definition. The floor is
the FLOPs of the descent over the measured matrix-product rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

import mechkit as mk
from benchmarks.measure import timed
from benchmarks.table import spread
from mechkit.core.loop import hooked
from mechkit.core.prompts import Prompts
from mechkit.dictionaries import Transcoder, transcoders_for
from mechkit.graphs.engine.attribution import Attribution
from mechkit.graphs.engine.frozen import FrozenModel
from mechkit.graphs.engine.reading import mlp_input
from mechkit.graphs.engine.roots import logit_roots

REPEATS = 7
"""Timed rounds of each case."""


@dataclass(frozen=True)
class Case:
    """A model, its dictionaries and a prompt."""

    name: str
    model: object
    bases: Sequence[Transcoder]
    prompts: Prompts


def graph_table(device: str, size: str, rate: float) -> str:
    """The table, in Markdown: medians of busy time, interleaved, with spread, FLOPs and floor. Small: one model."""
    head = "| case | targets | descent s (min to max) | autograd s (min to max) | ratio | GFLOP | floor s |"
    rows = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    rows += [measured(case, REPEATS, rate) for case in cases(device, size)]
    return "\n".join(["## Attribution matrix", "", *rows])


def measured(case: Case, repeats: int, rate: float) -> str:
    """One row of the table. Raises AssertionError where the two sides disagree."""
    frozen = FrozenModel.on(case.model, case.prompts, [mlp_input(basis) for basis in case.bases])
    engine = Attribution(frozen, case.bases, logit_roots(frozen, [0], centred=True))
    chosen = engine.targets
    by_descent, by_autograd = engine.rows(chosen)[0], rows_by_autograd(engine)
    sizes = by_descent.abs().sum(1, keepdim=True)
    counted = [i for i, node in enumerate(engine.sources) if node.kind == "feature"]
    assert float(((by_descent - by_autograd) / sizes)[:, counted].abs().max()) < 1e-5, "the two sides disagree"
    sides = (lambda: list(engine.blocks(chosen)), lambda: rows_by_autograd(engine))
    times = [[timed(side, case.prompts.tokens.device.type).busy for side in sides] for _ in range(repeats)]
    ours, theirs = zip(*times, strict=True)
    ratio = median(b / a for a, b in times)
    flops = descent_flops(engine)
    cells = [case.name, str(len(chosen)), spread(ours), spread(theirs), f"{ratio:.1f}", f"{flops / 1e9:.2f}"]
    return f"| {' | '.join(cells)} | {flops / rate:.3f} |"


def descent_flops(engine: Attribution) -> float:
    """4d² for the first attention from one position, 4d² (p + 1) for each further one down to the second lowest, and
    one product per source below; the lowest too where the prompt is not short."""
    d, n_below = engine.frozen.final.shape[1], {}
    for layer, pos in {(node.layer, node.pos or 0) for node in engine.targets}:
        n_below[layer, pos] = sum(s.layer < layer and (s.pos or 0) <= pos for s in engine.features)
    total = 0
    for node in engine.targets:
        pos, hops = node.pos or 0, node.layer + (node.kind == "feature") - engine.is_short
        total += 4 * d * d * (min(hops, 1) + max(0, hops - 1) * (pos + 1)) + 2 * d * n_below[node.layer, pos]
    return float(total)


def rows_by_autograd(engine: Attribution) -> Tensor:
    """Feature columns of the matrix by one backward pass per target; other columns are left 0."""
    inputs, leaves = {}, {}

    def cut(layer: int) -> Callable:
        def hook(x: Tensor, hook) -> Tensor:
            leaves[layer] = x.detach().requires_grad_(True)
            return leaves[layer]

        return hook

    model = engine.frozen.model
    held = [name for name in model.hook_dict if name.endswith(("hook_scale", "hook_pattern"))]
    hooks = [(name, lambda x, hook: x.detach()) for name in held]
    hooks += [(b.hook_in, lambda x, hook, layer=b.layer: inputs.__setitem__(layer, x)) for b in engine.bases]
    hooks += [(b.hook_out, cut(b.layer)) for b in engine.bases]
    with torch.enable_grad(), hooked(model, hooks):
        logits = model(engine.frozen.prompts.tokens)[0, -1]
    out = engine.frozen.final.new_zeros(len(engine.targets), len(engine.sources))
    for i, node in enumerate(engine.targets):
        if node.kind == "logit":
            value = logits[node.index] - logits.mean()
        else:
            value = inputs[node.layer][0, node.pos] @ engine.bases[node.layer].W_enc[:, node.index]
        slopes = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        contract(engine, out[i], [None if slope is None else slope[0] for slope in slopes])
    return out


@torch.no_grad()
def contract(engine: Attribution, row: Tensor, slopes: Sequence[Tensor | None]) -> None:
    """Fill the feature columns of one row from the gradients over each MLP's output."""
    for layer, slope in enumerate(slopes):
        if slope is None:
            continue
        active, columns = engine.active[layer], engine.layout.features[layer]
        written = active.value[:, None] * engine.bases[layer].W_dec[active.index]
        row[columns[0] : columns[-1]] = (slope[active.pos] * written).sum(1)


def cases(device: str, size: str) -> list[Case]:
    """The bundled model on its prompt, and, in full, a random model of 4 layers, d_model 256, 16 tokens."""
    addition = mk.load("addition", device=device)
    bases = transcoders_for(addition) or []
    found = [Case("addition, 35+59=", addition, bases, Prompts.from_text(addition, "35+59="))]
    if size == "full":
        found.append(random_case(device, n_layers=4, d_model=256, n_tokens=16, per_token=60))
    return found


def random_case(device: str, *, n_layers: int, d_model: int, n_tokens: int, per_token: int) -> Case:
    """A random model with random transcoders whose thresholds leave about `per_token` features active a token."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=n_layers, d_model=d_model, n_heads=d_model // 64, d_head=64, d_mlp=4 * d_model, n_ctx=n_tokens,
        d_vocab=1000, act_fn="gelu", normalization_type="LN", seed=0, device=device,
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 1000, (1, n_tokens), generator=generator)
    width = 16 * per_token
    draw = lambda *shape: (torch.randn(*shape, generator=generator) / d_model**0.5).to(device)  # noqa: E731
    bases = [
        Transcoder(
            layer=layer, W_enc=draw(d_model, width), b_enc=torch.full((width,), -1.53, device=device),
            W_dec=draw(width, d_model), b_dec=torch.zeros(d_model, device=device),
            hook_in=f"blocks.{layer}.ln2.hook_normalized", hook_out=f"blocks.{layer}.hook_mlp_out", name="random",
        )
        for layer in range(n_layers)
    ]  # fmt: skip
    name = f"{n_layers} layers, d {d_model}, {n_tokens} tokens, about {per_token} features a token"
    return Case(name, model, bases, Prompts.from_tokens(tokens.tolist()).to(device))
