"""`mechkit graph`: the page of a saved graph, ours or another tool's."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from mechkit.cli.terminal import require_writable


def graph(
    file: Annotated[Path, typer.Argument(help="A graph's JSON: of mechkit trace, circuit-tracer or Neuronpedia.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, named after the file.")] = Path(),
    png: Annotated[bool, typer.Option("--png", help="Write a picture of the graph as well.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make the page of a saved graph: search it, pin, group and name its nodes, and save it again. Works offline."""
    page, picture = out / f"{file.stem}.html", out / f"{file.stem}.png"
    require_writable([page, *([picture] if png else [])])
    from mechkit.graphs.graph import AttributionGraph
    from mechkit.report.console import print_written, terminal

    saved = AttributionGraph.load(file)
    written = [saved.to_html(page), *([saved.to_png(picture)] if png else [])]
    if json:
        about = {"prompt": saved.meta["prompt"], "model": saved.meta["model"], "scores": saved.scores}
        counts = {"nodes": len(saved.nodes), "edges": len(saved.edges), "supernodes": len(saved.supernodes)}
        typer.echo(json_module.dumps({**about, **counts, "wrote": [str(path) for path in written]}, allow_nan=False))
    else:
        console = terminal()
        console.print(repr(saved), markup=False, highlight=False)
        print_written(written, console)
