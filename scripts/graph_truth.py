"""Do attribution graphs predict the model? Traces prompts of a model and prints the agreement.

    python scripts/graph_truth.py --prompts 200
    python scripts/graph_truth.py --model path/to/stories --text "Once upon a time" --text "Lily saw a big"

Rows must sum to their pre-activations, features suppressed with all else frozen must move every target as the
matrix says, and predictions are compared with what the model does when attention and norms, or nothing, is frozen;
in a small step as well, and with other parts held, which says what the graphs leave out.
"""

import json
import random
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track

import mechkit as mk
from mechkit.dictionaries import neurons
from mechkit.graphs.truth.check import Check
from mechkit.zoo.addition import unseen_sums

TEXTS = ("Once upon a time", "Lily and Tom went to the", "The little dog was very", "He wanted to play with his")
"""What models of stories are asked, unless told."""


def main(
    prompts: Annotated[int, typer.Option(min=1, help="Unseen sums to trace, for the addition model.")] = 50,
    seed: Annotated[int, typer.Option(help="Which sums are drawn.")] = 0,
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    text: Annotated[list[str] | None, typer.Option(help="A prompt, for models that do not add; repeat it.")] = None,
    on_neurons: Annotated[bool, typer.Option("--neurons", help="Trace on the model's own neurons.")] = False,
    closer: Annotated[bool, typer.Option("--levels", help="Also small steps and other parts held.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Trace prompts and print how well their graphs predict interventions."""
    loaded = mk.load(model)
    asked, answers = prompts_of(model, prompts, seed, text)
    bases = neurons(loaded) if on_neurons else None
    console = Console(stderr=True)
    graphs = [mk.trace(loaded, one, bases) for one in track(asked, "tracing", console=console, transient=True)]
    pooled = Check.pooled([graph.check for graph in graphs])
    found = {
        "prompts": len(asked),
        "right": sum(graph.logits[0].name == answer for graph, answer in zip(graphs, answers, strict=True)),
        "features": len(pooled.nodes),
        "row_error": max(row_error(graph) for graph in graphs),
        "exact_error": pooled.exact_error,
        "replacement": mean_score(graphs, "replacement"),
        "completeness": mean_score(graphs, "completeness"),
        "levels": pooled.summary().to_dict("records"),
    }
    if closer:
        tables = pd.DataFrame(pd.concat([graph.levels() for graph in graphs]).groupby("held", sort=False).mean())
        small = Check.pooled([graph.verify(multiple=0.99) for graph in graphs])
        found |= {"held": tables.reset_index().to_dict("records"), "small": small.summary().to_dict("records")}
    typer.echo(json.dumps(found) if as_json else report(found))


def prompts_of(model: str, n: int, seed: int, text: list[str] | None) -> tuple[list[str], list[str | None]]:
    """What the model is asked, and the right answers where they are known."""
    if model != "addition" or text:
        asked = list(text or TEXTS)
        return asked, [None] * len(asked)
    drawn = random.Random(seed).sample(unseen_sums(), n)
    return [f"{a}+{b}=" for a, b in drawn], [str(a + b) for a, b in drawn]


def mean_score(graphs: list, name: str) -> float | None:
    """A score's mean; None on a model's own neurons, which have none."""
    values = [graph.scores[name] for graph in graphs]
    return None if None in values else sum(values) / len(values)


def row_error(graph) -> float:
    """Largest difference between a row's sum and its pre-activation, relative to the sum of sizes in the row."""
    sums, sizes = (graph.rows.per_row(lambda block, f=f: f(block.values).sum(1)) for f in (torch.clone, torch.abs))
    return float(((sums - graph.preactivations).abs() / sizes.clamp_min(1e-30)).max())


def report(found: dict) -> str:
    """The numbers as text."""
    table = lambda rows: pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format)  # noqa: E731
    lines = [
        f"{found['prompts']} prompts, {found['right']} known to be right, {found['features']} kept features suppressed",
        f"rows sum to their pre-activations within {found['row_error']:.0e} of their sizes",
        f"level (i), all frozen: equal within {found['exact_error']:.0e}",
        table(found["levels"]),
    ]
    if found["replacement"] is not None:
        lines.insert(1, f"replacement {found['replacement']:.2f}, completeness {found['completeness']:.2f} (means)")
    if "held" in found:
        lines += ["", "agreement by what is held, mean over prompts", table(found["held"])]
        lines += ["", "each feature down by a hundredth", table(found["small"])]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
