"""Wang et al. 2022's walk back from the answer: which heads write it, and who tells those heads where to look.

    python scripts/ioi_path_patching.py                      # GPT-2 small where the Hub is reachable, else tinyworld
    python scripts/ioi_path_patching.py --model addition --prompts 50 --out figures/paths             # on sums

Every head sends what it has on prompts without the answer, along its paths into some receivers alone: first the logits;
then the queries of the heads found there (the name movers, on GPT-2); then the values of the heads found next
(S-inhibition); then those heads' senders' keys and values (induction and duplicate tokens). Negative: the head supports
the answer along these paths. Prints a table for each step, writes its heatmap (PNG) and scores (Parquet).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import mechkit as mk
from mechkit.report.console import plain, table, terminal
from mechkit.viz.result_png import result_png

OFFLINE = "tinyworld"
"""The model that stands in for GPT-2 where the Hub is out of reach."""


@dataclass(frozen=True)
class Step:
    """One stretch of the walk."""

    name: str
    """What its files are called."""
    parts: str
    """Which inputs of the heads found before receive; none for the logits."""
    last_only: bool
    """Whether they receive at the last token alone."""
    keep: int
    """How many heads are taken on to the next step."""


STEPS = (
    Step("to_logits", "", True, 3),
    Step("to_queries", "q", True, 4),
    Step("to_values", "v", False, 4),
    Step("to_keys_and_values", "kv", False, 3),
)


def main(
    model: Annotated[str, typer.Option(help="A name on the Hub, a bundled model or a folder.")] = "gpt2",
    prompts: Annotated[int, typer.Option(min=1, help="Pairs of prompts to take the mean over.")] = 50,
    seed: Annotated[int, typer.Option(help="Which prompts are drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path(
        "figures/paths"
    ),
    top: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 8,
) -> None:
    """Walk back from the logits, one table and one picture a step."""
    loaded, name = reachable(model)
    pair, task = pair_for(loaded, name, prompts, seed)
    out.mkdir(parents=True, exist_ok=True)
    console = terminal()
    clean = mk.sweep(loaded, pair.clean, [[]], mk.logit_diff).scores[0]
    console.print(f"{plain(task)}, {len(pair)} pairs, seed {seed}")
    console.print(
        f"mean logit difference {clean.mean():+.2f}; the wrong answer leads on {(clean < 0).float().mean():.1%}"
    )
    found: list[mk.Site] = []
    for step in STEPS:
        receivers = inputs_of(loaded, found, step) if step.parts else "logits"
        if not receivers:
            console.print(f"\nno head with others below it supports the answer there: the walk ends before {step.name}")
            break
        result = heads_to(loaded, pair, receivers)
        written = write(result, out / step.name, title(step, found))
        show(result, title(step, found), float(clean.mean()), top, written)
        found = supporters(result, step.keep)


def reachable(name: str) -> tuple[Any, str]:
    """The model and its name; the bundled one where the default is out of reach."""
    try:
        return mk.load(name), name
    except OSError as error:
        if name != "gpt2":
            raise
        terminal().print(f"gpt2 is out of reach ({plain(str(error))}); this run is on '{OFFLINE}'\n")
        return mk.load(OFFLINE), OFFLINE


def pair_for(model: Any, name: str, n: int, seed: int) -> tuple[mk.Pair, str]:
    """The task that the model knows, with what to call it: sums for the model of sums, else indirect objects."""
    if name == "addition":
        return mk.tasks.addition(n, seed), "sums a+b=, corrupt in b, by the addition model"
    return mk.tasks.ioi(n, seed, model=model), f"indirect objects, corrupt by three other names, by {name}"


def heads_to(model: Any, pair: mk.Pair, receivers: str | Sequence[mk.Site]) -> mk.Result:
    """Path patching of every head to the receivers, one row a head."""
    found = mk.path_patch(model, pair, "L*.H*.z", receivers, mk.logit_diff)
    senders = [edge.sender for edge in found.edges]
    return mk.Result.of_sites(senders, found.scores, found.unit, found.meta, gap=found.gap)


def inputs_of(model: Any, heads: Sequence[mk.Site], step: Step) -> list[mk.Site]:
    """Queries, keys or values of heads; a key/value head stands for all the heads that share it."""
    n_kv = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    sites = [
        head.at(name=part, head=int(head.head or 0) // (1 if part == "q" else model.cfg.n_heads // n_kv))
        for head in heads
        for part in step.parts
    ]
    return list(dict.fromkeys(site.at(pos=-1) if step.last_only else site for site in sites))


def supporters(result: mk.Result, n: int) -> list[mk.Site]:
    """The heads with others below whose paths carry most of the answer: the most negative mean scores, if they are."""
    best = result.mean().where(lambda rows: rows["layer"] > 0).top(n, by=lambda means: -means)
    return [site for site, score in zip(best.sites, best.scores[:, 0].tolist(), strict=True) if score < 0]


def title(step: Step, found: Sequence[mk.Site]) -> str:
    """What a step asks, in words."""
    kinds = {"q": "queries", "v": "values", "kv": "keys and values"}
    heads = ", ".join(f"{head.layer}.{head.head}" for head in found)
    return f"heads to the {kinds[step.parts]} of {heads}" if step.parts else "heads to the logits"


def write(result: mk.Result, path: Path, words: str) -> list[Path]:
    """The heatmap by layer and head as PNG, and the scores."""
    picture = path.with_suffix(".png")
    rows = result.rows.assign(name=result.labels)
    picture.write_bytes(result_png(rows, result.mean().scores[:, 0].numpy(), result.unit, words))
    return [picture, result.save(path.with_suffix(".parquet"))]


def show(result: mk.Result, words: str, clean: float, top: int, written: Sequence[Path]) -> None:
    """The heads largest in size, also as a share of the mean logit difference."""
    console = terminal()
    lines = table("head", result.unit, "of the logit difference")
    best = result.mean().top(top)
    for site, score in zip(best.sites, best.scores[:, 0].tolist(), strict=True):
        lines.add_row(f"{site.layer}.{site.head}", f"{score:+.3f}", f"{score / clean:+.0%}")
    console.print(f"\n[bold]{plain(words)}[/bold], {plain(str(result.meta['path']))}")
    console.print(lines)
    console.print(f"  [dim]wrote {plain(', '.join(map(str, written)))}[/dim]", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
