"""What the features of an arithmetic prompt's graph mean, by their operand plots.

The engine knows nothing of this: it fills a graph's `meanings` and `plots` from outside.
"""

import random
from collections.abc import Sequence

from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.meaning.classes import PERIODS, classify
from mechkit.graphs.meaning.operands import Inputs, OperandGrid, operand_inputs, operand_plots
from mechkit.graphs.truth.suppression import feature_meanings, suppress_classes

_PERIODIC = tuple(f"both mod {period}" for period in PERIODS)
_TENS = ("tens of both", "tens of the sum", "tens of a", "tens of b")
_ONES = (
    *("last digits of both", "both mod 5", "parity of both", "last digit of a", "last digit of b"),
    *(f"sum mod {modulus}" for modulus in (2, 5, 10)),
)

PATHWAYS = {
    "ones-digit features": lambda meaning: meaning.group != "other" and meaning.of in _ONES,
    "magnitude features": lambda meaning: meaning.group == "magnitude",
    "all features of the tens": lambda meaning: meaning.group != "other" and meaning.of in (*_TENS, *_PERIODIC),
}
"""Features that know only the last digits; that know a size; that know the tens, as a size or as what comes back."""


def add_operand_meanings(graph: AttributionGraph, text: str) -> Inputs | None:
    """Give every feature of the graph its operand plot and class; None where `text` is no two-operand prompt.

    Returns what the dictionaries read over the operands, for `suppress_pathways`.
    Cost: 10,000 short prompts through the model.
    """
    engine = graph.attribution
    grid = OperandGrid.of(engine.frozen.model, text)
    if grid is None or not engine.features:
        return None
    inputs = operand_inputs(engine.frozen.model, engine.bases, grid)
    plots = operand_plots(inputs, engine.bases, engine.features)
    graph.plots = {node.id: plot for node, plot in zip(engine.features, plots, strict=True)}
    graph.meanings = {node.id: meaning for node, meaning in zip(engine.features, classify(plots), strict=True)}
    return inputs


def suppress_pathways(
    graph: AttributionGraph, inputs: Inputs, sums: Sequence[tuple[int, int]], n: int = 200, *, seed: int = 0
) -> None:
    """Suppress each of the two pathways on `n` of `sums`, drawn with `seed`, and keep the counts as findings.

    `inputs` is what `add_operand_meanings` returned. Cost: a batched pass per pathway and control.
    """
    engine = graph.attribution
    meanings = feature_meanings(engine.bases, inputs)
    drawn = random.Random(seed).sample(list(sums), min(n, len(sums)))
    graph.findings = suppress_classes(engine.frozen.model, engine.bases, meanings, drawn, PATHWAYS, seed=seed)
