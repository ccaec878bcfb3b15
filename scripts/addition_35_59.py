"""How does a model add 35 and 59? The sections on addition of Lindsey et al. 2025 and Ameisen et al. 2025, redone.

    python scripts/addition_35_59.py                                     # the bundled model and its transcoders
    python scripts/addition_35_59.py --model meta-llama/Llama-3.2-1B --transcoders OWNER/NAME --prompt "calc: 35+59="

Traces sums and says what their features stand for (operand plots), along which pathways the answer comes (a rough size
and a precise last digit), and what the model answers on 200 sums it never saw when features are suppressed, turned to
-1 times their activity as in the paper, or given the activity they have on another sum: does the last digit follow the
lookups, and the size the features of the tens? Beside each stands a control of as many features at random. Prints
tables, writes a figure (PNG) and all counts (JSON). For a model from the Hub, the sums are ones that it answers right.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import numpy as np
import typer

import mechkit as mk
from mechkit.cli.terminal import bars
from mechkit.core.files import write_atomic
from mechkit.core.prompts import likeliest
from mechkit.dictionaries import load_transcoders, transcoders_for
from mechkit.graphs.meaning.meanings import PATHWAYS
from mechkit.graphs.nodes import Node
from mechkit.graphs.sums.sum_features import SumFeatures, grid_of
from mechkit.graphs.sums.sum_trials import Trial, kinds_of, trials_of, turned
from mechkit.report import addition as report
from mechkit.report.console import plain, terminal
from mechkit.viz.addition_png import addition_png
from mechkit.zoo.addition import unseen_sums

MOST = 4000
"""Features whose operand plots are made; a model with more has those taken that matter most in the traced graphs."""


def main(
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "addition",
    transcoders: Annotated[str | None, typer.Option(help="Folder or Hub repository of its transcoders.")] = None,
    prompt: Annotated[str, typer.Option(help="The sum that is traced; others are of its form.")] = "35+59=",
    sums: Annotated[int, typer.Option(min=2, help="Sums to intervene on.")] = 200,
    graphs: Annotated[int, typer.Option(min=2, help="Sums to trace.")] = 100,
    seed: Annotated[int, typer.Option(help="Which sums, swaps and controls are drawn.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path(
        "figures/addition"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="20 sums and 6 graphs.")] = False,
) -> None:
    """Redo the paper's addition section on a model and print what holds."""
    sums, graphs = (min(sums, 20), min(graphs, 6)) if quick else (sums, graphs)
    loaded = mk.load(model, device=device)
    bases = dictionaries(loaded, transcoders)
    try:
        grid = grid_of(loaded, prompt)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = terminal()
    with bars(console.file):
        asked = drawn_sums(loaded, model, prompt, sums, seed)
        traced = mk.trace_many(loaded, [write(prompt, *pair) for pair in asked[:graphs]], bases, by=carries)
        features = SumFeatures.of(loaded, bases, grid, candidates(bases, traced))
        graph, other = (mk.trace(loaded, text, bases, check=False) for text in (prompt, write(prompt, 36, 59)))
        kinds = kinds_of(features)
        trials, digits = trials_of(features, kinds, asked, seed)
    for one in (graph, other):
        features.explain(one)
    console.print(f"[bold]{plain(model)}[/bold]: {len(features.nodes)} features on {len(asked)} sums, seed {seed}\n")
    found: dict[str, Any] = {"model": model, "prompt": prompt, "sums": len(asked), "graphs": len(traced), "seed": seed}
    found["classes"] = report.show_classes(console, features)
    found["pathways"] = report.show_pathways(console, graph)
    found["influence"] = report.show_influence(console, traced, features)
    found["carry"] = report.show_carry(console, traced, features)
    found["one sum"] = turned(other, features, kinds)
    report.show_turned(console, other, found["one sum"])
    report.show_trials(console, trials, len(asked))
    found |= {"trials": [asdict(trial) for trial in trials], "digits after lookups are swapped": digits.tolist()}
    picture = addition_png(
        pictured(graph), report.bar_table(trials, len(asked)), digits,
        f"{model}: {prompt} {graph.logits[0].name}, and {len(asked)} sums", about(trials),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    written = [write_atomic(out / "addition_35_59.png", picture)]
    written.append(write_atomic(out / "addition_35_59.json", json.dumps(found, indent=1)))
    console.print(f"\nwrote {plain(', '.join(map(str, written)))}", soft_wrap=True)


# --- what is asked


def dictionaries(model: Any, path: str | None) -> Sequence:
    """The transcoders of a folder or a Hub repository, or the model's own; BadParameter where there are none."""
    if path is None:
        found = transcoders_for(model)
        if found is None:
            raise typer.BadParameter("the model comes without transcoders; name their folder with --transcoders")
        return found
    if not Path(path).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        from huggingface_hub import snapshot_download

        path = snapshot_download(path)
    return load_transcoders(path, model)


def write(prompt: str, a: int, b: int) -> str:
    """The prompt with other operands."""
    numbers = iter((str(a), str(b)))
    return re.sub(r"\d+", lambda _: next(numbers), prompt)


def carries(text: str) -> str:
    """Whether the ones digits of a sum carry."""
    a, b = map(int, re.findall(r"\d+", text))
    return "carry" if a % 10 + b % 10 > 9 else "no carry"


def drawn_sums(model: Any, name: str, prompt: str, n: int, seed: int) -> list[tuple[int, int]]:
    """Sums the bundled model never saw; of any other model, sums that it answers right.

    Raises BadParameter where fewer than two of 1,000 answers, or five times `n`, are right.
    """
    if name == "addition":
        return random.Random(seed).sample(unseen_sums(), min(n, len(unseen_sums())))
    every = [(a, b) for a in range(100) for b in range(100)]
    tried = random.Random(seed).sample(every, min(len(every), max(1000, 5 * n)))
    prompts = mk.Prompts.from_text(model, [write(prompt, *pair) for pair in tried])
    tokens = [token for some in batches(len(tried), 250) for token in likeliest(model, prompts[some]).tolist()]
    words = [model.tokenizer.decode([token]).strip() for token in tokens]
    right = [pair for pair, word in zip(tried, words, strict=True) if word == str(sum(pair))]
    if len(right) < 2:
        raise typer.BadParameter(
            f"the model answers {len(right)} of {len(tried)} sums with the whole sum as its next token (it answers "
            f"{write(prompt, *tried[0])!r} with {words[0]!r}); sums whose answers are several tokens are not handled"
        )
    return right[:n]


def batches(n: int, size: int) -> list[slice]:
    """Runs of at most `size` of `n`."""
    return [slice(start, start + size) for start in range(0, n, size)]


def candidates(bases: Sequence, graphs: mk.GraphSet) -> list[Node]:
    """Every feature at every position where these are at most `MOST`, else the most influential in the graphs."""
    n_pos = int(graphs.frame()["n_tokens"].iloc[0])
    names = {basis.layer: basis.name for basis in bases}
    if sum(basis.d_features for basis in bases) * n_pos <= MOST:
        places = [(b.layer, pos, i) for b in bases for pos in range(n_pos) for i in range(b.d_features)]
    else:
        best = graphs.aligned("start").features().head(MOST)
        places = sorted(zip(*(best[name].astype(int) for name in ("layer", "pos", "index")), strict=True))
    return [Node("feature", layer, pos, i, names[layer]) for layer, pos, i in places]


# --- what is drawn


def pictured(graph: mk.AttributionGraph, each: int = 4) -> list[tuple[str, np.ndarray]]:
    """Plots of the most influential features of the traced prompt: lookups, of the tens, of the sum."""
    choices: dict[str, Callable] = {
        "lookup": lambda meaning: meaning.group == "ones-digit lookup",
        "tens": PATHWAYS["all features of the tens"],
        "sum": lambda meaning: meaning.group == "sum",
    }
    influence = {node.id: float(graph.weighted.influence[graph.column_of(node)]) for node in graph.attribution.features}
    found = []
    for kind, choice in choices.items():
        mine = [
            node for node in graph.attribution.features if node.id in graph.meanings and choice(graph.meanings[node.id])
        ]
        for node in sorted(mine, key=lambda node: -influence[node.id])[:each]:
            label = shorten(graph.meanings[node.id].label.replace(" (some pairs)", ""), 36, placeholder=" …")
            title = f"{kind}: L{node.layer}#{node.index}, {influence[node.id]:.1%}\n{label}"
            found.append((title, graph.plots[node.id].numpy()))
    return found


def about(trials: Sequence[Trial]) -> str:
    """What the heatmap shows, in words."""
    swapped = next(trial for trial in trials if trial.follows is not None)
    return f"lookups swapped: the last digit follows on {swapped.follows:.0%} ({swapped.follows_control:.0%} at random)"


if __name__ == "__main__":
    typer.run(main)
