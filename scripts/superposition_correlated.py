"""Correlated features side by side or at right angles, anticorrelated ones opposite (Elhage et al. 2022, section 4).

    python scripts/superposition_correlated.py

m = 2, features in pairs that are on together, or one at a time. For each kind and each 1 - S = 400^-linspace(0.5, 1, 5)
it trains ReLU-output toys from several seeds, 10,000 steps of 1,024 samples, and reports the arrangement of least loss:
a third of the seeds reach it for anticorrelated pairs, so give it more than a few.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition import unit_rows
from mechkit.superposition.toy import Trained, expected_loss, instances, train
from mechkit.viz.chart import COLOURS, chart, png

PAIRS = {
    "two correlated pairs": (4, "correlated", "at right angles (cos 0)", 0.0),
    "two anticorrelated pairs": (4, "anticorrelated", "opposite (cos -1)", -1.0),
    "three correlated pairs": (
        6,
        "correlated",
        "side by side (neighbours, cos over 0.25; short of room they collapse into one)",
        1.0,
    ),
}
"""Features, how they go together, what the paper finds within a pair, and that as a cosine."""


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Models of each setting; the best is shown.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 1,024 samples.")] = 10_000,
    device: Annotated[str | None, typer.Option(help="cpu, cuda.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train, draw and compare."""
    with bars(sys.stderr):
        found = {name: best_of(name, seeds, steps, device) for name in PAIRS}
    table = pd.concat([rows(name, trained) for name, trained in found.items()])
    settings = f"m = 2, I = 1, {steps} steps of 1,024 samples, best of {seeds} seeds"
    report_figure(claims(table), table, picture(found), out / "superposition_correlated", settings)


def best_of(name: str, seeds: int, steps: int, device: str | None) -> Trained:
    """The instance of least loss for each density."""
    n, how, *_ = PAIRS[name]
    density = 400 ** -torch.linspace(0.5, 1, 5)
    pairs = [(i, i + 1) for i in range(0, n, 2)]
    toys = instances(
        n, 2, probability=density.repeat_interleave(seeds)[:, None], seed=list(range(seeds)) * 5, **{how: pairs}
    )
    trained = train(toys, n_steps=steps, device=device, label=name)
    loss = expected_loss(trained.toys, trained.weights, 4).view(5, seeds)
    return trained[loss.argmin(1) + torch.arange(5, device=loss.device) * seeds]


def rows(name: str, trained: Trained) -> pd.DataFrame:
    """A row per density and pair: the cosine within the pair, and the smaller norm."""
    units, norm = unit_rows(trained.features).cpu(), trained.W.norm(dim=1).cpu()
    within = (units[:, ::2] * units[:, 1::2]).sum(2)
    found = [
        (name, float(trained.toys.probability[at, 0]), pair, float(within[at, pair]),
         float(norm[at, 2 * pair : 2 * pair + 2].amin()))
        for at in range(len(within)) for pair in range(within.shape[1])
    ]  # fmt: skip
    columns = ["setting", "density", "pair", "cosine_within", "smaller_norm"]
    return pd.DataFrame(found, columns=columns)


def claims(table: pd.DataFrame) -> list[Claim]:
    """How the features of a pair lie to each other where both are learned."""
    found = []
    for name, (_, _, words, cosine) in PAIRS.items():
        here = table[(table["setting"] == name) & (table["smaller_norm"] > 0.3)]
        within = np.asarray(here["cosine_within"])
        right = np.abs(within - cosine) < (0.75 if cosine == 1 else 0.2)
        measured = f"cosines {', '.join(f'{value:+.2f}' for value in within)}: {int(right.sum())} of {len(here)}"
        found.append(Claim(f"{name}, both features learned", words, measured, bool(len(here) and right.mean() >= 0.9)))
    return found


def picture(found: dict[str, Trained]) -> bytes:
    """The features as arrows, a pair in one colour; a row for each setting."""
    names = [
        [f"{name}, 1 - S = {p:.3g}" for p in trained.toys.probability[:, 0].tolist()] for name, trained in found.items()
    ]
    figure, panels = chart("Directions of features that go together (one colour a pair)", names, width=14, height=8.5)
    for row, trained in zip(names, found.values(), strict=True):
        for at, name in enumerate(row):
            panel = panels[name]
            panel.set_title(name, fontsize=7.5, loc="left")
            panel.set_aspect("equal")
            panel.set_xlim(-1.4, 1.4)
            panel.set_ylim(-1.4, 1.4)
            panel.set_xticks([])
            panel.set_yticks([])
            for feature, (x, y) in enumerate(trained.features[at].tolist()):
                panel.plot([0, x], [0, y], "-o", color=COLOURS[feature // 2], markersize=4, linewidth=1.6)
    return png(figure)


if __name__ == "__main__":
    typer.run(main)
