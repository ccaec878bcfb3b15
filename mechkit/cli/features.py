"""`mechkit features`: an index of what the features of SAEs do on a corpus (`scan`), and questions to it."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mechkit.cli.terminal import bars, loaded

Index = Annotated[Path, typer.Option(help="The folder that scan wrote.")]
Sae = Annotated[str | None, typer.Option(help="One of several SAEs of the index, by name.")]
Id = Annotated[int, typer.Argument(help="Number of a feature.")]
Top = Annotated[int, typer.Option(min=1, help="Rows to print.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[str | None, typer.Option(help="The model that was scanned, where its name alone does not find it.")]
Device = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")]
HERE = Path("features")

commands = typer.Typer(no_args_is_help=True, help="What the features of SAEs do on a corpus.")


@commands.command()
def scan(
    corpus: Annotated[list[Path], typer.Argument(help="Files or folders of .txt, .md, .jsonl, .parquet.")],
    sae: Annotated[
        list[Path] | None, typer.Option(help="Folder of an SAE; again for more. Else the model's own.")
    ] = None,
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    out: Annotated[Path, typer.Option(help="Folder of the index; one that was begun goes on.")] = HERE,
    keep: Annotated[str, typer.Option(help='"examples", or "all" activations as well.')] = "examples",
    column: Annotated[str | None, typer.Option(help="Text column of .jsonl and .parquet.")] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Tokens of a row; the SAE's unless given.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Tokens of a forward pass.")] = 4096,
    device: Device = None,
    json: Json = False,
) -> None:
    """Scan a corpus for all features of one or several SAEs; stopped at any moment, it goes on when called again."""
    from mechkit.features.scanning import scan as scan_corpus

    with bars(sys.stderr):
        found, saes = _loaded(model, device, sae or [])
        options = {"keep": keep, "column": column, "context": context, "batch": batch}
        index = scan_corpus(found, saes, corpus, out, **options)
    from mechkit.report.features import print_scan, scan_summary

    typer.echo(json_module.dumps(scan_summary(index))) if json else print_scan(index)


@commands.command()
def lookup(
    prompt: Annotated[str, typer.Argument(help="Text to look at.")],
    index: Index = HERE,
    sae: Sae = None,
    model: Model = None,
    top: Annotated[int, typer.Option(min=1, help="Features of each token.")] = 3,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show the features that are active on each token of a prompt."""
    from mechkit.report.features import lookup_summary, print_lookup

    found = _opened(index, sae, model, device).lookup(prompt, top)
    typer.echo(json_module.dumps(lookup_summary(found))) if json else print_lookup(found)


@commands.command()
def feature(id: Id, index: Index = HERE, sae: Sae = None, json: Json = False) -> None:
    """Show one feature in numbers: how often and how strongly it fires, and what it promotes."""
    from mechkit.report.features import feature_summary, print_feature

    found = _opened(index, sae).feature(id)
    typer.echo(json_module.dumps(feature_summary(found))) if json else print_feature(found)


@commands.command()
def examples(id: Id, index: Index = HERE, sae: Sae = None, top: Top = 5, json: Json = False) -> None:
    """Show where a feature fires: the strongest rows, and firings of each quarter of its strengths."""
    _print(_opened(index, sae).examples(id, top), json)


@commands.command()
def promoting(
    token: Annotated[str, typer.Argument(help="Text of a token, or its number as #17.")],
    index: Index = HERE,
    sae: Sae = None,
    top: Top = 10,
    json: Json = False,
) -> None:
    """Show the features that raise a token's logit most."""
    number = token[1:] if token.startswith("#") and token[1:].isdigit() else None
    _print(_opened(index, sae).promoting(int(number) if number else token, top), json)


@commands.command()
def similar(id: Id, index: Index = HERE, sae: Sae = None, top: Top = 10, json: Json = False) -> None:
    """Show the features whose decoder directions are nearest."""
    _print(_opened(index, sae).similar(id, top), json)


@commands.command()
def cofiring(id: Id, index: Index = HERE, sae: Sae = None, top: Top = 10, json: Json = False) -> None:
    """Show the features that fire on the same tokens."""
    _print(_opened(index, sae).cofiring(id, top), json)


@commands.command()
def contrast(
    a: Annotated[Path, typer.Argument(help="A corpus, read as scan reads one.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    index: Index = HERE,
    sae: Sae = None,
    model: Model = None,
    column: Annotated[str | None, typer.Option(help="Text column of .jsonl and .parquet.")] = None,
    by: Annotated[str, typer.Option(help="A feature's value on a text: its mean or max over tokens.")] = "mean",
    top: Top = 10,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show the features that tell two sets of texts apart."""
    from mechkit.features.sources import documents

    texts = [[content for _, _, content in documents(path, column)] for path in (a, b)]
    with bars(sys.stderr):
        found = _opened(index, sae, model, device).contrast(*texts, by=by, n=top)
    _print(found, json)


@commands.command()
def search(
    text: Annotated[str, typer.Argument(help="Words of a label.")],
    index: Index = HERE,
    sae: Sae = None,
    top: Top = 20,
    json: Json = False,
) -> None:
    """Find features by the words of their labels."""
    _print(_opened(index, sae).search(text, top), json)


@commands.command()
def label(
    id: Id,
    text: Annotated[str, typer.Argument(help="What the feature stands for.")],
    index: Index = HERE,
    sae: Sae = None,
) -> None:
    """Call a feature something."""
    opened = _opened(index, sae)
    opened.label(id, text)
    typer.echo(f"wrote {opened.labels.path}")


@commands.command(name="import-labels")
def import_labels(
    export: Annotated[Path, typer.Argument(help="A Neuronpedia export: .json, .jsonl, or a folder of them.")],
    index: Index = HERE,
    sae: Sae = None,
) -> None:
    """Take in the explanations of a Neuronpedia export; they are marked as automatic."""
    opened = _opened(index, sae)
    n = opened.labels.import_neuronpedia(export)
    typer.echo(f"{n} labels; wrote {opened.labels.path}")


@commands.command()
def tables(
    index: Index = HERE,
    sae: Sae = None,
    out: Annotated[Path, typer.Option(help="Folder for the Parquet files.")] = Path(),
) -> None:
    """Write the index as Parquet tables."""
    from mechkit.features.tables import write_tables

    for path in write_tables(_opened(index, sae), out):
        typer.echo(f"wrote {path}")


def _print(found: Any, json: bool) -> None:
    from mechkit.report.features import print_ranked, ranked_summary

    typer.echo(json_module.dumps(ranked_summary(found))) if json else print_ranked(found)


def _opened(folder: Path, sae: str | None, model: str | None = None, device: str | None = None) -> Any:
    """The index, with a model where one is named or is to run elsewhere than by default."""
    from mechkit.features.index import FeatureIndex

    index = FeatureIndex.open(folder, sae)
    if model is None and device is None:
        return index
    return FeatureIndex.open(folder, sae, loaded(model or index.manifest["model"]["name"], device))


def _loaded(model: str, device: str | None, saes: list[Path]) -> tuple[Any, dict[str, Any]]:
    """A model and SAEs by name: those in the folders given, else those that come with it."""
    from mechkit.dictionaries import load_sae, saes_for

    found = loaded(model, device)
    own = {path.name: load_sae(path, found) for path in saes} if saes else saes_for(found)
    if len(own) < len(saes) or not own:
        why = "two of the folders have one name" if own else f"'{model}' comes without SAEs"
        raise ValueError(f"{why}; name folders of SAEs with --sae")
    return found, own
