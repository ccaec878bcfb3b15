"""Training of small models from sampled prompts, on whatever device the model is on.

The caller gives a model, a function that draws batches and, where it is not `answer_loss`, what is lost on one;
`train` gives back the losses, with the model trained in place. The unembedding may be tied to the embedding, which a
`HookedTransformer` does not do by itself: then the two are one matrix while training, and `model.unembed.W_U` holds its
transpose at the end.

>>> from mechkit.zoo.addition.tasks import sample_batch
>>> model = new_model(0, device="cpu", n_layers=1, d_model=16, d_head=8, n_ctx=5, d_vocab=209, act_fn="relu")
>>> losses = train(model, lambda generator: sample_batch(20, generator), n_steps=3, seed=0)
>>> len(losses)
3
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from mechkit.core.progress import progress
from mechkit.zoo.checkpoint import resume, save_state

Batch = tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt"], Int[Tensor, "prompt"]]
"""Token ids padded on the right, the token id of the answer, and the position that must give it."""


def new_model(seed: int, **settings: Any):
    """A `HookedTransformer` with random weights drawn from `seed`; the global random state is left as it was."""
    import warnings

    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(seed)
        return HookedTransformer(HookedTransformerConfig(**settings))


def train(
    model,
    draw: Callable[[torch.Generator], tuple[Tensor, ...]],
    *,
    n_steps: int,
    seed: int,
    loss: Callable[..., Float[Tensor, ""]] | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 1.0,
    n_warmup: int = 50,
    max_norm: float = math.inf,
    n_parts: int = 1,
    tied: bool = True,
    checkpoint: Path | None = None,
    save_every: int = 100,
    stop: int | None = None,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `model` in place on what `loss` gives, by default `answer_loss`; returns the loss of each step run.

    AdamW, betas (.9, .98), a linear warm-up, then a cosine to zero; gradients longer than `max_norm` are cut to it.
    `loss` is called as `loss(model, *batch, tied=tied)` on a batch from `draw`, which is given a generator seeded by
    `seed`. With `n_parts` a batch is parted, and each part's gradient is computed in a thread of its own: on a busy CPU
    that is faster than many threads in one operation, and it sums in the same order every time. With `checkpoint` the
    state is saved every `save_every` steps and training goes on from it. With `stop` it ends after that many of the
    `n_steps`, for another call to go on from there with other batches. `report` is told each step's number and loss.

    Cost: one forward and backward pass per step.
    """
    parameters = _trained(model, tied)
    optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    start = resume(checkpoint, parameters, optimizer, generator)
    loss, losses = loss or answer_loss, []
    end = n_steps if stop is None else min(stop, n_steps)
    for step in progress(range(start, end), "training the model"):
        optimizer.param_groups[0]["lr"] = learning_rate * schedule(step, n_steps, n_warmup)
        batch = [tensor.to(model.cfg.device) for tensor in draw(generator)]
        losses.append(_add_gradients(parameters, lambda *part: loss(model, *part, tied=tied), batch, n_parts))
        if math.isfinite(max_norm):
            torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        optimizer.step()
        if report is not None:
            report(step, losses[-1])
        if checkpoint is not None and ((step + 1) % save_every == 0 or step + 1 == end):
            save_state(checkpoint, step + 1, parameters, optimizer, generator)
    _finish(model, tied)
    return losses


def _add_gradients(parameters: dict[str, Tensor], loss, batch: list[Tensor], n_parts: int) -> float:
    """Set every parameter's `.grad` to the mean over the parts of a batch; returns the mean loss."""
    tensors = list(parameters.values())

    def one(part: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor | None, ...]]:
        lost = loss(*part)
        return lost.item(), torch.autograd.grad(lost, tensors, allow_unused=True)

    parts = list(zip(*(tensor.chunk(n_parts) for tensor in batch), strict=True))
    if n_parts == 1:
        done = [one(parts[0])]
    else:
        with ThreadPoolExecutor(n_parts) as pool:
            done = list(pool.map(one, parts))
    for index, tensor in enumerate(tensors):
        found = [gradients[index] for _, gradients in done]
        tensor.grad = None if found[0] is None else sum(found[1:], found[0]) / len(found)  # pyright: ignore
    return sum(lost for lost, _ in done) / len(done)


def answer_loss(
    model, tokens: Int[Tensor, "prompt pos"], answers: Int[Tensor, "prompt"], last: Int[Tensor, "prompt"], *, tied: bool
) -> Float[Tensor, ""]:
    """Mean cross-entropy of one token per prompt, in nats: the answer after position `last`."""
    return torch.nn.functional.cross_entropy(answer_logits(model, tokens, last, tied), answers)


def answer_logits(
    model, tokens: Int[Tensor, "prompt pos"], last: Int[Tensor, "prompt"], tied: bool
) -> Float[Tensor, "prompt d_vocab"]:
    """Logits at position `last` of each prompt, through the embedding's transpose where `tied`."""
    override = {"unembed.W_U": model.embed.W_E.T, "unembed.b_U": torch.zeros_like(model.unembed.b_U)}
    logits = functional_call(model, override if tied else {}, (tokens,))
    return logits[torch.arange(len(tokens), device=logits.device), last]


def schedule(step: int, n_steps: int, n_warmup: int) -> float:
    """Share of the full learning rate at `step`: up linearly, then down along half a cosine."""
    return min(1.0, (step + 1) / n_warmup) * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def _trained(model, tied: bool) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if not (tied and n.startswith("unembed."))}


@torch.no_grad()
def _finish(model, tied: bool) -> None:
    model.zero_grad(set_to_none=True)
    if tied:
        model.unembed.W_U.copy_(model.embed.W_E.T)
        model.unembed.b_U.zero_()
