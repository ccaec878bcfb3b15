"""Gradients of a metric at activations: one forward and one backward pass for all hooks together.

    side = Side(prompts)
    found = at(model, side, [0], ["blocks.0.hook_resid_pre"], lambda logits: logit_diff(logits, prompts))
    found.values, found.gradients               # lists of tensors by hook name

Parameters take no part in the graph, which starts at the earliest of the hooks. `Rules` change what flows backward and
leave the forward pass as it is, bit for bit (`core.rules`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Hook, Intervention
from mechkit.core.loop import hooked
from mechkit.core.metrics import Metric
from mechkit.core.prompts import Prompts

Tensors = Mapping[str, Sequence[Tensor]]
"""Hook tensors `[prompt, ...]` by full hook name, one for each time the hook fires in a pass."""

Measure = Callable[[Tensor], Tensor]
"""Logits of some prompts in, one number per prompt out."""


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a comparison: prompts, and the edits that every run on them is under."""

    prompts: Prompts
    """The prompts that run."""
    edits: Sequence[Intervention] = ()
    """Edits made in forward order, then list order."""

    def hooks(self, rows: Sequence[int]) -> list[Hook]:
        """The edits as hooks of a batch that holds these prompts."""
        batch = self.prompts[rows]
        return [
            (edit.site.hook, lambda x, hook, edit=edit: edit.apply(x, batch, rows))  #
            for edit in self.edits
        ]


@dataclass(frozen=True, eq=False)
class Rules:
    """Hooks that change gradients and no values."""

    before: Sequence[Hook] = ()
    """Made before a hook's value is taken: its own gradient is that of what comes after."""
    after: Sequence[Hook] = ()
    """Made after it: its own gradient feels them."""


@dataclass(frozen=True, eq=False)
class Found:
    """What one forward pass and its backward passes gave."""

    logits: Float[Tensor, "prompt pos vocab"]
    """Logits of the pass, without a graph."""
    values: Tensors
    """The hooks' values."""
    gradients: Sequence[Tensors] = ()
    """Gradients of the summed metric at those values, one mapping per backward pass."""


@dataclass
class Gate:
    """Which layer's contribution the next backward pass leaves out."""

    layer: int | None = None
    """Block, from 0; None for none."""


def at(
    model, side: Side, rows: Sequence[int], names: Sequence[str], measure: Measure, rules: Rules | None = None
) -> Found:
    """Values and gradients at the hooks `names` on prompts of one length. Cost: one forward and one backward pass."""
    return _backward(model, side, rows, names, measure, rules or Rules(), [None], Gate())


def dropping_layers(model, side: Side, rows: Sequence[int], names: Sequence[str], measure: Measure) -> Found:
    """As `at`, with one mapping of gradients per layer: nothing flows back through what that layer adds.

    Blocked are attn_out and mlp_out of the layer, so its own components have gradient 0 in their turn. Cost: one
    forward pass and a backward pass per layer. Source: Kramár et al. 2024, section 3.2.
    """
    gate = Gate()
    hooks = [
        (f"blocks.{layer}.hook_{name}", lambda x, hook, layer=layer: _block(x, gate, layer))
        for layer in range(model.cfg.n_layers)
        for name in (["attn_out"] if model.cfg.attn_only else ["attn_out", "mlp_out"])
    ]
    return _backward(model, side, rows, names, measure, Rules(after=hooks), range(model.cfg.n_layers), gate)


