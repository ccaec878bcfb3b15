"""Why a graph and the model differ: agreement of the two as more and more of the model is held.

A graph holds attention patterns, norms' scales and what dictionaries miss, and takes everything else to first order.
Each kept feature is suppressed with some of these held: where agreement jumps is what the graph leaves out.
"""

import pandas as pd
import torch

from mechkit.graphs.truth.changes import Change
from mechkit.graphs.truth.check import same_sign, spearman
from mechkit.graphs.truth.effects import Effects
from mechkit.graphs.truth.exact import shift
from mechkit.graphs.truth.held import HeldRuns, Hold
from mechkit.graphs.truth.root_values import RootReader

HOLDS = {
    "nothing": Hold(),
    "attention": Hold(attention=True),
    "norms": Hold(norms=True),
    "attention and norms": Hold(attention=True, norms=True),
    "attention, norms and errors": Hold(attention=True, norms=True, errors=True),
}
"""What is held, by name; with errors held, dictionaries stand in for the MLPs."""

SMALL = 0.01
"""Share of a feature's activation that a small step takes away."""


@torch.no_grad()
def levels(graph, *, root: int = 0) -> pd.DataFrame:
    """Agreement of the graph with the model, one row per set of what is held: Spearman correlation and share of equal
    signs over the kept features, each suppressed; `small step`: Spearman where each loses a hundredth of itself.

    What holding norms adds over holding nothing is what norms answer and the graph leaves out, and so on; what is left
    with all held is curvature: it goes away in small steps, but for JumpReLU features near their thresholds.
    Unit: none. Cost: two rows of a forward pass for each kept feature and set.
    """
    nodes = [graph.weighted.sources[i] for i in graph.kept_sources]
    groups = [[Change(node, 0.0)] for node in nodes if node.kind == "feature"]
    predicted, reader, rows = Effects(graph, root, groups).along_paths, RootReader.of(graph, root), []
    own_neurons = all(basis.name == "neurons" for basis in graph.attribution.bases)
    for name, hold in HOLDS.items():
        if hold.errors and own_neurons:
            continue  # neurons miss nothing
        moved = []
        for size in (1.0, SMALL):
            runs = [{}, *(shift(graph, [(change.node, size * change.by) for change in group]) for group in groups)]
            values = reader.of_hook(HeldRuns(graph, hold).read(runs, [reader.site.hook]), norms_held=hold.norms)
            moved.append(values[1:] - values[0])
        row = {"held": name, "spearman": spearman(predicted, moved[0]), "same sign": same_sign(predicted, moved[0])}
        rows.append(row | {"small step": spearman(predicted, moved[1])})
    return pd.DataFrame(rows)
