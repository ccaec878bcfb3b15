"""Training of toys, all instances as one tensor, in chunks of what memory and caches hold.

>>> from mechkit.superposition.toy import instances
>>> found = train(instances(2, 1, probability=0.05, seed=range(4)), Exact(6), n_steps=300, learning_rate=0.05)
>>> found.W.shape, found.features.shape
(torch.Size([4, 1, 2]), torch.Size([4, 2, 1]))
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.engine.memory import Budget, halving
from mechkit.core.progress import progress
from mechkit.superposition.toy.data import Data, Exact, Samples, Stream
from mechkit.superposition.toy.toys import Toys
from mechkit.superposition.toy.trained import Trained
from mechkit.superposition.toy.weights import Rows, Weights, losses, losses_and_gradients

CACHED = 8 << 20
"""Bytes of activations of a chunk on a CPU, where more than fits its caches is slower."""
SHAPES = ("constant", "cosine", "linear")
"""How the learning rate goes on after its warm-up."""


@dataclass(frozen=True)
class Pace:
    """How far each step goes, for how long."""

    n_steps: int
    """Steps at most."""
    learning_rate: float
    """The highest rate."""
    shape: str
    """One of `SHAPES`."""
    warmup: int
    """Steps in which the rate rises from 0."""
    weight_decay: float
    """Share of the rate by which weights and biases shrink a step (decoupled, as in AdamW)."""
    betas: tuple[float, float]
    """Memory of the moments of the gradient."""
    window: int
    """Steps between looks at the loss."""
    stop: float | None
    """An instance stops once a window's mean loss is not below 1 - stop times that of the window before."""

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        left = 1 - (step - self.warmup) / max(1, self.n_steps - self.warmup)
        share = {"constant": 1.0, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "linear": left}[self.shape]
        return self.learning_rate * share


class Adam:
    """AdamW on a batch of instances, some of which may leave. Source: Loshchilov and Hutter 2019."""

    def __init__(self, weights: Weights, pace: Pace):
        self.pace, self.step = pace, 0
        self.means = [torch.zeros_like(tensor) for tensor in weights]
        self.squares = [torch.zeros_like(tensor) for tensor in weights]

    def update(self, weights: Weights, gradients: Iterable[Tensor]) -> None:
        """One step, in place."""
        rate = self.pace.rate(self.step)
        self.step += 1
        beta, gamma = self.pace.betas
        size, root = rate / (1 - beta**self.step), math.sqrt(1 - gamma**self.step)
        for value, g, mean, square in zip(weights, gradients, self.means, self.squares, strict=True):
            mean.lerp_(g, 1 - beta)
            square.mul_(gamma).addcmul_(g, g, value=1 - gamma)
            if self.pace.weight_decay:
                value.mul_(1 - rate * self.pace.weight_decay)
            value.addcdiv_(mean, (square.sqrt() / root).add_(1e-8), value=-size)

    def keep(self, which: Tensor) -> None:
        """Go on for some of the instances."""
        self.means = [tensor[which] for tensor in self.means]
        self.squares = [tensor[which] for tensor in self.squares]


