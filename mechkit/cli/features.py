"""`mechkit features`: an index of what the features of SAEs do on a corpus (`scan`), and questions to it."""

import json as json_module
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mechkit.cli.terminal import bars, loaded, require_writable

Index = Annotated[Path, typer.Option(help="The folder that scan wrote.")]
Sae = Annotated[str | None, typer.Option(help="One of several SAEs of the index, by name.")]
Id = Annotated[int, typer.Argument(metavar="FEATURE", help="Number of a feature.")]
Token = Annotated[str, typer.Argument(metavar="TOKEN", help="Text of a token, or its number as #17.")]
Words = Annotated[str, typer.Argument(metavar="WORDS", help="Words of a label.")]
Top = Annotated[int, typer.Option(min=1, help="Rows to print.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[str | None, typer.Option(help="The model that was scanned, where its name alone does not find it.")]
Device = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")]
Answer = Annotated[str | None, typer.Option(help="One token; the model's own likeliest next token unless given.")]
HERE = Path("features")
METRICS = ("logprob", "logit", "prob", "loss")
"""Metrics of a prompt that has no wrong answer."""
Metric = Annotated[str, typer.Option(help=f"What is measured: {', '.join(METRICS)}.")]
MAKE, ASK, NAME = "Make an index", "Ask it", "Name features"

commands = typer.Typer(
    no_args_is_help=True,
    help="What the features of SAEs do on a corpus: scan one, then ask the index about tokens, features and prompts.",
)


@commands.command(rich_help_panel=MAKE)
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
    engine: Annotated[str, typer.Option(help='"local", or "ray": Ray Data actors (the extra of that name).')] = "local",
    device: Device = None,
    json: Json = False,
) -> None:
    """Scan a corpus for all features of one or several SAEs; stopped at any moment, it goes on when called again."""
    from mechkit.features.scanning import scan as scan_corpus

    with bars(sys.stderr):
        found, saes = _loaded(model, device, sae or [])
        options = {"keep": keep, "column": column, "context": context, "batch": batch, "engine": engine}
        index = scan_corpus(found, saes, corpus, out, **options)
    from mechkit.report.features import print_scan, scan_summary

    typer.echo(json_module.dumps(scan_summary(index))) if json else print_scan(index)


@commands.command(rich_help_panel=ASK)
def lookup(
    prompt: Annotated[str, typer.Argument(help="Text to look at.")],
    index: Index = HERE,
    sae: Sae = None,
    model: Model = None,
    top: Annotated[int, typer.Option(min=1, help="Features of each token.")] = 3,
    effect: Annotated[
        str | None, typer.Option(help=f"Rank by what each does to a metric: {', '.join(METRICS)}.")
    ] = None,
    answer: Answer = None,
    page: Annotated[Path | None, typer.Option(help="Write a page that shows it, which opens with no network.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show the features that are active on each token of a prompt, by activation or by what they do."""
    from mechkit.report.features import lookup_summary, print_lookup

    _require_page(page)
    metric = None if effect is None else metric_named(effect)
    opened = opened_index(index, sae, model, device)
    asked = prompt if metric is None else prompts_asked(opened, [prompt], answer)
    with bars(sys.stderr):
        found = opened.lookup(asked, top, effect=metric)
        written = [] if page is None else [opened.prompt_page(asked, page, n=top, effect=metric)]
    typer.echo(json_module.dumps({**lookup_summary(found), **_wrote(written)})) if json else print_lookup(
        found, written
    )


@commands.command(rich_help_panel=ASK)
def feature(id: Id, index: Index = HERE, sae: Sae = None, json: Json = False) -> None:
    """Show one feature in numbers: how often and how strongly it fires, and what it promotes."""
    from mechkit.report.features import feature_summary, print_feature

    found = opened_index(index, sae).feature(id)
    typer.echo(json_module.dumps(feature_summary(found))) if json else print_feature(found)


def _ranked(name: str, what: Any, n: int, words: str, ask: Callable[[Any, Any, int], Any]) -> None:
    """A command `name` that asks an index about one thing and prints the rows of the answer."""

    def command(asked: Any, index: Index = HERE, sae: Sae = None, top: Top = n, json: Json = False) -> None:
        _print(ask(opened_index(index, sae), asked, top), json)

    command.__annotations__["asked"], command.__doc__ = what, words
    commands.command(name, rich_help_panel=ASK)(command)


_ranked(
    "examples", Id, 5, "Show where a feature fires: the strongest rows, and firings of each quarter of its strengths.",
    lambda index, id, n: index.examples(id, n),
)  # fmt: skip
_ranked(
    "promoting", Token, 10, "Show the features that raise a token's logit most.",
    lambda index, token, n: index.promoting(_token(token), n),
)  # fmt: skip
_ranked(
    "similar", Id, 10, "Show the features whose decoder directions are nearest.",
    lambda index, id, n: index.similar(id, n),
)  # fmt: skip
_ranked(
    "cofiring", Id, 10, "Show the features that fire on the same tokens.",
    lambda index, id, n: index.cofiring(id, n),
)  # fmt: skip
_ranked(
    "search", Words, 20, "Find features by the words of their labels.",
    lambda index, words, n: index.search(words, n),
)  # fmt: skip


@commands.command(rich_help_panel=ASK)
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
        found = opened_index(index, sae, model, device).contrast(*texts, by=by, n=top)
    _print(found, json)


@commands.command(rich_help_panel=ASK)
def page(
    id: Id,
    prompts: Annotated[list[str] | None, typer.Argument(help="Texts on which its effect is shown as well.")] = None,
    index: Index = HERE,
    sae: Sae = None,
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; feature-FEATURE.html unless given.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Examples of each band.")] = 5,
    metric: Metric = METRICS[0],
    answer: Answer = None,
    quality: Annotated[bool, typer.Option("--quality", help="Measure how well the SAE does, and show it.")] = False,
    device: Device = None,
) -> None:
    """Write a page about a feature that opens with no network: examples, histogram, tokens, neighbours, effect."""
    path = out or Path(f"feature-{id}.html")
    _require_page(path)
    opened, measured = opened_index(index, sae, model, device), metric_named(metric)
    with bars(sys.stderr):
        found = opened.effect(id, prompts_asked(opened, prompts, answer), measured) if prompts else None
        opened.page(id, path, n=top, effect=found, quality=opened.quality() if quality else None)
    from mechkit.report.console import print_written, terminal

    print_written([path], terminal())


@commands.command(rich_help_panel=NAME)
def label(
    id: Annotated[int | None, typer.Argument(metavar="FEATURE", help="Number of a feature.")] = None,
    text: Annotated[str | None, typer.Argument(help="What the feature stands for.")] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Propose labels from the words at the peaks, of all features unless one is named."),
    ] = False,
    index: Index = HERE,
    sae: Sae = None,
) -> None:
    """Call a feature something, or have labels proposed; those are marked as automatic."""
    if auto == (text is not None) or (id is None and not auto):
        raise ValueError('give a feature and a text, as in label 12 "names of girls", or --auto without a text')
    opened = opened_index(index, sae)
    if text is not None:
        opened.label(id, text)
    else:
        with bars(sys.stderr):
            found = opened.propose_labels(ids=None if id is None else [id])
        _print(found.top(), json=False)
        typer.echo(f"{len(found)} labels; {found.meta['n_without']} features have no words that stand out")
    typer.echo(f"wrote {opened.labels.path}")


@commands.command(name="import-labels", rich_help_panel=NAME)
def import_labels(
    export: Annotated[Path, typer.Argument(help="A Neuronpedia export: .json, .jsonl, or a folder of them.")],
    index: Index = HERE,
    sae: Sae = None,
) -> None:
    """Take in the explanations of a Neuronpedia export; they are marked as automatic."""
    opened = opened_index(index, sae)
    n = opened.labels.import_neuronpedia(export)
    typer.echo(f"{n} labels; wrote {opened.labels.path}")


@commands.command(rich_help_panel=MAKE)
def tables(
    index: Index = HERE,
    sae: Sae = None,
    out: Annotated[Path, typer.Option(help="Folder for the Parquet files.")] = Path(),
) -> None:
    """Write the index as Parquet tables."""
    from mechkit.features.tables import write_tables

    for path in write_tables(opened_index(index, sae), out):
        typer.echo(f"wrote {path}")


def _print(found: Any, json: bool) -> None:
    from mechkit.report.features import print_ranked, ranked_summary

    typer.echo(json_module.dumps(ranked_summary(found))) if json else print_ranked(found)


def _token(text: str) -> str | int:
    """A token by its text, or by its number behind a #."""
    return int(text[1:]) if text.startswith("#") and text[1:].isdigit() else text


def metric_named(name: str) -> Any:
    """A metric by its name. Raises ValueError, before any model is loaded, for one that there is not."""
    if name not in METRICS:
        raise ValueError(f"the metric is one of {', '.join(METRICS)}, not '{name}'")
    from mechkit.core import metrics

    return getattr(metrics, name)


def prompts_asked(index: Any, texts: list[str], answer: str | None) -> Any:
    """The prompts in the index's tokens, with an answer where one is given."""
    from mechkit.features.questions import model_of, prompts_of

    prompts = prompts_of(index, model_of(index), texts)
    return prompts if answer is None else prompts.with_answers([index.text.token(answer)] * len(prompts))


def _require_page(path: Path | None) -> None:
    if path is not None:
        require_writable([path])


def _wrote(paths: list[Path]) -> dict[str, Any]:
    return {"wrote": [str(path) for path in paths]} if paths else {}


def opened_index(folder: Path, sae: str | None, model: str | None = None, device: str | None = None) -> Any:
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
