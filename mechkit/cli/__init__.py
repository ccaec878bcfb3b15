"""The command line: `mechkit trace "35+59="`.

Each command prints what it found, says which files it wrote, and draws a bar for work of over a second. What the
user can mend is one line on stderr and exit status 2. Heavy imports wait until a command needs them.
"""

import gc
import json as json_module
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a prompt to a mechanism that has been tested.",
)

PATIENCE = 1.0
"""Seconds of work before a bar is drawn."""


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit status; errors the user can mend become one line on stderr."""
    try:
        app(args=arguments, standalone_mode=False)
    except (ValueError, OSError) as error:
        print(f"mechkit: {_one_line(error)}", file=sys.stderr)
        return 2
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("mechkit: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # usage errors of the parser
            print(f"mechkit: {error.format_message()}", file=sys.stderr)  # type: ignore[attr-defined]
            return 2
        raise
    return 0


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from mechkit import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def trace(
    prompt: Annotated[str, typer.Argument(help='What the model is asked, such as "35+59=".')],
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    transcoders: Annotated[str | None, typer.Option(help="Folder of transcoders; a bundled model has its own.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for trace.json and trace.html.")] = Path(),
    sums: Annotated[int, typer.Option(min=0, help="Unseen sums on which to suppress whole pathways.")] = 200,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
) -> None:
    """Show how a model answers a prompt: which features and heads, along which pathways, and whether that is true."""
    require_writable([out / "trace.json", out / "trace.html"])
    if not prompt.strip():
        raise ValueError('the prompt is empty; write one such as "35+59="')
    with bars(sys.stderr):
        graph = _traced(prompt, model, transcoders, device, sums)
    written = [graph.save(out / "trace.json"), graph.to_html(out / "trace.html")]
    from mechkit.report import print_trace, trace_summary

    if json:
        typer.echo(
            json_module.dumps({**trace_summary(graph), "wrote": [str(path) for path in written]}, allow_nan=False)
        )
    else:
        print_trace(graph, written)


def _traced(prompt: str, name: str, transcoders: str | None, device: str | None, sums: int) -> Any:
    """The graph of `prompt` with meanings, findings and supernode checks."""
    import mechkit as mk
    from mechkit.graphs.meanings import add_operand_meanings, suppress_pathways
    from mechkit.graphs.supernodes import check_supernodes

    model = mk.load(name, device=device)
    gc.freeze()  # all that was imported stays; from here on only what the work makes is collected
    gc.enable()
    bases = None
    if transcoders is not None:
        from mechkit.dictionaries import load_transcoders

        bases = load_transcoders(transcoders, model)
    graph = mk.trace(model, prompt, bases)
    inputs = add_operand_meanings(graph, prompt)
    if inputs is not None and sums and name == "addition" and re.fullmatch(r"\d+\+\d+=", prompt):
        from mechkit.zoo.addition import unseen_sums

        suppress_pathways(graph, inputs, unseen_sums(), sums)
    graph.supernode_checks = check_supernodes(graph)
    return graph


def require_writable(paths: Iterable[Path]) -> None:
    """Raise OSError, before any work is done, where one of `paths` cannot be written."""
    for path in paths:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'; create it first")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise PermissionError(f"cannot write '{path}'; name a folder you may write to with --out")


@contextmanager
def bars(stream) -> Iterator[None]:
    """Draw the progress of loops inside the block on `stream` once they have taken a second, if it is a terminal."""
    if not stream.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress

    from mechkit.core.progress import showing

    started = time.monotonic()
    with Progress(console=Console(file=stream), transient=True, auto_refresh=False) as drawing:

        def bar(items: Iterable, label: str, total: int | None) -> Iterable:
            task = drawing.add_task(label, total=total)
            try:
                for item in items:
                    yield item
                    drawing.advance(task)
                    if time.monotonic() - started > PATIENCE:
                        drawing.refresh()
            finally:
                drawing.remove_task(task)

        with showing(bar):
            yield


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"cannot use '{error.filename}': {error.strerror}"
    return " ".join(str(text).split())