@torch.no_grad()
def train(
    toys: Toys,
    data: Data | None = None,
    *,
    n_steps: int = 10_000,
    learning_rate: float = 1e-3,
    shape: str = "constant",
    warmup: int = 0,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    window: int = 100,
    stop: float | None = None,
    start: Weights | None = None,
    device: torch.device | str | None = None,
    memory: int | None = None,
    label: str = "training toys",
) -> Trained:
    """Toys trained by AdamW on the mean of sum_i I_i (x_i - x'_i)^2; the defaults are the papers'.

    `data` is `Samples()` if left out; `Exact` is the expected loss itself, `Finite` a data set. `shape` of the
    learning rate is constant, cosine or linear, after `warmup` steps. With `stop`, an instance leaves once a window's
    mean loss is not below 1 - stop times the last one's. `start` takes the place of the weights each seed draws.
    An instance depends on its own row of `toys` alone: a batch equals its instances one by one, up to rounding. More
    instances than `memory` (bytes) holds are trained in chunks, and a chunk that runs out of memory in halves.

    Cost: n_steps forward and backward passes of every instance. Raises ValueError for options that make no sense,
    weights of another shape, or a `memory` that cannot hold one instance.
    Source: Elhage et al. 2022, section 2 (training as in its notebook).
    """
    pace = Pace(n_steps, learning_rate, shape, warmup, weight_decay, betas, window, stop)
    _check_pace(pace)
    toys = toys if device is None else toys.to(device)
    weights = (Weights.initial(toys) if start is None else start.clone()).to(toys.seed.device)
    _check_shapes(toys, weights)
    source: Data = data or Samples()
    history = torch.full((-(-n_steps // window), len(toys)), math.nan, device=toys.seed.device)
    taken = torch.zeros(len(toys), dtype=torch.int64, device=toys.seed.device)

    def fit(which: list[int]) -> bool:
        at = torch.tensor(which, device=toys.seed.device)
        part = weights[at]
        history[:, at], taken[at] = _fit(toys[at], part, source.stream(toys[at], at), pace, label)
        for whole, trained in zip(weights, part, strict=True):
            whole[at] = trained
        return True

    for chunk in progress(_chunks(toys, source, memory), f"{label}, {len(toys)} instances in chunks"):
        try:
            list(halving(fit, chunk))
        except MemoryError as error:
            raise MemoryError("memory ran out on a single instance; train it on fewer rows a step") from error
    return Trained(toys, weights, history, window, taken)


def _fit(toys: Toys, weights: Weights, stream: Stream, pace: Pace, label: str) -> tuple[Tensor, Tensor]:
    """Train `weights` in place; gives the loss by window and instance, and the steps of each."""
    history = torch.full((-(-pace.n_steps // pace.window), len(toys)), math.nan, device=toys.seed.device)
    taken = torch.zeros_like(toys.seed)
    live, part, importance = torch.arange(len(toys), device=toys.seed.device), weights.clone(), toys.importance
    adam = Adam(part, pace)
    for at in progress(range(len(history)), label):
        steps = range(at * pace.window, min((at + 1) * pace.window, pace.n_steps))
        total = torch.zeros(len(live), device=toys.seed.device)
        for _ in steps:
            loss, gradients = losses_and_gradients(toys.kind, part, stream.rows(), importance)
            adam.update(part, gradients)
            total += loss
        history[at, live], taken[live] = total / len(steps), steps.stop
        going = _going(history, at, live, pace.stop)
        if going is None:
            continue
        _put(weights, live, part)
        live, part, importance = live[going], part[going], importance[going]
        adam.keep(going)
        stream.keep(going)
        if not len(live):
            break
    _put(weights, live, part)
    return history, taken


def _going(history: Tensor, at: int, live: Tensor, stop: float | None) -> Tensor | None:
    """Which of the live instances go on; None if all do."""
    if stop is None or at == 0:
        return None
    going = history[at, live] < (1 - stop) * history[at - 1, live]
    return None if bool(going.all()) else going


def _put(weights: Weights, live: Tensor, part: Weights) -> None:
    for whole, some in zip(weights, part, strict=True):
        whole[live] = some


def instance_bytes(toys: Toys, n_rows: int) -> int:
    """Bytes of the activations of one instance: about five tensors of features and three of hidden dimensions."""
    return 4 * n_rows * (5 * toys.n_features + 3 * toys.d_hidden)


def _chunks(toys: Toys, data: Data, memory: int | None) -> list[list[int]]:
    """Numbers of the instances that are trained together; those of one seed beside each other, as they share draws."""
    device, need = toys.seed.device, instance_bytes(toys, data.n_rows(toys))
    budget = Budget.of(memory, device)
    if budget.named and need > budget.limit:
        raise ValueError(
            f"one instance of {toys.n_features} features and {data.n_rows(toys)} rows takes {need} bytes, and "
            f"memory is {budget.limit}; give more, or fewer rows a step"
        )
    room = budget.planned if device.type == "cuda" else min(budget.planned, CACHED)
    size = max(1, room // need)
    order = toys.seed.argsort(stable=True).tolist()
    return [order[at : at + size] for at in range(0, len(order), size)]


@torch.no_grad()
def expected_loss(toys: Toys, weights: Weights, nodes: int = 40) -> Float[Tensor, "instance"]:
    """Expected sum_i I_i (x_i - x'_i)^2 of each instance, by quadrature; for few features (see `Exact`)."""
    return _evaluated(toys, weights, Exact(nodes), 1)


@torch.no_grad()
def sampled_loss(toys: Toys, weights: Weights, n_samples: int = 1 << 17, seed: int = 0) -> Float[Tensor, "instance"]:
    """Mean sum_i I_i (x_i - x'_i)^2 over samples drawn from `seed`, the same uniform draws for all instances."""
    batch = min(n_samples, 1024)
    same = Toys(**{**vars(toys), "seed": torch.full_like(toys.seed, seed)})
    return _evaluated(same, weights, Samples(batch), -(-n_samples // batch))


def _evaluated(toys: Toys, weights: Weights, data: Data, n_batches: int) -> Tensor:
    _check_shapes(toys, weights)
    found = torch.empty(len(toys), device=toys.seed.device)
    for chunk in _chunks(toys, data, None):
        at = torch.tensor(chunk, device=toys.seed.device)
        stream, part = data.stream(toys[at], at), weights[at]
        batches: Iterable[Rows] = (stream.rows() for _ in range(n_batches))
        found[at] = sum(losses(toys.kind, part, rows, toys.importance[at]) for rows in batches) / n_batches
    return found


def _check_pace(pace: Pace) -> None:
    if pace.n_steps < 1 or pace.window < 1 or pace.learning_rate <= 0 or pace.warmup < 0:
        raise ValueError(
            f"n_steps {pace.n_steps} and window {pace.window} must be at least 1, warmup {pace.warmup} at least 0, "
            f"learning_rate {pace.learning_rate} above 0"
        )
    if pace.shape not in SHAPES:
        raise ValueError(f"shape is one of {', '.join(SHAPES)}, not {pace.shape!r}")
    if pace.stop is not None and not 0 <= pace.stop < 1:
        raise ValueError(f"stop is a share of the loss, from 0 to below 1; got {pace.stop}")


def _check_shapes(toys: Toys, weights: Weights) -> None:
    wanted, got = ([list(tensor.shape) for tensor in one] for one in (Weights.empty(toys, "meta"), weights))
    if wanted != got:
        raise ValueError(f"weights of shapes {got} for toys that have {wanted}")
