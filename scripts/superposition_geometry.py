"""Feature geometry: how many dimensions each feature of a toy has, against sparsity (Elhage et al. 2022, section 4).

    python scripts/superposition_geometry.py --size colab              # n = 200, m = 20, 20 instances
    python scripts/superposition_geometry.py --size paper              # n = 400, m = 30
    python scripts/superposition_geometry.py --size reduced            # n = 60, m = 12, 32 instances of 1.2 to 7
    python scripts/superposition_geometry.py --size quick              # n = 60, m = 12, a minute

Trains ReLU-output toys of equal importance, one instance for each 1 - S, and draws D_i of every feature beside the
lines of the regular arrangements. The weights are kept beside the
picture; give them to --toys to draw again, or to superposition_dimensions.py and superposition_adversarial.py.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition import dimensionality
from mechkit.superposition.toy import Trained, by_sparsity
from mechkit.superposition.toy.sparsity import SIZES
from mechkit.viz.chart import COLOURS, chart, label, png, rule

LINES = {"tetrahedron": 3 / 4, "triangle": 2 / 3, "antipodal pair": 1 / 2, "pentagon": 2 / 5, "square antiprism": 3 / 8}
"""Dimensionality of a feature in each regular arrangement."""
NEAR = 0.02
"""A feature is on a line within this distance of it."""


def main(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "colab",
    n_instances: Annotated[
        int | None, typer.Option("--instances", min=2, help="Sparsities, if not the size's.")
    ] = None,
    toys: Annotated[Path | None, typer.Option(help="Trained toys of an earlier run, instead of training.")] = None,
    seed: Annotated[int, typer.Option(help="Where training starts and what it sees.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train, draw and compare with the lines."""
    out.mkdir(parents=True, exist_ok=True)
    with bars(sys.stderr):
        trained = Trained.load(toys) if toys else by_sparsity(size, n_instances=n_instances, seed=seed, device=device)
    kept = out / "superposition_geometry.safetensors"
    trained.save(kept)
    table = dimensions(trained)
    settings = f"n = {trained.toys.n_features}, m = {trained.toys.d_hidden}, I = 1, {len(trained.toys)} instances, "
    settings += f"{int(trained.n_steps.max())} steps of 1,024 samples; weights kept as {kept}"
    report_figure(claims(table), table, picture(table), out / "superposition_geometry", settings)


def dimensions(trained: Trained) -> pd.DataFrame:
    """A row per instance and feature: 1 / (1 - S), squared norm, D_i."""
    share, norm = dimensionality(trained.features).cpu(), trained.W.square().sum(1).cpu()
    sparsity = (1 / trained.toys.probability).cpu()
    columns = {"inverse_density": sparsity, "squared_norm": norm, "dimensionality": share}
    return pd.DataFrame({name: values.flatten().numpy() for name, values in columns.items()})


def claims(table: pd.DataFrame) -> list[Claim]:
    """How many features lie on each line, among those that are learned; and the others' share."""
    learned = table[(table["squared_norm"] > 0.25) & (table["inverse_density"] > 1)]
    share = np.asarray(learned["dimensionality"])
    found = []
    for name, value in LINES.items():
        here = int((np.abs(share - value) < NEAR).sum())
        even = int((np.abs(share - value) < 4 * NEAR).sum()) / 4
        words = f"{here} features within {NEAR}, {here / max(even, 1e-9):.1f} times an even spread around it"
        found.append(Claim(f"line of the {name}, D = {value:.3g}", "features cluster on it", words, here >= 10))
    populated = sum(bool(claim.met) for claim in found)
    found.append(Claim("lines populated", "5 of 5", f"{populated} of 5 by ten features or more", populated >= 4))
    near = np.any([np.abs(share - value) < NEAR for value in LINES.values()], axis=0)
    among = (share > 0.35) & (share < 0.8)
    words = f"{near[among].mean():.0%} of {among.sum()} learned features of D from 0.35 to 0.8"
    return [*found, Claim("features on one of the lines", "most, in the sticky regimes", words)]


def picture(table: pd.DataFrame) -> bytes:
    """D_i of learned features against 1 / (1 - S), with the lines."""
    figure, panels = chart("Dimensions of each learned feature", [["one point a feature"]], width=9, height=5.5)
    panel = panels["one point a feature"]
    learned = table[table["squared_norm"] > 0.25]
    panel.scatter(learned["inverse_density"], learned["dimensionality"], s=5, color=COLOURS[0], alpha=0.35, linewidth=0)
    panel.set_xscale("log")
    panel.set_ylim(0, 1.05)
    for name, value in LINES.items():
        rule(panel, value, f"{name} {value:.3g}")
    label(panel, "1 / (1 - S)", "D_i")
    return png(figure)


if __name__ == "__main__":
    typer.run(main)
