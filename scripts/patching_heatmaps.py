"""The standard patching figures of a model on a pair: what stands where, and which components move it.

    python scripts/patching_heatmaps.py --out figures                            # bundled model, mean over 50 sums
    python scripts/patching_heatmaps.py --model gpt2 --clean "..." --corrupt "..."

For resid_pre, attn_out and mlp_out by layer and position and for heads at all positions (with --by-position also heads
at each), it patches clean values into the corrupt run, writes PNG, HTML and the scores, and prints the largest.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

import mechkit as mk
from mechkit.report.console import plain, table, terminal
from mechkit.viz.figure_page import figure_page
from mechkit.viz.picture import with_tokens
from mechkit.viz.result_figure import result_figure
from mechkit.viz.result_png import result_png

FIGURES = {"resid_pre": "L*.resid_pre@*", "attn_out": "L*.attn_out@*", "mlp_out": "L*.mlp_out@*", "heads": "L*.H*.z"}
"""Sites of each figure, by the name of its files."""
BY_POSITION = {"heads_by_position": "L*.H*.z@*"}


def main(
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    clean: Annotated[str | None, typer.Option(help="Clean prompt; left out, sums of the bundled model.")] = None,
    corrupt: Annotated[str | None, typer.Option(help="Corrupt prompt, of as many tokens.")] = None,
    sums: Annotated[int, typer.Option(min=1, help="Pairs of sums to take the mean over, without --clean.")] = 50,
    seed: Annotated[int, typer.Option(help="Which sums are drawn.")] = 0,
    by_position: Annotated[bool, typer.Option("--by-position", help="Also heads at each position.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
    top: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 5,
) -> None:
    """Write the figures of one pair and print a table for each."""
    loaded = mk.load(model)
    pair, tokens = pair_of(loaded, model, clean, corrupt, sums, seed)
    out.mkdir(parents=True, exist_ok=True)
    wanted = FIGURES | (BY_POSITION if by_position else {})
    console = Console(stderr=True)
    for name, sites in track(list(wanted.items()), "patching", console=console, transient=True):
        result = mk.patch(loaded, pair, sites, mk.logit_diff)
        written = write(result, tokens, out / name, f"{sites}: change of logit_diff{_over(pair)}")
        show(result, sites, top, written)


def pair_of(
    model: Any, name: str, clean: str | None, corrupt: str | None, sums: int, seed: int
) -> tuple[mk.Pair, list[str]]:
    """The pair, and a word for each of its positions."""
    if (clean is None) is not (corrupt is None):
        raise typer.BadParameter("give both --clean and --corrupt, or neither")
    if clean is not None and corrupt is not None:
        pair = mk.Pair.from_text(model, clean, corrupt)
        return pair, [str(model.tokenizer.decode([token])) for token in pair.clean.tokens[0].tolist()]
    if name != "addition":
        raise typer.BadParameter(f"sums are for the model 'addition'; give --clean and --corrupt for '{name}'")
    return mk.tasks.addition(sums, seed), ["a", "+", "b", "="]


def write(result: mk.Result, tokens: list[str], path: Path, title: str) -> list[Path]:
    """The picture as PNG and HTML and the scores, beside each other."""
    rows = with_tokens(result.rows, tokens).assign(name=result.labels)
    values = result.mean().scores[:, 0].numpy()
    png, page = path.with_suffix(".png"), path.with_suffix(".html")
    png.write_bytes(result_png(rows, values, result.unit, title))
    facts = [("gap", f"{gap_of(result):+.4g} {result.unit}, full recovery")]
    page.write_text(figure_page(result_figure(rows, values, result.unit, ""), title, facts), encoding="utf-8")
    return [png, page, result.save(path.with_suffix(".parquet"))]


def show(result: mk.Result, sites: str, top: int, written: list[Path]) -> None:
    """The rows largest in size, with their share of full recovery."""
    console, gap = terminal(), gap_of(result)
    lines = table("site", result.unit, "of the gap")
    best = result.mean().top(top)
    for site, score in zip(best.labels, best.scores[:, 0].tolist(), strict=True):
        lines.add_row(site, f"{score:+.3f}", f"{score / gap:.0%}")
    console.print(f"\n[bold]{plain(sites)}[/bold], {len(result)} sites, gap {gap:+.3f} {result.unit}")
    console.print(lines)
    console.print(f"  [dim]wrote {plain(', '.join(map(str, written)))}[/dim]", soft_wrap=True)


def gap_of(result: mk.Result) -> float:
    """Full recovery, the mean over prompts."""
    return float("nan") if result.gap is None else float(result.gap.mean())


def _over(pair: mk.Pair) -> str:
    return f", mean over {len(pair)} pairs" if len(pair) > 1 else ""


if __name__ == "__main__":
    typer.run(main)
