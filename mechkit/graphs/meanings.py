"""What the features of an arithmetic prompt's graph mean, by their operand plots.

The engine knows nothing of this: it fills a graph's `meanings` and `plots` from outside.
"""

import random
from collections.abc import Sequence

from mechkit.graphs.classes import classify
from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.operands import OperandGrid, operand_plots
from mechkit.graphs.suppression import feature_meanings, suppress_classes

PATHWAYS = {
    "ones-digit features": ("ones-digit lookup", "modular"),
    "magnitude features": ("magnitude",),
}
"""The two pathways of addition, as classes of features."""


def add_operand_meanings(graph: AttributionGraph, text: str) -> bool:
    """Give every feature of the graph its operand plot and class; False where `text` is no two-operand prompt.

    Cost: 10,000 short prompts through the model.
    """
    engine = graph.attribution
    grid = OperandGrid.of(engine.frozen.model, text)
    if grid is None or not engine.features:
        return False
    plots = operand_plots(engine.frozen.model, engine.bases, engine.features, grid)
    graph.plots = {node.id: plot for node, plot in zip(engine.features, plots, strict=True)}
    graph.meanings = {node.id: meaning for node, meaning in zip(engine.features, classify(plots), strict=True)}
    return True


def suppress_pathways(
    graph: AttributionGraph, text: str, sums: Sequence[tuple[int, int]], n: int = 200, *, seed: int = 0
) -> None:
    """Suppress each of the two pathways on `n` of `sums`, drawn with `seed`, and keep the counts as findings.

    Cost: 10,000 short prompts through the model and a batched pass per pathway and control.
    Raises ValueError where `text` is no two-operand prompt.
    """
    engine = graph.attribution
    grid = OperandGrid.of(engine.frozen.model, text)
    if grid is None:
        raise ValueError(f"{text!r} has not two operands; pathways of addition need a prompt such as '35+59='")
    meanings = feature_meanings(engine.frozen.model, engine.bases, grid)
    drawn = random.Random(seed).sample(list(sums), min(n, len(sums)))
    graph.findings = suppress_classes(engine.frozen.model, engine.bases, meanings, drawn, PATHWAYS, seed=seed)
