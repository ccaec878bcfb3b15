"""What does training many toys as one tensor cost, against a loop over instances?

    python -m benchmarks.toys

Toys of two features in one dimension, as in a phase diagram with ten seeds. The loop trains one instance after the
other, as a notebook would: autograd and torch's AdamW, on the same data.
"""

import torch
from torch import Tensor

from benchmarks.measure import Case, Side, matmul_rate, measured
from benchmarks.table import table
from mechkit.superposition.toy import Exact, Samples, Toys, Weights, instances, train

STEPS, SEEDS = 20, 10
WANTED = 20.0
"""How many times faster the batch is to be."""
INSTANCES = {"small": 200, "full": 2000}
SOURCES = {"1,024 samples a step": Samples(), "expected loss, 7 x 7 rows": Exact(6)}


def toy_table(device: str, size: str, rate: float) -> str:
    """The table of both kinds of training, in Markdown."""
    n = INSTANCES[size]
    p = 10 ** torch.linspace(0, -2, n // SEEDS).repeat_interleave(SEEDS)
    toys = instances(2, 1, probability=p[:, None], seed=list(range(SEEDS)) * (n // SEEDS)).to(device)
    rows = []
    for name, source in SOURCES.items():
        sides = [
            Side("mechkit, one batch", lambda source=source: train(toys, source, n_steps=STEPS).W, n),
            Side("loop over instances", lambda source=source: looped(toys, source), n, wanted=WANTED),
        ]
        case = Case("2 features in 1", f"{n} toys, {STEPS} steps, {name}", sides, 1.0, flops(source, toys))
        rows += measured(case, device, 1.0)
    if wrong := [row.side.name for row in rows if not row.agrees]:
        raise AssertionError(f"{wrong[0]} gives other weights")
    return table("Training of toys", rows, device, rate)


def flops(source: Samples | Exact, toys: Toys) -> float:
    """Of the products of one step of one instance, forward and backward."""
    return 12.0 * source.n_rows(toys) * toys.n_features * toys.d_hidden


def looped(toys: Toys, source: Samples | Exact) -> Tensor:
    """W of every instance, trained alone."""
    with torch.enable_grad():
        return torch.stack([alone(toys[at : at + 1], source) for at in range(len(toys))])


def alone(toy: Toys, source: Samples | Exact) -> Tensor:
    """W of one instance, by autograd."""
    W, b = (tensor[0].clone().requires_grad_() for tensor in Weights.initial(toy))
    adam = torch.optim.AdamW([W, b], lr=1e-3, weight_decay=0.01)
    stream = source.stream(toy, torch.zeros(1, dtype=torch.int64))
    for _ in range(STEPS):
        rows = stream.rows()
        x = rows.x.reshape(toy.n_features, -1).T
        error = ((x @ W.T @ W + b).relu() - x).square() @ toy.importance[0]
        loss = error.mean() if rows.weight is None else error @ rows.weight[0]
        adam.zero_grad()
        loss.backward()
        adam.step()
    return W.detach()


if __name__ == "__main__":
    print(toy_table("cpu", "small", matmul_rate("cpu")))
