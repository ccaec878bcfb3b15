"""The phase diagram of a feature: not learned, in superposition or dedicated (Elhage et al. 2022, section 3).

    python scripts/superposition_phase.py                        # 2 features in 1 dimension, 60 x 60 cells, 10 seeds
    python scripts/superposition_phase.py --features 3 --cells 20 --seeds 5
    python scripts/superposition_phase.py --sampled 100          # also trains 100 random cells on samples

Trains every model on the exact expected loss, all in one batch, and draws the squared norm of the last feature and its
interference beside the outcome of least loss in closed form. As in the paper the picture is a mean over all seeds of a
cell but the worst; agreement with theory is that of the best seed, since theory is about the least loss.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition.toy import OUTCOMES, PhaseDiagram, expected_loss, phase_diagram, train
from mechkit.superposition.toy.phase import phase_toys, settle
from mechkit.viz.chart import chart, label, png

MARGIN = 1
"""Cells from a boundary of theory that are left out."""
ALLOWED = 300
"""Seconds for 36,000 models."""


def main(
    features: Annotated[int, typer.Option(min=2, help="Features that share one dimension fewer.")] = 2,
    cells: Annotated[int, typer.Option(min=3, help="Cells along each side.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Models in each cell.")] = 10,
    seed: Annotated[int, typer.Option(help="First of the seeds.")] = 0,
    sampled: Annotated[int, typer.Option(min=0, help="Random cells that are also trained on samples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train, draw and compare with theory."""
    started = time.perf_counter(), time.process_time()
    with bars(sys.stderr):
        found = phase_diagram(n_features=features, n_cells=cells, n_seeds=seeds, seed=seed, device=device)
        spent = time.perf_counter() - started[0], time.process_time() - started[1]
        claims = compared(found, *spent)
        if sampled:
            claims.append(against_samples(features, cells, seeds, seed, sampled, device))
    settings = f"n = {features}, m = {features - 1}, {cells} x {cells} cells, {seeds} seeds, exact expected loss"
    report_figure(claims, found.frame(), picture(found), out / f"superposition_phase_{features}", settings)


def compared(found: PhaseDiagram, seconds: float, cpu_seconds: float) -> list[Claim]:
    """Agreement with theory and the time it took."""
    n_models, kinds = found.loss.numel(), found.outcome().unique().tolist()
    inside, whole = found.agreement(MARGIN), float((found.outcome() == found.theory).double().mean())
    most = max(1, found.loss.shape[2] - 1)
    stuck = float((found.loss > 1.05 * found.loss[..., :1]).double().mean())
    away = f"cells over {MARGIN} from a boundary of theory"
    took, allowed = f"{seconds:.0f} s, {cpu_seconds:.0f} s of CPU time", ALLOWED * n_models / 36_000
    usual = f"{found.agreement(MARGIN, most):.1%}; {stuck:.0%} of models end in a worse minimum than their cell's best"
    return [
        Claim("outcomes", ", ".join(OUTCOMES), ", ".join(OUTCOMES[kind] for kind in kinds), len(kinds) == 3),
        Claim(f"agreement with theory, {away}, best seed", "95 %", f"{inside:.1%}, of all {whole:.1%}", inside >= 0.95),
        Claim(f"the same, commonest outcome of the best {most} seeds", "the same phases", usual),
        Claim(
            f"time for {n_models} models", f"under {allowed:.0f} s on two cores", took,
            seconds < allowed if found.n_features == 2 else None,
        ),
    ]  # fmt: skip


def against_samples(
    features: int, cells: int, seeds: int, seed: int, n: int, device: str | None, n_steps: int = 10_000
) -> Claim:
    """Outcomes of the best seed of some random cells, exact and by 10,000 steps of 1,024 samples."""
    drawn = torch.randperm(cells**2, generator=torch.Generator().manual_seed(seed))[:n]
    which = (drawn[:, None] * seeds + torch.arange(seeds)).flatten()
    toys = phase_toys(features, cells, range(seed, seed + seeds))[which]
    exact = settle(toys, 700, device=device)
    weights = train(toys, n_steps=n_steps, device=device, label="on samples").weights
    learned, loss = [], []
    for one in (exact, weights):
        losses = expected_loss(toys.to(one.W.device), one, 40 if features == 2 else 12).view(len(drawn), seeds)
        norm = one.W.square().sum(1).view(len(drawn), seeds, -1)
        best = losses.argmin(1)
        learned.append(norm[torch.arange(len(drawn), device=norm.device), best] > 0.5)
        loss.append(losses.amin(1))
    same = float((learned[0] == learned[1]).all(1).double().mean())
    apart = float(((loss[0] - loss[1]) / loss[1]).abs().max())
    words = f"{same:.0%} of {len(drawn)} random cells; least losses differ by at most {apart:.2%}"
    return Claim(f"same features learned by {n_steps} steps of 1,024 samples", "all", words, same >= 0.95)


def picture(found: PhaseDiagram) -> bytes:
    """Norm and interference, and theory, over importance and probability."""
    most = max(1, found.loss.shape[2] - 1)
    names = ["theory: least closed-form loss", "best seed", f"mean over the best {most} of {most + 1} seeds"]
    figure, panels = chart("What becomes of the last feature", [names], width=13.5, height=4.6)
    theory = found.theory.numpy()
    images = [coloured((theory > 0).astype(float), (theory == 1).astype(float))]
    for best in (1, most):
        norm, shared = (values[..., :best].mean(-1).clamp(0, 1).numpy() for values in (found.norm, found.shared))
        images.append(coloured(norm, shared))
    x, y = found.probability.reciprocal().numpy(), found.importance.numpy()
    for name, image in zip(names, images, strict=True):
        panel = panels[name]
        panel.pcolormesh(x, y, image, shading="nearest")
        panel.set_xscale("log")
        panel.set_yscale("log")
        label(panel, "1 / (1 - S)", "importance of the last feature, the others' is 1")
    for at, (words, colour) in enumerate(zip(OUTCOMES, ("#f7f5f0", "#a8402c", "#215a8c"), strict=True)):
        panels[names[0]].plot([], [], "s", color=colour, markeredgecolor="#b8bec6", label=words, zorder=at)
    panels[names[0]].legend(fontsize=8, loc="lower left", frameon=True)
    return png(figure)


def coloured(norm: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """White where a feature is not learned, blue where it is alone, red where it shares its dimension."""
    white, blue, red = (np.array(colour) / 255 for colour in ((247, 245, 240), (33, 90, 140), (168, 64, 44)))
    hue = (1 - shared[..., None]) * blue + shared[..., None] * red
    return (1 - norm[..., None]) * white + norm[..., None] * hue


if __name__ == "__main__":
    typer.run(main)
