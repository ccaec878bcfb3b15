"""`mechkit superposition`: how features share dimensions. `measure` is for a model's weights, `toy` trains toys."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mechkit.cli.superposition_toy import toy
from mechkit.cli.terminal import bars, loaded, require_writable

FILES = ("superposition.parquet", "superposition.png")

commands = typer.Typer(no_args_is_help=True, help="How features share dimensions: in toy models, in real weights.")
commands.command()(toy)


@commands.command()
def measure(
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    sae: Annotated[
        list[Path] | None, typer.Option(help="Folder of a SAELens dictionary, or of several; again.")
    ] = None,
    draws: Annotated[int, typer.Option(min=40, help="Draws of each null; p is at least 2 / (draws + 1).")] = 99,
    sample: Annotated[int, typer.Option(min=2, help="Features compared with the nulls, at random.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the nulls and of the sample.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help=f"Folder for {' and '.join(FILES)}.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")] = False,
) -> None:
    """Measure how the features of a model's weights, and of dictionaries, share its dimensions, beside chance."""
    table, image = (out / name for name in FILES)
    require_writable([table, image])
    with bars(sys.stderr):
        found = _measured(model, sae or [], device, {"draws": draws, "sample": sample, "seed": seed})
    from mechkit.report.superposition import model_png, print_superposition, superposition_summary

    image.write_bytes(model_png(found))
    written = [found.save(table), image]
    if json:
        summary = {**superposition_summary(found), "wrote": [str(path) for path in written]}
        typer.echo(json_module.dumps(summary, allow_nan=False))
    else:
        print_superposition(found, written)


def _measured(name: str, saes: list[Path], device: str | None, options: dict[str, Any]) -> Any:
    from mechkit.dictionaries.decoders import decoders_at
    from mechkit.superposition.model import measure_model

    model = loaded(name, device)
    dictionaries = [decoder for path in saes for decoder in decoders_at(path, model)]
    return measure_model(model, dictionaries, **options)
