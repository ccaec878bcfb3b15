"""Memorisation and double descent: few samples are stored as data points, many as features (Henighan et al. 2023).

    python scripts/superposition_memorisation.py                # reduced: n = 1,000, 5,000 steps, minutes on a CPU
    python scripts/superposition_memorisation.py --size paper    # n = 10,000, 50,000 steps, for a GPU
    python scripts/superposition_memorisation.py --size quick    # n = 200, 2,000 steps

ReLU-output toys with m = 2 on T samples of length 1, ten features on in each on average, full batches, AdamW. Draws
features and data points in the hidden plane, test loss against T, and dimensions of features and samples.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition.toy import Memorised, memorise
from mechkit.viz.chart import COLOURS, chart, label, png

SIZES = {
    "paper": (10_000, 0.001, 50_000, 5, (3, 4, 5, 6, 8, 10, 15, 30, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)),
    "reduced": (1000, 0.01, 5000, 3, (3, 5, 8, 15, 30, 60, 125, 250, 500, 1000)),
    "quick": (200, 0.05, 2000, 2, (3, 5, 8, 20, 50, 150, 500)),
}
"""Features, how often each is on, steps, seeds, samples in the data set."""


def main(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "reduced",
    seed: Annotated[int, typer.Option(help="First of the seeds.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train, draw and compare."""
    if size not in SIZES:
        raise typer.BadParameter(f"--size is one of {', '.join(SIZES)}, not '{size}'")
    n, p, steps, seeds, samples = SIZES[size]
    with bars(sys.stderr):
        found = memorise(samples, n_features=n, probability=p, n_steps=steps, n_seeds=seeds, seed=seed, device=device)
    table = found.frame()
    settings = f"n = {n}, m = 2, 1 - S = {p}, {steps} full-batch steps, {seeds} seeds, {size} size (paper: n = 10,000, "
    settings += "1 - S = 0.001, 50,000 steps)"
    report_figure(claims(table), table, picture(found, table), out / "superposition_memorisation", settings)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Data points first, features last, the worst test loss between."""
    few, many = table.iloc[0], table.iloc[-1]
    peak = int(np.argmax(table["test_loss"]))
    worst, inner = table.iloc[peak], 0 < peak < len(table) - 1
    own = np.asarray(table["largest_feature_dimensionality"])
    small = table[table["size"] <= 8]
    used = np.asarray(small["sample_dimensionality"] * small["size"])
    points = ", ".join(f"{value:.2f}" for value in used)
    return [
        Claim(
            "few samples are memorised: their loss", "near 0",
            f"{few['train_loss']:.4f} at T = {int(few['size'])} (test {few['test_loss']:.2f})",
            bool(few["train_loss"] < 0.02 * few["test_loss"]),
        ),
        Claim(
            "they form a T-gon: T times the mean dimensionality of samples", "2, all dimensions used",
            f"{points} at T = {', '.join(map(str, small['size']))}",
            bool((np.abs(used - 2) < 0.2).all()),
        ),
        Claim(
            "largest dimensionality of a feature", "near 0 in between, then that of a polygon (2/5)",
            f"{few['largest_feature_dimensionality']:.3f} at T = {int(few['size'])}, {float(own.min()):.3f} at the "
            f"least, {own[-1]:.3f} at T = {int(many['size'])}", bool(own[-1] > 5 * own.min()),
        ),
        Claim(
            "double descent: test loss is worst", "in between, where neither arrangement fits",
            f"at T = {int(worst['size'])}: {worst['test_loss']:.3f}; {few['test_loss']:.3f} at T = {int(few['size'])}, "
            f"{many['test_loss']:.3f} at T = {int(many['size'])}", inner,
        ),
    ]  # fmt: skip


def picture(found: Memorised, table: pd.DataFrame) -> bytes:
    """Features over data points in the hidden plane for some sizes, then losses and dimensions by size."""
    shown = [found.sizes[at * (len(found.sizes) - 1) // 5] for at in range(6)]
    features, points = ([f"{what}, T = {size}" for size in shown] for what in ("features", "samples"))
    rows = [features, points, ["loss of a sample"] * 3 + ["dimensionality"] * 3]
    figure, panels = chart("What a toy of two hidden dimensions keeps of T samples", rows, width=14, height=8.5)
    for size, top, middle in zip(shown, features, points, strict=True):
        seed, at = found.best(size), found.sizes.index(size)
        for name, arrows, colour in (
            (top, found.weights[at].W[seed].T, COLOURS[0]),
            (middle, found.hidden[at][seed], COLOURS[1]),
        ):
            x, y = arrows.cpu().T.numpy()
            panels[name].plot(x, y, "o", color=colour, markersize=2.5, alpha=0.6)
            panels[name].set_aspect("equal", adjustable="datalim")
    for name in ("train_loss", "test_loss", "mean_test_loss"):
        panels["loss of a sample"].plot(table["size"], table[name], "o-", markersize=3, label=name.replace("_", " "))
    for name in ("sample_dimensionality", "largest_feature_dimensionality"):
        panels["dimensionality"].plot(table["size"], table[name], "o-", markersize=3, label=name.replace("_", " "))
    for name in ("loss of a sample", "dimensionality"):
        panels[name].set_xscale("log")
        panels[name].legend(fontsize=8, frameon=False)
        label(panels[name], "samples in the data set, T", name)
    return png(figure)


if __name__ == "__main__":
    typer.run(main)
