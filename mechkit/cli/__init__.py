"""The command line: `mechkit trace "35+59="`, `mechkit patch --clean ... --corrupt ... --sites ...`,
`mechkit features scan ...`, `mechkit superposition measure`.

Each command prints what it found, says which files it wrote, and draws a bar for work of over a second. What the
user can mend is one line on stderr and exit status 2. Heavy imports wait until a command needs them.
"""

import sys
from typing import Annotated

import typer

from mechkit.cli import feature_tests, superposition
from mechkit.cli.graph_files import graph
from mechkit.cli.many import trace_many
from mechkit.cli.patching import patch
from mechkit.cli.tracing import trace

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a prompt to a mechanism that has been tested.",
)
app.command()(trace)
app.command()(trace_many)
app.command()(graph)
app.command()(patch)
app.add_typer(feature_tests.commands, name="features")
app.add_typer(superposition.commands, name="superposition")


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


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"cannot use '{error.filename}': {error.strerror}"
    return " ".join(str(text).split())
