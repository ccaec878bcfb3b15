"""Do attribution graphs predict the model? Traces unseen sums of the addition model and prints the agreement.

    python scripts/graph_truth.py --prompts 50

Rows must sum to their pre-activations, features suppressed with all else frozen must move every target as the
matrix says, and predictions are compared with what the model does when attention and norms, or nothing, is frozen.
"""

import json
import random
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

import mechkit as mk
from mechkit.graphs.check import Check
from mechkit.zoo.addition import unseen_sums


def main(
    prompts: Annotated[int, typer.Option(min=1, help="Unseen sums to trace.")] = 50,
    seed: Annotated[int, typer.Option(help="Which sums are drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Trace unseen sums and print how well their graphs predict interventions."""
    model = mk.load("addition")
    drawn = random.Random(seed).sample(unseen_sums(), prompts)
    console = Console(stderr=True)
    graphs = [mk.trace(model, f"{a}+{b}=") for a, b in track(drawn, "tracing", console=console, transient=True)]
    pooled = Check.pooled([graph.check for graph in graphs])
    found = {
        "prompts": prompts,
        "right": sum(graph.logits[0].name == str(a + b) for graph, (a, b) in zip(graphs, drawn, strict=True)),
        "features": len(pooled.nodes),
        "row_error": max(row_error(graph) for graph in graphs),
        "exact_error": pooled.exact_error,
        "replacement": sum(graph.scores["replacement"] for graph in graphs) / prompts,
        "completeness": sum(graph.scores["completeness"] for graph in graphs) / prompts,
        "levels": pooled.summary().to_dict("records"),
    }
    typer.echo(json.dumps(found) if as_json else report(found, pooled))


def row_error(graph) -> float:
    """Largest difference between a row's sum and its pre-activation, relative to the sum of sizes in the row."""
    matrix = graph.matrix()
    return float(((matrix.sum(1) - graph.preactivations).abs() / matrix.abs().sum(1)).max())


def report(found: dict, pooled: Check) -> str:
    """The numbers as text."""
    return "\n".join(
        [
            f"{found['prompts']} unseen sums, {found['right']} right, {found['features']} kept features suppressed",
            f"replacement {found['replacement']:.2f}, completeness {found['completeness']:.2f} (means)",
            f"rows sum to their pre-activations within {found['row_error']:.0e} of their sizes",
            f"level (i), all frozen: equal within {found['exact_error']:.0e}",
            pooled.summary().to_string(index=False, float_format="{:.2f}".format),
        ]
    )


if __name__ == "__main__":
    typer.run(main)
