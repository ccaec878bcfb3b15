"""Basic superposition: which features a toy stores, and on which directions, as features get sparser.

    python scripts/superposition_basic.py --size small           # n = 20, m = 5, I = 0.7^i
    python scripts/superposition_basic.py --size large           # n = 80, m = 20, I = 0.9^i

Elhage et al. 2022, section 2. One ReLU-output toy and one linear toy for each 1 - S, 10,000 steps of 1,024 samples.
Draws W^T W with b, and the norms of the features coloured by how much of each feature's direction others share.
"""

import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition import dimensions_per_feature, feature_interference, feature_norms
from mechkit.superposition.toy import Trained, instances, train
from mechkit.viz.chart import chart, label, png

SIZES = {"small": (20, 5, 0.7), "large": (80, 20, 0.9)}
"""Features, hidden dimensions and the ratio of consecutive importances."""
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""1 - S of each instance."""
LEARNED = 0.5
"""A feature is learned from this norm upwards."""


def main(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "small",
    steps: Annotated[int, typer.Option(min=1, help="Steps of 1,024 samples.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Where training starts and what it sees.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train, draw and compare."""
    if size not in SIZES:
        raise typer.BadParameter(f"--size is one of {', '.join(SIZES)}, not '{size}'")
    with bars(sys.stderr):
        relu, linear = (trained(size, kind, steps, seed, device) for kind in ("relu", "linear"))
    table = pd.concat([rows(relu, "relu"), rows(linear, "linear")])
    n, m, ratio = SIZES[size]
    settings = f"n = {n}, m = {m}, I = {ratio}^i, {steps} steps of 1,024 samples, seed {seed}"
    report_figure(claims(table, n, m), table, picture(relu, linear), out / f"superposition_basic_{size}", settings)


def trained(size: str, kind: str, steps: int, seed: int, device: str | None) -> Trained:
    """One toy for each density."""
    n, m, ratio = SIZES[size]
    density, importance = torch.tensor(DENSITIES)[:, None], ratio ** torch.arange(float(n))
    toys = instances(n, m, kind=kind, probability=density, importance=importance, seed=seed)
    return train(toys, n_steps=steps, device=device, label=f"{kind} toys")


def rows(found: Trained, kind: str) -> pd.DataFrame:
    """A row per instance and feature."""
    norm, shared = feature_norms(found.features).cpu(), feature_interference(found.features).cpu()
    n = found.toys.n_features
    return pd.DataFrame(
        {
            "kind": kind,
            "density": [density for density in DENSITIES for _ in range(n)],
            "feature": torch.arange(n).repeat(len(norm)).numpy(),
            "norm": norm.flatten().numpy(),
            "shared": shared.flatten().numpy(),
            "dimensions_per_feature": dimensions_per_feature(found.features).repeat_interleave(n).cpu().numpy(),
        }
    )


def claims(table: pd.DataFrame, n: int, m: int) -> list[Claim]:
    """Which features are learned, and whether they share directions."""
    learned = {key: rows["feature"] for key, rows in table[table["norm"] > LEARNED].groupby(["kind", "density"])}
    counts = {kind: [len(learned.get((kind, p), ())) for p in DENSITIES] for kind in ("relu", "linear")}
    last = [max(learned.get(("linear", p), [-1])) for p in DENSITIES]
    dense = table[(table["kind"] == "relu") & (table["density"] == 1) & (table["norm"] > LEARNED)]
    sparse = table[(table["kind"] == "relu") & (table["density"] == DENSITIES[-1]) & (table["norm"] > LEARNED)]
    top = sorted(dense["feature"]) == list(range(len(dense)))
    alone = bool(abs(len(dense) - m) <= 1 and dense["shared"].max() < 0.3)
    growing = counts["relu"] == sorted(counts["relu"]) and counts["relu"][-1] > 1.5 * m
    return [
        Claim(
            "linear toys, features learned from dense to sparse", f"the {m} most important at every sparsity",
            f"{', '.join(map(str, counts['linear']))}; the last learned is number {max(last) + 1} at most",
            set(counts["linear"]) == {m} and max(last) < m,
        ),
        Claim(
            "ReLU toys, dense", f"the {m} most important, each on a direction of its own",
            f"{len(dense)} learned, {'the' if top else 'not the'} most important; largest interference "
            f"{dense['shared'].max():.2f}", alone,
        ),
        Claim(
            "ReLU toys, features learned from dense to sparse", f"more and more, from {m} towards all {n}",
            ", ".join(map(str, counts["relu"])), growing,
        ),
        Claim(
            f"ReLU toys at 1 - S = {DENSITIES[-1]}", "all learned features in superposition",
            f"{(sparse['shared'] > 0.3).mean():.0%} share their direction (interference over 0.3)",
            bool((sparse["shared"] > 0.3).mean() > 0.9),
        ),
    ]  # fmt: skip


def picture(relu: Trained, linear: Trained) -> bytes:
    """W^T W with b in a last column, and norms below: the dense linear toy, then every ReLU toy."""
    shown = [("linear", linear, 0), *(("ReLU", relu, at) for at in range(len(relu.toys)))]
    names = [f"{kind}, 1 - S = {DENSITIES[at]:g}" for kind, _, at in shown]
    below = [f"norms {at}" for at in range(len(shown))]
    figure, panels = chart(
        "W^T W and b (right column); norm of each feature", [names, below], width=2.2 * len(shown), height=4.6
    )
    for name, under, (_, found, at) in zip(names, below, shown, strict=True):
        W, b = found.W[at].cpu(), found.b[at].cpu()
        image = torch.cat([W.T @ W, torch.full_like(b, torch.nan)[:, None], b[:, None]], 1).numpy()
        panels[name].imshow(image, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        panels[name].set_xticks([])
        panels[name].set_yticks([])
        shared = feature_interference(found.features[at]).cpu().clamp(max=1).numpy()
        panels[under].barh(
            range(len(b)), feature_norms(found.features[at]).cpu().numpy(), color=shades(shared), height=1.0
        )
        panels[under].set_xlim(0, 1.3)
        panels[under].invert_yaxis()
        panels[under].set_title("", loc="left")
        label(panels[under], "norm", "feature" if under == below[0] else "")
    return png(figure)


def shades(shared) -> list[tuple[float, float, float]]:
    """Blue for a direction of one's own, red for one that is fully shared."""
    blue, red = (0.13, 0.35, 0.55), (0.66, 0.25, 0.17)
    return [tuple((1 - s) * b + s * r for b, r in zip(blue, red, strict=True)) for s in shared.tolist()]


if __name__ == "__main__":
    typer.run(main)
