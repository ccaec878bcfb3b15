"""A model's activations on text, and how well a dictionary stands in for them: what it misses, how sparse it is, what
it costs.

    found = fidelity(model, [sae], tokens)[0]
    found.hook, found.explained_variance, found.l0, found.recovered  # ('blocks.2.hook_resid_post', 0.93, 16.2, 0.98)
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.dictionaries.transcoder import Transcoder

ROWS = 64
"""Rows of tokens per forward pass."""


@dataclass(frozen=True)
class Fidelity:
    """What `fidelity` found of one dictionary, over every position of the text."""

    hook: str
    """Where it writes."""
    n_features: int
    """How many features it has."""
    explained_variance: float
    """1 minus squared error over the variance about the mean, summed over dimensions; 1 is perfect."""
    l0: float
    """Mean number of active features per position."""
    dead: float
    """Share of features active at no position of the text."""
    loss: float
    """The model's own loss, nats per token."""
    loss_rebuilt: float
    """Its loss with the dictionary in place at every position."""
    loss_zeroed: float
    """Its loss with zeros there instead."""
    n_tokens: int
    """Positions measured."""

    @property
    def recovered(self) -> float:
        """Share of what zeros cost in loss that the dictionary spares: 1 is as good as the model, 0 as bad as zeros."""
        return (self.loss_zeroed - self.loss_rebuilt) / (self.loss_zeroed - self.loss)


@dataclass(frozen=True)
class Stand:
    """A dictionary as three functions, whatever its class."""

    hook_in: str
    """What it reads."""
    hook_out: str
    """What it rebuilds."""
    n_features: int
    """How many features it has."""
    features: Callable[[Tensor], Tensor]
    """Activations of the features on inputs."""
    rebuild: Callable[[Tensor, Tensor], Tensor]
    """Outputs from activations and inputs."""

    @classmethod
    def of(cls, dictionary: "Transcoder | Any") -> "Stand":
        """A `Transcoder`, or a SAELens SAE whose metadata names its hook."""
        if isinstance(dictionary, Transcoder):
            t = dictionary
            return cls(t.hook_in, t.hook_out, t.d_features, t.activations, t.decode)
        hook = dictionary.cfg.metadata.hook_name
        out = dictionary.cfg.metadata.hook_name_out or hook
        return cls(hook, out, dictionary.cfg.d_sae, dictionary.encode, lambda active, _: dictionary.decode(active))

    def hooks(self) -> list[tuple[str, Callable]]:
        """Hooks for `run_with_hooks` that put it in place at every position."""
        read: list[Tensor] = []

        def keep(x: Tensor, hook) -> None:
            read[:] = [x]

        def write(y: Tensor, hook) -> Tensor:
            return self.rebuild(self.features(read[0]), read[0]).to(y.dtype)

        return [(self.hook_in, keep), (self.hook_out, write)]


@torch.no_grad()
def read_rows(
    model, hooks: Sequence[str], tokens: Int[Tensor, "row pos"], *, dtype: torch.dtype = torch.float16
) -> dict[str, Float[Tensor, "position d"]]:
    """Activations of every token at each of `hooks`, one row each, on the CPU in `dtype`.

    Heads of one position stand side by side. Cost: one forward pass, up to the block of the last hook.
    """
    kept: dict[str, Tensor] = {}
    for i, part in enumerate(progress(tokens.split(ROWS), "reading activations")):
        cache = _cached(model, hooks, part)
        for hook in hooks:
            flat = cache[hook].flatten(0, 1).flatten(1)
            if hook not in kept:
                kept[hook] = torch.empty(tokens.numel(), flat.shape[1], dtype=dtype)
            start = i * ROWS * tokens.shape[1]
            kept[hook][start : start + len(flat)] = flat.to(dtype)
    return kept


def _cached(model, hooks: Iterable[str], tokens: Int[Tensor, "row pos"]):
    """Values at the hooks; layers above all of them are not run."""
    blocks = [re.match(r"blocks\.(\d+)\.", hook) for hook in hooks]
    stop = max(int(block[1]) for block in blocks if block) + 1 if all(blocks) else None
    wanted = set(hooks)
    tokens = tokens.to(model.cfg.device)
    return model.run_with_cache(tokens, names_filter=lambda name: name in wanted, stop_at_layer=stop)[1]


@torch.no_grad()
def fidelity(model, dictionaries: Sequence[Any], tokens: Int[Tensor, "row pos"]) -> list[Fidelity]:
    """Each dictionary's scores on unpadded rows of tokens: `Transcoder`s and SAELens's SAEs.

    Cost: two forward passes of the text, and two more for every dictionary.
    """
    stands = [Stand.of(dictionary) for dictionary in dictionaries]
    tallies = _tallies(model, stands, tokens)
    loss = text_loss(model, tokens)
    found = []
    for stand, tally in zip(stands, tallies, strict=True):
        rebuilt = text_loss(model, tokens, stand.hooks())
        zeroed = text_loss(model, tokens, [(stand.hook_out, _zeros)])
        found.append(
            Fidelity(
                stand.hook_out, stand.n_features, tally.explained, tally.l0, tally.dead, loss, rebuilt, zeroed, tally.n
            )
        )
    return found


@torch.no_grad()
def text_loss(model, tokens: Int[Tensor, "row pos"], hooks: Sequence[tuple[str, Callable]] = ()) -> float:
    """Mean cross-entropy of the tokens from the second of each row on, in nats per token, with `hooks` on."""
    total = 0.0
    for part in tokens.split(ROWS):
        part = part.to(model.cfg.device)
        logits = model.run_with_hooks(part, fwd_hooks=list(hooks))[:, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def _zeros(y: Tensor, hook) -> Tensor:
    return torch.zeros_like(y)


@dataclass
class _Tally:
    """Sums over the positions seen so far, in float64."""

    seen: Bool[Tensor, "feature"]
    n: int = 0
    active: float = 0.0
    missed: float = 0.0
    total: Float[Tensor, "d"] | float = 0.0
    squares: float = 0.0

    def add(self, active: Float[Tensor, "row feature"], rebuilt: Float[Tensor, "row d"], y: Float[Tensor, "row d"]):
        fires = active > 0
        self.seen |= fires.any(0).cpu()
        self.n += len(y)
        self.active += float(fires.sum())
        self.missed += float((rebuilt - y).double().square().sum())
        self.total = self.total + y.double().sum(0)
        self.squares += float(y.double().square().sum())

    @property
    def explained(self) -> float:
        return 1 - self.missed / (self.squares - float((torch.as_tensor(self.total) ** 2).sum()) / self.n)

    @property
    def l0(self) -> float:
        return self.active / self.n

    @property
    def dead(self) -> float:
        return 1 - float(self.seen.float().mean())


def _tallies(model, stands: Sequence[Stand], tokens: Int[Tensor, "row pos"]) -> list[_Tally]:
    wanted = {hook for stand in stands for hook in (stand.hook_in, stand.hook_out)}
    tallies = [_Tally(torch.zeros(stand.n_features, dtype=torch.bool)) for stand in stands]
    for part in progress(tokens.split(ROWS), "reading activations"):
        cache = _cached(model, wanted, part)
        for stand, tally in zip(stands, tallies, strict=True):
            x, y = (cache[hook].flatten(0, 1).flatten(1) for hook in (stand.hook_in, stand.hook_out))
            active = stand.features(x)
            tally.add(active, stand.rebuild(active, x), y)
    return tallies
