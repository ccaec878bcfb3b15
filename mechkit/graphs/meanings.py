"""What the features of an arithmetic prompt's graph mean, by their operand plots.

The engine knows nothing of this: it fills a graph's `meanings` and `plots` from outside.
"""

from mechkit.graphs.classes import classify
from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.operands import OperandGrid, operand_plots


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
