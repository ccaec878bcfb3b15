"""`mechkit trace-many`: what many prompts have in common, and how classes of them differ."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from mechkit.cli.terminal import bars, loaded


def trace_many(
    file: Annotated[Path, typer.Argument(help="One prompt a line; after a tab, its class.")],
    out: Annotated[Path, typer.Option(help="Folder for the graphs; a run that was cut short goes on from there.")],
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    transcoders: Annotated[str | None, typer.Option(help="Folder of transcoders; a bundled model has its own.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:
    """Trace many prompts: which features their graphs share, and where classes of prompts differ."""
    lines = [line.partition("\t") for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"'{file}' holds no prompts; write one a line")
    import mechkit as mk

    machine = loaded(model, device)
    bases = None
    if transcoders is not None:
        from mechkit.dictionaries import load_transcoders

        bases = load_transcoders(transcoders, machine)
    with bars(sys.stderr):
        graphs = mk.trace_many(
            machine, [prompt for prompt, _, _ in lines], bases, by=[label for _, _, label in lines], out=out
        )
    from mechkit.report.many import print_graphs, summary

    if json:
        typer.echo(json_module.dumps({**summary(graphs, top), "wrote": str(out)}))
    else:
        print_graphs(graphs, top, out)
