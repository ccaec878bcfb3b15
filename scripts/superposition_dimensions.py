"""Dimensions per learned feature, D* = m / |W|^2, against sparsity: sticky at 1 and at 1/2.

    python scripts/superposition_dimensions.py --toys figures/superposition_geometry.safetensors
    python scripts/superposition_dimensions.py --size quick

Elhage et al. 2022, section 4. Takes the toys that superposition_geometry.py has trained, or trains them.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition.toy import Trained, by_sparsity
from mechkit.superposition.toy.sparsity import SIZES
from mechkit.viz.chart import COLOURS, chart, label, png, rule

CLOSE = 0.05
"""Share by which a sticky point may be missed."""


def main(
    toys: Annotated[Path | None, typer.Option(help="Toys that superposition_geometry.py wrote.")] = None,
    size: Annotated[str, typer.Option(help=f"What to train without them: {', '.join(SIZES)}.")] = "quick",
    n_instances: Annotated[
        int | None, typer.Option("--instances", min=4, help="Sparsities, if not the size's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Where training starts and what it sees.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train or load, draw and compare with 1 and 1/2."""
    with bars(sys.stderr):
        trained = Trained.load(toys) if toys else by_sparsity(size, n_instances=n_instances, seed=seed, device=device)
    table = trained.frame().assign(inverse_density=lambda rows: 1 / rows["probability"])
    settings = f"n = {trained.toys.n_features}, m = {trained.toys.d_hidden}, I = 1, {len(table)} instances, "
    settings += f"{table['n_steps'].max()} steps of 1,024 samples"
    report_figure(claims(table), table, picture(table), out / "superposition_dimensions", settings)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Where D* stays, and how long."""
    curve = table.sort_values("inverse_density")
    x, y = curve["inverse_density"].to_numpy(), curve["dimensions_per_feature"].to_numpy()
    found = []
    for value, words in ((1.0, "a dimension for each feature"), (0.5, "antipodal pairs")):
        near = np.abs(y / value - 1) <= CLOSE
        span = f"for 1 / (1 - S) from {x[near].min():.2f} to {x[near].max():.2f}" if near.any() else "nowhere"
        closest = y[np.abs(y - value).argmin()]
        measured = f"within {CLOSE:.0%} {span} ({near.sum()} of {len(y)} instances), {closest:.3f} at the closest"
        found.append(Claim(f"D* sticks at {value:g}: {words}", f"{value:g}", measured, bool(near.any())))
    slope = np.abs(np.diff(np.log(y)) / np.diff(np.log(x)))
    middle = (y[:-1] < 0.8) & (y[1:] > 0.3)
    if middle.any():
        at = int(np.flatnonzero(middle)[slope[middle].argmin()])
        level = float(np.sqrt(y[at] * y[at + 1]))
        words = f"D* = {level:.3f} at 1 / (1 - S) = {x[at]:.2f} to {x[at + 1]:.2f}, slope {slope[at]:.2f}"
        within = abs(level / 0.5 - 1) <= CLOSE
        found.append(Claim("flattest stretch between 0.8 and 0.3", "1/2", words, within))
    return found


def picture(table: pd.DataFrame) -> bytes:
    """D* against 1 / (1 - S)."""
    figure, panels = chart("Dimensions per learned feature", [["D* = m / |W|^2"]], width=7.5, height=4.5)
    panel = panels["D* = m / |W|^2"]
    panel.plot(table["inverse_density"], table["dimensions_per_feature"], "o-", color=COLOURS[0], markersize=4)
    panel.set_xscale("log")
    panel.set_ylim(0, 1.1)
    rule(panel, 1.0, "1, dedicated")
    rule(panel, 0.5, "1/2, pairs")
    label(panel, "1 / (1 - S)", "D*")
    return png(figure)


if __name__ == "__main__":
    typer.run(main)
