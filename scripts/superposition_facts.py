"""Facts per neuron: "Michael Jordan plays basketball" in one neuron, and k facts in m neurons.

    python scripts/superposition_facts.py                        # 1 to 8 neurons, up to 512 facts, some minutes
    python scripts/superposition_facts.py --quick

The toy of 3Blue1Brown 2024 and Fact Finding (Nanda et al. 2023): prints the AND table, the false positive of a slack
bias, the non-linear excess of AND, OR and a linear neuron, noise against the dimension of the space; then trains MLPs
on k facts in m neurons and gives the capacity curve, with the number of facts at which half are answered.
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
from mechkit.superposition.toy import Capacity, Lookup, and_table, capacity, excess, false_readings, hand_set
from mechkit.viz.chart import COLOURS, chart, label, png

FULL = ((1, 2, 3, 4, 6, 8), (4, 8, 16, 32, 64, 128, 256, 512), 1500)
QUICK = ((2, 4, 8), (4, 16, 64, 256), 600)
"""Neurons, facts, steps."""
DIMENSIONS = (8, 16, 32, 64, 128, 256)
"""Widths of the space in which names are random directions."""
FACTS = 64
"""Facts of the hand-set MLP in that space."""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer neurons, facts and steps.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="MLPs of each setting.")] = 3,
    activation: Annotated[str, typer.Option(help="relu or gelu.")] = "relu",
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Set by hand, train, draw and compare."""
    neurons, facts, steps = QUICK if quick else FULL
    with bars(sys.stderr):
        found = capacity(neurons, facts, n_seeds=seeds, n_steps=steps, activation=activation, device=device)
    noise = pd.DataFrame([vars(false_readings(FACTS, d)) for d in DIMENSIONS])
    settings = (
        f"{neurons[0]} to {neurons[-1]} neurons, 32 first and 32 last names, 8 attributes, {steps} steps, {seeds} "
    )
    settings += f"seeds, {activation}"
    claims = [*by_hand(), *readings(noise), *trained(found)]
    report_figure(claims, found.frame(), picture(found, noise), out / "superposition_facts", settings)


def by_hand() -> list[Claim]:
    """One neuron for one fact, and what AND, OR and a sum have in excess."""
    michael, jordan, smith, basketball = torch.eye(4)
    neuron = hand_set(michael[None], jordan[None], basketball[None])
    slack = hand_set(michael[None], jordan[None], basketball[None], bias=-0.5)
    both = (michael + jordan)[None]
    either = Lookup(both.repeat(2, 1), torch.tensor([0.0, -1.0]), torch.stack([basketball, -basketball]))
    linear = Lookup(both, torch.tensor([1.0]), basketball[None])
    tables = [and_table(mlp, michael, jordan, basketball) for mlp in (neuron, either, linear)]
    found = [excess(one) for one in tables]
    false = and_table(slack, michael, smith, basketball)["both"]
    row = [round(value, 3) for value in tables[0].values()]
    return [
        Claim("neither name, Michael, Jordan, both", "0, 0, 0, 1", str(row), row == [0, 0, 0, 1]),
        Claim("Michael Smith with a bias of -0.5", "a false positive", f"basketball {false:+.2f}", false == 0.5),
        Claim("non-linear excess of AND, OR, a sum", "1, -1, 0", str(found), found == [1, -1, 0]),
    ]


def readings(noise: pd.DataFrame) -> list[Claim]:
    """How confusion falls with the dimension of the space."""
    fit = noise[noise["d_model"] < 3 * FACTS]
    noises = ", ".join(f"{value:.2f}" for value in fit["noise"])
    words = (
        f"{noises} in {', '.join(map(str, fit['d_model']))} dimensions; {noise['accuracy'].min():.0%} to 100 % right"
    )
    falls = bool((np.diff(fit["noise"]) < 0).all())
    return [Claim(f"noise of {FACTS} facts on random names", "falls as 1 / sqrt(dimensions)", words, falls)]


def trained(found: Capacity) -> list[Claim]:
    """Facts at which half are answered, by neurons; and how non-linear the answers are."""
    held = found.held()
    each = ", ".join(f"{k:.0f} in {m}" for m, k in zip(found.neurons, held.tolist(), strict=True))
    rates = [f"{float(k) / m:.1f}" for m, k in zip(found.neurons, held, strict=True)]
    finite = held[held.isfinite()]
    share, quiet = found.excess.mean(2)[-1], found.silence.mean(2)
    quiet = f"{float(quiet.min()):.0%} to {float(quiet.max()):.0%} of the other pairs rightly met with silence"
    return [
        Claim("facts at which half are answered", "more than neurons (superposition)", f"{each} neurons; {quiet}",
              bool((held > torch.tensor(found.neurons)).all())),
        Claim("facts per neuron", "about the same for all widths", ", ".join(rates), None),
        Claim("more neurons hold more facts", "yes", str([round(k, 1) for k in held.tolist()]),
              bool((finite.diff() > 0).all())),
        Claim("median non-linear excess, as a share of the answer, by facts in the widest MLP",
              "0.23 in Pythia-2.8B, 1 for a hand-set AND",
              ", ".join(f"{value:.2f}" for value in share.tolist())),
    ]  # fmt: skip


def picture(found: Capacity, noise: pd.DataFrame) -> bytes:
    """Capacity curves, facts held by neurons, noise by dimension."""
    names = ["answered facts", "facts at which half are answered", f"noise of {FACTS} hand-set facts"]
    figure, panels = chart("Facts in superposition", [names], width=13, height=4)
    for at, m in enumerate(found.neurons):
        colour = COLOURS[at % len(COLOURS)]
        panels[names[0]].plot(
            found.facts, found.accuracy[at].mean(1), "o-", color=colour, label=f"{m} neurons", markersize=3
        )
    panels[names[0]].axhline(0.5, color="#b8bec6", linewidth=0.8)
    panels[names[0]].legend(fontsize=8, frameon=False)
    held = found.held()
    panels[names[1]].plot(found.neurons, held, "o-", color=COLOURS[0], label="trained")
    panels[names[1]].plot(found.neurons, found.neurons, "--", color=COLOURS[1], label="one fact a neuron")
    panels[names[1]].legend(fontsize=8, frameon=False)
    panels[names[2]].plot(noise["d_model"], noise["noise"], "o-", color=COLOURS[0], label="other attributes, r.m.s.")
    panels[names[2]].plot(noise["d_model"], 1 - noise["accuracy"], "o-", color=COLOURS[1], label="wrong answers, share")
    panels[names[2]].legend(fontsize=8, frameon=False)
    for name, x, y in zip(names, ("facts", "neurons", "dimensions"), ("share", "facts", ""), strict=True):
        panels[name].set_xscale("log", base=2)
        label(panels[name], x, y)
    panels[names[1]].set_yscale("log", base=2)
    return png(figure)


if __name__ == "__main__":
    typer.run(main)
