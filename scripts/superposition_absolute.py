"""Computation in superposition: neurons that take absolute values (Elhage et al. 2022, section 9).

    python scripts/superposition_absolute.py                    # n = 100, m = 40, I = 0.8^i
    python scripts/superposition_absolute.py --quick            # 3,000 steps

y' = ReLU(W_out ReLU(W x) + b) is to be |x|. Dense toys spend two neurons on each of the most important features, one
for each sign; sparse toys give neurons several features each. Draws which features each neuron writes.

Weights start at a tenth of Xavier's. From these in full, sparse toys compute most features for one sign alone (both
signs of 7, 1 and 2 features at 1 - S of 0.1, 0.03 and 0.01): the output of the other sign is off before it is learned.
"""

import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from mechkit.cli.terminal import bars
from mechkit.report.claims import Claim, report_figure
from mechkit.superposition import features_per_neuron
from mechkit.superposition.toy import Toys, Trained, Weights, instances, train
from mechkit.viz.chart import COLOURS, chart, label, png

N, M, RATIO = 100, 40, 0.8
"""Features, neurons, ratio of consecutive importances."""
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""1 - S of each instance."""
START = 0.1
"""Size of the first weights, in Xavier's."""
QUICK = 3000
"""Steps of a quick run."""
LEARNED = 0.5
"""A feature is computed where its output rises by this much per unit of input, of either sign."""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="3,000 steps instead of 10,000.")] = False,
    seed: Annotated[int, typer.Option(help="Where training starts and what it sees.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Train, draw and compare."""
    steps = QUICK if quick else 10_000
    toys = instances(
        N, M, kind="absolute", probability=torch.tensor(DENSITIES)[:, None], importance=RATIO ** torch.arange(float(N)),
        seed=seed,
    )  # fmt: skip
    with bars(sys.stderr):
        trained = train(toys, n_steps=steps, start=small(toys), device=device, label="absolute values")
    out.mkdir(parents=True, exist_ok=True)
    kept = trained.save(out / "superposition_absolute.safetensors")
    table = measured(trained)
    settings = f"n = {N}, m = {M}, I = {RATIO}^i, {steps} steps of 1,024 samples, seed {seed}; weights kept as {kept}"
    report_figure(claims(table), table, picture(table, trained), out / "superposition_absolute", settings)


def small(toys: Toys) -> Weights:
    """Weights to start from."""
    weights = Weights.initial(toys)
    weights.W.mul_(START)
    weights.output.mul_(START)
    return weights


def effect(trained: Trained) -> torch.Tensor:
    """What each neuron does for each feature, [instance, feature, neuron]: sizes of input times output weight."""
    return (trained.W.mT * trained.weights.output).abs().cpu()


def measured(trained: Trained) -> pd.DataFrame:
    """A row per density: features that are computed, neurons in use and how many of them carry a single feature."""
    rebuilt = effect(trained)
    carried = features_per_neuron(rebuilt)
    used = rebuilt.amax(1) > 0.1
    size = trained.W.mT * trained.weights.output
    gains = torch.stack([(sign * size).where(trained.W.mT.sign() == sign, 0.0).sum(2) for sign in (1, -1)]).amin(0)
    rows = []
    for at, density in enumerate(DENSITIES):
        mine = carried[at][used[at]]
        rows.append(
            {
                "density": density,
                "loss": float(trained.loss[at]),
                "features_computed": int((gains[at] > LEARNED).sum()),
                "neurons_used": int(used[at].sum()),
                "monosemantic": float((mine < 1.5).float().mean()),
                "features_per_neuron": float(mine.mean()),
                **asymmetry(trained, at),
            }
        )
    return pd.DataFrame(rows)


def asymmetry(trained: Trained, at: int) -> dict[str, float]:
    """Of neurons with two features or more: how the second's weights compare with the first's, reading and writing."""
    read, write = trained.W[at].cpu(), trained.weights.output[at].cpu()
    order = (read.T * write).abs().argsort(0, descending=True)[:2]
    ratios = [
        (float((read[k, j] / read[k, i]).abs()), float((write[j, k] / write[i, k]).abs()))
        for k, (i, j) in enumerate(order.T.tolist())
        if (read[k, j] * write[j, k]).abs() > 0.2 * (read[k, i] * write[i, k]).abs() > 0.05
    ]
    unequal = [1 for r, w in ratios if max(r, w) > 2 * min(r, w)]
    return {"shared_neurons": len(ratios), "asymmetric_neurons": len(unequal)}


def claims(table: pd.DataFrame) -> list[Claim]:
    """Neurons for single features when dense, for several when sparse."""
    dense, sparse = table.iloc[0], table.iloc[-1]
    used = int(dense["neurons_used"])
    most = table.loc[table["asymmetric_neurons"].idxmax()]
    unequal = f"{int(most['asymmetric_neurons'])} of {int(most['shared_neurons'])} neurons of two features or more, "
    unequal += f"twofold or more, at 1 - S = {most['density']:g}"
    grows = table["features_computed"].max() > M // 2
    return [
        Claim(
            "dense: neurons of one feature", "all", f"{dense['monosemantic']:.0%} of {used} in use",
            bool(dense["monosemantic"] > 0.9),
        ),
        Claim(
            "dense: features computed, two neurons each", f"{M // 2}, the most important",
            f"{int(dense['features_computed'])}", bool(abs(dense["features_computed"] - M / 2) <= 2),
        ),
        Claim(
            "sparse: features computed", f"more than {M // 2}, in superposition",
            ", ".join(str(int(count)) for count in table["features_computed"]) + " from dense to sparse", bool(grows),
        ),
        Claim(
            f"1 - S = {sparse['density']:g}: neurons of one feature", "none",
            f"{sparse['monosemantic']:.0%}; {sparse['features_per_neuron']:.1f} features a neuron",
            bool(sparse["monosemantic"] < 0.1),
        ),
        Claim(
            "asymmetric superposition: a neuron reads one feature strongly and writes it weakly, another the other way",
            "weights 2 and -1/2", unequal, bool(most["asymmetric_neurons"] > 0),
        ),
    ]  # fmt: skip


def picture(table: pd.DataFrame, trained: Trained) -> bytes:
    """For each density, what every neuron writes, stacked by feature; counts below."""
    names = [f"1 - S = {density:g}" for density in DENSITIES]
    rows = [names, ["features computed"] * 4 + ["features per neuron"] * 3]
    figure, panels = chart("What each neuron does, a bar a neuron, a shade a feature", rows, width=16, height=6.5)
    done = effect(trained)
    for at, name in enumerate(names):
        order = done[at].argmax(0).argsort(stable=True)
        bottom = torch.zeros(M)
        for feature in range(N):
            height = done[at][feature, order]
            if float(height.max()) > 0.02:
                shade = 0.15 + 0.75 * ((feature * 7) % 20) / 20
                panels[name].bar(
                    range(M), height.numpy(), bottom=bottom.numpy(), width=1.0, color=(shade, 0.35, 1 - shade)
                )
            bottom += height
        panels[name].set_xticks([])
    for name, column in (("features computed", "features_computed"), ("features per neuron", "features_per_neuron")):
        panels[name].plot(1 / table["density"], table[column], "o-", color=COLOURS[0])
        panels[name].set_xscale("log")
        label(panels[name], "1 / (1 - S)", name)
    return png(figure)


if __name__ == "__main__":
    typer.run(main)
