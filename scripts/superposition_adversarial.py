"""Superposition makes toys vulnerable to small changes of their input (Elhage et al. 2022, section 8).

    python scripts/superposition_adversarial.py --toys figures/superposition_geometry.safetensors
    python scripts/superposition_adversarial.py --size quick

Moves all inputs along each feature's row of W^T W, by a tenth of the mean input length, and takes the worst rise of the
loss over that of a model without superposition on the same data. Beside it: features per dimension, 1 / D*.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition.toy import Trained, attacks, by_sparsity
from mechkit.superposition.toy.sparsity import SIZES
from mechkit.viz.chart import COLOURS, chart, label, png


def main(
    toys: Annotated[Path | None, typer.Option(help="Toys that superposition_geometry.py wrote.")] = None,
    size: Annotated[str, typer.Option(help=f"What to train without them: {', '.join(SIZES)}.")] = "quick",
    samples: Annotated[int, typer.Option(min=1, help="Samples the loss is a mean over.")] = 512,
    seed: Annotated[int, typer.Option(help="Where training starts and what it sees.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train or load, attack, draw and compare."""
    with bars(sys.stderr):
        trained = Trained.load(toys) if toys else by_sparsity(size, seed=seed, device=device)
        where = device or trained.toys.seed.device
        found = attacks(trained.toys.to(where), trained.weights.to(where), n_samples=samples, seed=seed)
    table = trained.frame().assign(
        inverse_density=lambda rows: 1 / rows["probability"],
        features_per_dimension=lambda rows: 1 / rows["dimensions_per_feature"],
        vulnerability=found.vulnerability.cpu().numpy(),
        attack_length=found.length.cpu().numpy(),
    )
    settings = (
        f"n = {trained.toys.n_features}, m = {trained.toys.d_hidden}, I = 1, {len(table)} instances, attack 0.1 of "
    )
    settings += f"the mean input length, {samples} samples"
    report_figure(claims(table), table, picture(table), out / "superposition_adversarial", settings)


def claims(table: pd.DataFrame) -> list[Claim]:
    """How much vulnerability rises, and whether it goes with features per dimension."""
    dense = table.sort_values("inverse_density")["vulnerability"].iloc[0]
    most = table["vulnerability"].max()
    ranks = table[["vulnerability", "features_per_dimension"]].rank()
    rank = float(np.corrcoef(ranks.to_numpy().T)[0, 1])
    return [
        Claim("dense toys", "as a model without superposition (1)", f"{dense:.2f}", bool(abs(dense - 1) < 0.2)),
        Claim(
            "vulnerability rises as superposition forms",
            "over 3 times",
            f"{most / dense:.1f} times",
            bool(most > 3 * dense),
        ),
        Claim("it tracks features per dimension, 1 / D*", "closely", f"rank correlation {rank:.2f}", bool(rank > 0.9)),
    ]


def picture(table: pd.DataFrame) -> bytes:
    """Both against sparsity."""
    names = ["worst rise of the loss", "features per dimension, 1 / D*"]
    figure, panels = chart("Vulnerability to adversarial examples", [names], width=9.5, height=4)
    for name, column, colour in zip(names, ("vulnerability", "features_per_dimension"), COLOURS, strict=False):
        panels[name].plot(table["inverse_density"], table[column], "o-", color=colour, markersize=4)
        panels[name].set_xscale("log")
        panels[name].set_ylim(0, None)
        label(panels[name], "1 / (1 - S)", "over that without superposition" if column == "vulnerability" else "1 / D*")
    return png(figure)


if __name__ == "__main__":
    typer.run(main)
