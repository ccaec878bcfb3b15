"""`mechkit features effect`, `quality` and `detect`: whether what features seem to do and mean is true."""

import json as json_module
import sys
from typing import Annotated

import typer

from mechkit.cli.features import (
    HERE,
    METRICS,
    Answer,
    Device,
    Id,
    Index,
    Json,
    Metric,
    Model,
    Sae,
    commands,
    metric_named,
    opened_index,
    prompts_asked,
)
from mechkit.cli.terminal import bars

Prompts = Annotated[list[str], typer.Argument(help="Texts to look at.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
TEST = "Test what features do and mean"


@commands.command(rich_help_panel=TEST)
def effect(
    ids: Annotated[str, typer.Argument(metavar="FEATURES", help="Numbers of features: 12, or 12,40,7.")],
    prompts: Prompts,
    index: Index = HERE,
    sae: Sae = None,
    model: Model = None,
    metric: Metric = METRICS[0],
    answer: Answer = None,
    scale: Annotated[float, typer.Option(help="What activations are multiplied by; 0 takes the feature out.")] = 0.0,
    steer: Annotated[float | None, typer.Option(help="Activation that the feature is given instead.")] = None,
    at: Annotated[str | None, typer.Option(help="Positions: -1 is the last, 2:5 a stretch; all unless given.")] = None,
    rebuilt: Annotated[bool, typer.Option("--rebuilt", help="Let the SAE stand in for what it reads.")] = False,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show what a metric changes by on prompts when features are taken out, scaled or held at a strength."""
    from mechkit.report.features import effect_summary, print_effect

    chosen, measured = _numbers(ids), metric_named(metric)
    opened = opened_index(index, sae, model, device)
    pos = int(at) if at is not None and at.lstrip("-").isdigit() else at
    with bars(sys.stderr):
        asked = prompts_asked(opened, prompts, answer)
        found = opened.effect(chosen, asked, measured, scale=scale, steer=steer, pos=pos, error=not rebuilt)
    typer.echo(json_module.dumps(effect_summary(found, prompts))) if json else print_effect(found, prompts)


@commands.command(rich_help_panel=TEST)
def quality(
    index: Index = HERE,
    sae: Sae = None,
    model: Model = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens on which losses are measured, about.")] = 20_000,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show how well the SAE stands in for what it reads: loss recovered, variance explained, sparsity."""
    from mechkit.report.features import print_quality, quality_summary

    with bars(sys.stderr):
        found = opened_index(index, sae, model, device).quality(tokens, seed=seed)
    typer.echo(json_module.dumps(quality_summary(found))) if json else print_quality(found)


@commands.command(rich_help_panel=TEST)
def detect(
    id: Id,
    description: Annotated[
        str | None,
        typer.Argument(help='Words, as "fires on: Paris, Rome"; its first label that lists some unless given.'),
    ] = None,
    index: Index = HERE,
    sae: Sae = None,
    model: Model = None,
    texts: Annotated[int, typer.Option(min=2, help="Texts of each kind, at most.")] = 50,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Score a list of words: do they tell held-out texts in which the feature fires from others?"""
    from mechkit.report.features import detection_summary, print_detection

    with bars(sys.stderr):
        found = opened_index(index, sae, model, device).detection(id, description, n=texts, seed=seed)
    typer.echo(json_module.dumps(detection_summary(found))) if json else print_detection(found)


def _numbers(text: str) -> list[int]:
    """Numbers parted by commas. Raises ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"features are numbers parted by commas, such as 12,40, not {text!r}")
    return [int(part) for part in parts]
