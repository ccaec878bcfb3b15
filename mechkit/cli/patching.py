"""`mechkit patch`: what each site of a model does to an answer."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mechkit.cli.terminal import bars, loaded, require_writable

METRICS = ("logit_diff", "logit", "logprob", "prob", "accuracy", "loss")
"""Metrics that need no more than the prompts and their answers."""
MODES, ABLATIONS = ("denoise", "noise"), ("zero", "mean", "resample")
FILES = ("patch.html", "patch.png", "patch.parquet", "patch.safetensors")


def patch(
    clean: Annotated[str, typer.Option(help='The prompt on which the behaviour shows, such as "35+59=".')],
    sites: Annotated[list[str], typer.Option(help='Such as "L*.resid_pre@*" or "L*.H*.z@-1"; may be given again.')],
    corrupt: Annotated[str | None, typer.Option(help='The prompt minimally changed, such as "35+51=".')] = None,
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    answer: Annotated[str | None, typer.Option(help="Right answer; the model's own on the clean prompt.")] = None,
    wrong: Annotated[str | None, typer.Option(help="Wrong answer; the model's own on the corrupt prompt.")] = None,
    metric: Annotated[str | None, typer.Option(help=f"One of {', '.join(METRICS)}.")] = None,
    mode: Annotated[str | None, typer.Option(help="denoise: clean values into corrupt; noise: the reverse.")] = None,
    ablate: Annotated[str | None, typer.Option(help="zero, mean or resample instead, on the clean prompt.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help=f"Folder for {', '.join(FILES)}.")] = Path(),
    top: Annotated[int, typer.Option(min=1, help="Sites to print.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")] = False,
) -> None:
    """Show which sites carry an answer: how the metric changes when each takes its value from the other prompt."""
    require_writable([out / name for name in FILES])
    _check_words(corrupt, metric, mode, ablate)
    with bars(sys.stderr):
        patched = _patched(loaded(model, device), clean, corrupt, answer, wrong, metric, sites, mode, ablate)
    from mechkit.report.patch import patch_page, patch_png, patch_summary, print_patch

    page, image = out / FILES[0], out / FILES[1]
    page.write_text(patch_page(patched, top), encoding="utf-8")
    image.write_bytes(patch_png(patched))
    written = [page, image, patched.result.save(out / FILES[2]), out / FILES[3]]
    if json:
        summary = {**patch_summary(patched, top), "wrote": [str(path) for path in written]}
        typer.echo(json_module.dumps(summary, allow_nan=False))
    else:
        print_patch(patched, top, written)


def _check_words(corrupt: str | None, metric: str | None, mode: str | None, ablate: str | None) -> None:
    """Raise ValueError, before the model is loaded, for options that mean nothing together."""
    for option, word, known in (
        ("--metric", metric, METRICS),
        ("--mode", mode, MODES),
        ("--ablate", ablate, ABLATIONS),
    ):
        if word not in (None, *known):
            raise ValueError(f"{option} is one of {', '.join(known)}, not '{word}'")
    if mode is not None and ablate is not None:
        raise ValueError(f"--mode {mode} takes values from the pair, --ablate {ablate} does not; give one of the two")
    if corrupt is None and ablate is None:
        raise ValueError("patching needs two prompts: give --corrupt, or --ablate zero for the clean prompt alone")


def _patched(
    model: Any,
    clean: str,
    corrupt: str | None,
    answer: str | None,
    wrong: str | None,
    metric: str | None,
    sites: list[str],
    mode: Any,
    ablate: Any,
) -> Any:
    import mechkit as mk
    from mechkit.core.prompts import likeliest
    from mechkit.report.patch import Patched

    if corrupt is not None:
        prompts = mk.Pair.from_text(model, clean, corrupt, answer, wrong)
    else:
        prompts = mk.Prompts.from_text(model, clean, answer, wrong)
        prompts = prompts if answer is not None else prompts.with_answers(likeliest(model, prompts), prompts.wrong)
    measured = getattr(mk, metric or _default_metric(prompts))
    result = mk.patch(model, prompts, sites, measured, mode=mode, ablate=ablate)
    return Patched.of(model, prompts, measured, result, sites)


def _default_metric(prompts: Any) -> str:
    """The difference of the two answers, or the logit of the one there is."""
    wrong = prompts.clean.wrong if hasattr(prompts, "clean") else prompts.wrong
    return "logit" if wrong is None else "logit_diff"
