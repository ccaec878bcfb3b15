"""`mechkit superposition toy`: toy models trained at several sparsities, and how they store their features."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from mechkit.cli.terminal import bars, require_writable

FILES = ("toys.safetensors", "toys.parquet", "toys.png")
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01)
"""1 - S of the instances, where none is given."""


def toy(
    features: Annotated[int, typer.Option(min=1, help="Features of each toy, n.")] = 20,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden dimensions, m.")] = 5,
    kind: Annotated[str, typer.Option(help="relu, linear, hidden (a ReLU hidden layer) or absolute.")] = "relu",
    density: Annotated[list[float] | None, typer.Option(help="1 - S of an instance; may be given again.")] = None,
    importance: Annotated[float, typer.Option(help="Ratio of consecutive features' importances.")] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Instances of each density.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="First of the seeds.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 10_000,
    rate: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-3,
    nodes: Annotated[int, typer.Option(min=0, help="Quadrature nodes of a few features; 0 for samples.")] = 0,
    stop: Annotated[float | None, typer.Option(help="Stop where 100 steps gain less than this share.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help=f"Folder for {', '.join(FILES)}.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")] = False,
) -> None:
    """Train toy models of superposition and show how many features they store, and in how many dimensions."""
    written = [out / name for name in FILES]
    require_writable(written)
    import torch

    from mechkit.report.toys import print_toys, toys_png, toys_summary
    from mechkit.superposition.toy import Exact, Samples, instances, train

    densities = torch.tensor(density or DENSITIES).repeat_interleave(seeds)
    toys = instances(
        features, hidden, kind=kind, probability=densities[:, None],
        importance=importance ** torch.arange(float(features)),
        seed=list(range(seed, seed + seeds)) * (len(densities) // seeds),
    )  # fmt: skip
    with bars(sys.stderr):
        trained = train(
            toys, Exact(nodes) if nodes else Samples(), n_steps=steps, learning_rate=rate, stop=stop, device=device
        )
    trained.save(written[0])
    trained.frame().to_parquet(written[1], index=False)
    written[2].write_bytes(toys_png(trained))
    if json:
        summary = {**toys_summary(trained), "wrote": [str(path) for path in written]}
        typer.echo(json_module.dumps(summary, allow_nan=False))
    else:
        print_toys(trained, written)
