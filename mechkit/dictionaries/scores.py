"""How well a model's transcoders stand in for its MLPs: what they miss, how sparse they are, what still works.

>>> scores = measure(model, transcoders, tokens, answers, everywhere=tokens)
>>> scores.fvu[0] < 0.1, scores.accuracy_replaced > 0.9
(True, True)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.dictionaries.transcoder import Transcoder

ROWS = 2048
"""Prompts per forward pass."""


@dataclass(frozen=True)
class Scores:
    """What `measure` found; lists have one value per layer."""

    accuracy: float
    """Share of prompts whose likeliest next token is the answer."""
    accuracy_replaced: float
    """The same with every MLP, at every position, replaced by its transcoder."""
    fvu: list[float]
    """Fraction of the MLP output's variance unexplained, at the last position."""
    l0: list[float]
    """Mean number of active features at the last position."""
    l0_everywhere: list[list[float]]
    """Mean number of active features at each position."""
    dead: list[float]
    """Share of features that are active at no position of any prompt of `everywhere`."""


@torch.no_grad()
def measure(
    model,
    transcoders: Sequence[Transcoder],
    tokens: Int[Tensor, "prompt pos"],
    answers: Int[Tensor, "prompt"],
    *,
    everywhere: Int[Tensor, "prompt_b pos"],
) -> Scores:
    """Scores on `tokens` with one-token `answers` at the last position; dead features are sought in `everywhere`.

    Cost: two forward passes of `tokens`, one of `everywhere`.
    """
    x, y = mlp_rows(model, transcoders, tokens)
    features = [t.activations(x[i][:, -1]) for i, t in enumerate(transcoders)]
    rebuilt = [t.decode(features[i], x[i][:, -1]) for i, t in enumerate(transcoders)]
    seen, l0 = _activity(model, transcoders, everywhere)
    return Scores(
        accuracy=accuracy(model, tokens, answers),
        accuracy_replaced=accuracy(model, tokens, answers, replacing(transcoders)),
        fvu=[unexplained(rebuilt[i], y[i][:, -1]) for i in range(len(transcoders))],
        l0=[(f > 0).sum(1).float().mean().item() for f in features],
        l0_everywhere=l0,
        dead=[1 - active.float().mean().item() for active in seen],
    )


def unexplained(rebuilt: Float[Tensor, "row d"], y: Float[Tensor, "row d"]) -> float:
    """Squared error over the variance of `y` about its mean, summed over dimensions; 0 is perfect, 1 no better
    than the mean."""
    return ((rebuilt - y).square().sum() / (y - y.mean(0)).square().sum()).item()


@torch.no_grad()
def accuracy(
    model, tokens: Int[Tensor, "prompt pos"], answers: Int[Tensor, "prompt"], hooks: Sequence[tuple] = ()
) -> float:
    """Share of prompts whose likeliest token after the last position is the answer, with `hooks` on."""
    right = 0
    for part, answer in zip(tokens.split(ROWS), answers.split(ROWS), strict=True):
        logits = model.run_with_hooks(part.to(model.cfg.device), fwd_hooks=list(hooks))
        right += (logits[:, -1].argmax(-1).cpu() == answer.cpu()).sum().item()
    return right / len(tokens)


@torch.no_grad()
def mlp_rows(
    model, transcoders: Sequence[Transcoder], tokens: Int[Tensor, "prompt pos"]
) -> tuple[list[Float[Tensor, "prompt pos d_model"]], list[Float[Tensor, "prompt pos d_model"]]]:
    """Inputs and outputs of the MLP of each transcoder."""
    hooks = [(t.hook_in, t.hook_out) for t in transcoders]
    return hooked_rows(model, hooks, tokens)


@torch.no_grad()
def hooked_rows(
    model, hooks: Sequence[tuple[str, str]], tokens: Int[Tensor, "prompt pos"]
) -> tuple[list[Float[Tensor, "prompt pos d_model"]], list[Float[Tensor, "prompt pos d_model"]]]:
    """What passes each (input, output) pair of hooks, for all prompts."""
    wanted = {name for pair in hooks for name in pair}
    kept: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for part in progress(tokens.split(ROWS), "reading activations"):
        _, cache = model.run_with_cache(part.to(model.cfg.device), names_filter=lambda name: name in wanted)
        for name in wanted:
            kept[name].append(cache[name])
    rows = {name: torch.cat(parts) for name, parts in kept.items()}
    return [rows[i] for i, _ in hooks], [rows[o] for _, o in hooks]


def replacing(transcoders: Sequence[Transcoder]) -> list[tuple[str, Callable]]:
    """Hooks for `run_with_hooks` that put every transcoder in its MLP's place, at every position."""
    return [hook for transcoder in transcoders for hook in _replacing_one(transcoder)]


def _replacing_one(transcoder: Transcoder) -> Iterator[tuple[str, Callable]]:
    read: list[Tensor] = []

    def keep(x: Float[Tensor, "prompt pos d_model"], hook) -> None:
        read[:] = [x]

    def write(y: Float[Tensor, "prompt pos d_model"], hook) -> Float[Tensor, "prompt pos d_model"]:
        (x,) = read
        return transcoder.decode(transcoder.activations(x), x)

    yield transcoder.hook_in, keep
    yield transcoder.hook_out, write


def _activity(
    model, transcoders: Sequence[Transcoder], tokens: Int[Tensor, "prompt pos"]
) -> tuple[list[Bool[Tensor, "feature"]], list[list[float]]]:
    """Which features are ever active, and how many are at each position on average."""
    x, _ = mlp_rows(model, transcoders, tokens)
    seen, l0 = [], []
    for i, transcoder in enumerate(transcoders):
        parts = [transcoder.activations(part) > 0 for part in x[i].split(ROWS)]
        seen.append(torch.stack([part.any(0).any(0) for part in parts]).any(0))
        l0.append((torch.stack([part.sum((0, 2)) for part in parts]).sum(0) / len(tokens)).tolist())
    return seen, l0