def along(
    model,
    side: Side,
    rows: Sequence[int],
    names: Sequence[str],
    measure: Measure,
    ends: Mapping[str, tuple[Tensor, Tensor]],
    steps: int,
    batch_size: int,
) -> dict[str, list[Tensor]]:
    """Mean gradient at the hooks `names` while the hooks `ends` go straight from their first value to their second.

    Taken at the midpoints (k + 1/2) / steps, k from 0 to steps - 1, as many at once as `batch_size` rows hold.
    Cost: `steps` forward and backward passes, batched.
    """
    total: dict[str, list[Tensor]] = {}
    at_once = max(1, batch_size // len(rows))
    for first in range(0, steps, at_once):
        n = min(at_once, steps - first)
        shares = (torch.arange(first, first + n) + 0.5) / steps
        hooks = [(name, _between(*both, shares)) for name, both in ends.items()]
        every = lambda logits, n=n: torch.stack([measure(part) for part in logits.unflatten(0, (n, -1))])  # noqa: E731
        found = at(model, side, [*rows] * n, names, every, Rules(before=hooks))
        for name, gradients in found.gradients[0].items():
            sums = [one.unflatten(0, (n, -1)).sum(0) / steps for one in gradients]
            old = total.get(name)
            total[name] = sums if old is None else [a + b for a, b in zip(old, sums, strict=True)]
    return total


@torch.no_grad()
def values(model, side: Side, rows: Sequence[int], names: Sequence[str]) -> Found:
    """Values at the hooks `names` on prompts of one length. Cost: one forward pass."""
    seen: dict[str, list[Tensor]] = {}
    keep = lambda name: lambda x, hook: seen.setdefault(name, []).append(x.detach().clone())  # noqa: E731
    with installed(model, [*side.hooks(rows), *((name, keep(name)) for name in names)]):
        return Found(model(side.prompts[rows].tokens), seen)


def measure_part(metric: Metric, prompts: Prompts, rows: Sequence[int], logits: Tensor) -> Float[Tensor, "part"]:
    """The metric of the prompts `rows`, whose logits these are; the metric sees its full batch, the rest of it 0.

    So that a metric that knows its prompts (`kl` with its reference) can be taken in parts.
    """
    longest = max(prompts.lengths)
    if list(rows) == list(range(len(prompts))) and logits.shape[1] == longest:
        return metric(logits, prompts)
    whole = logits.new_zeros(len(prompts), longest, logits.shape[-1])
    chosen = torch.tensor(list(rows), device=logits.device)
    padding = logits.new_full((len(rows), longest - logits.shape[1], logits.shape[-1]), torch.nan)
    return metric(whole.index_copy(0, chosen, torch.cat([logits, padding], 1)), prompts)[chosen]


@contextmanager
def constant_parameters(model) -> Iterator[None]:
    """Inside the block no parameter requires a gradient, so that none is computed or kept for one."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def installed(model, hooks: Sequence[Hook]) -> Iterator[None]:
    """Forward hooks in place inside the block, on hook points or on modules, by name; the model's own stay."""
    points = [(name, function) for name, function in hooks if name in model.hook_dict]
    handles = []
    try:
        with hooked(model, points):
            for name, function in hooks:
                if name not in model.hook_dict:
                    handles.append(model.get_submodule(name).register_forward_hook(_on_output(function)))
            yield
    finally:
        for handle in handles:
            handle.remove()


def _on_output(function: Callable) -> Callable:
    """A module's forward hook; where the module gives several things, of the first."""

    def hook(module, inputs, output):
        if not isinstance(output, tuple):
            return function(output, module)
        new = function(output[0], module)
        return None if new is None else (new, *output[1:])

    return hook


def _backward(
    model,
    side: Side,
    rows: Sequence[int],
    names: Sequence[str],
    measure: Measure,
    rules: Rules,
    layers: Sequence[int | None],
    gate: Gate,
) -> Found:
    """One forward pass, and a backward pass with each of `layers` left out."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [*side.hooks(rows), *rules.before, *((name, _tap(name, seen)) for name in names), *rules.after]
    gradients = []
    with torch.inference_mode(False), torch.enable_grad(), constant_parameters(model), installed(model, hooks):
        logits = model(side.prompts[rows].tokens)
        total = _total(measure, logits)
        for gate.layer in layers:
            gradients.append(_gradients(total, seen, keep_graph=gate.layer != layers[-1]))
    kept = {name: [x.detach() for x in found] for name, found in seen.items()}
    return Found(logits.detach(), kept, gradients)


def _tap(name: str, seen: dict[str, list[Tensor]]) -> Callable:
    """A hook that keeps its value as what the graph is differentiated at, or starts from.

    What goes on is a copy: a later edit in place does not reach the value.
    """

    def hook(x: Tensor, module) -> Tensor:
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        seen.setdefault(name, []).append(x)
        return x.clone()

    return hook


def _total(measure: Measure, logits: Tensor) -> Tensor:
    """The metric summed over prompts. Raises ValueError where it has no gradient although the logits have."""
    total = measure(logits).sum()
    if logits.requires_grad and not total.requires_grad:
        raise ValueError("the metric has no gradient (it counts, or detaches); take logit_diff, logprob or loss")
    return total


def _gradients(total: Tensor, seen: Tensors, *, keep_graph: bool) -> dict[str, list[Tensor]]:
    """Gradient of `total` at each tensor, zeros where it does not reach."""
    flat = [x for found in seen.values() for x in found]
    if not total.requires_grad:
        return {name: [torch.zeros_like(x) for x in found] for name, found in seen.items()}
    found = iter(torch.autograd.grad(total, flat, allow_unused=True, retain_graph=keep_graph, materialize_grads=True))
    return {name: [next(found) for _ in tensors] for name, tensors in seen.items()}


def _block(x: Tensor, gate: Gate, layer: int) -> None:
    """Let no gradient through `x` while the gate is at its layer."""
    if x.requires_grad:
        x.register_hook(lambda gradient: torch.zeros_like(gradient) if gate.layer == layer else None)


def _between(start: Tensor, end: Tensor, shares: Float[Tensor, "step"]) -> Callable:
    """A hook that puts the points at `shares` of the way from `start` to `end`, step by step, in place of its value."""

    def hook(x: Tensor, module) -> Tensor:
        share = shares.to(device=start.device, dtype=start.dtype).reshape(-1, *[1] * start.ndim)
        return torch.lerp(start[None], end[None], share).flatten(0, 1)

    return hook
