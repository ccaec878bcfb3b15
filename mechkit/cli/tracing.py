"""`mechkit trace`: how a model answers a prompt."""

import json as json_module
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mechkit.cli.terminal import bars, loaded, require_writable


def trace(
    prompt: Annotated[str, typer.Argument(help='What the model is asked, such as "35+59=".')],
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    transcoders: Annotated[str | None, typer.Option(help="Folder of transcoders; a bundled model has its own.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder of `mechkit features scan`: examples, labels.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for trace.json and trace.html.")] = Path(),
    png: Annotated[bool, typer.Option("--png", help="Write trace.png as well, a picture of the graph.")] = False,
    sums: Annotated[int, typer.Option(min=0, help="Unseen sums on which to suppress whole pathways.")] = 200,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
) -> None:
    """Show how a model answers a prompt: which features and heads, along which pathways, and whether that is true."""
    require_writable([out / "trace.json", out / "trace.html", *([out / "trace.png"] if png else [])])
    if not prompt.strip():
        raise ValueError('the prompt is empty; write one such as "35+59="')
    with bars(sys.stderr):
        graph = _traced(prompt, model, transcoders, index, device, sums)
    written = [graph.save(out / "trace.json"), graph.to_html(out / "trace.html")]
    written += [graph.to_png(out / "trace.png")] if png else []
    from mechkit.report.trace import print_trace, trace_summary

    if json:
        typer.echo(
            json_module.dumps({**trace_summary(graph), "wrote": [str(path) for path in written]}, allow_nan=False)
        )
    else:
        print_trace(graph, written)


def _traced(prompt: str, name: str, transcoders: str | None, index: Path | None, device: str | None, sums: int) -> Any:
    """The graph of `prompt` with meanings, findings and supernode checks."""
    import mechkit as mk
    from mechkit.graphs.meaning.meanings import add_operand_meanings, suppress_pathways
    from mechkit.graphs.meaning.supernodes import check_supernodes

    model = loaded(name, device)
    bases = None
    if transcoders is not None:
        from mechkit.dictionaries import load_transcoders

        bases = load_transcoders(transcoders, model)
    graph = mk.trace(model, prompt, bases, index=None if index is None else mk.FeatureIndex.open(index, model=model))
    inputs = add_operand_meanings(graph, prompt)
    if inputs is not None and sums and name == "addition" and re.fullmatch(r"\d+\+\d+=", prompt):
        from mechkit.zoo.addition import unseen_sums

        suppress_pathways(graph, inputs, unseen_sums(), sums)
    graph.supernode_checks = check_supernodes(graph)
    return graph
