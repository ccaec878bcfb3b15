"""How a model adds, as tables of a terminal; each function returns what it prints as plain data."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import pandas as pd
from rich.console import Console

from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.sets.graph_set import GraphSet
from mechkit.graphs.sums.sum_features import SumFeatures
from mechkit.graphs.sums.sum_trials import DRAWS, OUTCOMES, Trial, interval
from mechkit.graphs.truth.suppression import NEAR
from mechkit.report.console import plain, table


def show_classes(console: Console, features: SumFeatures) -> list[dict]:
    """How many features of each class there are, by layer and position."""
    rows = [
        {"layer": node.layer, "position": node.pos, "class": meaning.group}
        for node, meaning, plot in zip(features.nodes, features.meanings, features.plots, strict=True)
        if bool(plot.any())
    ]
    counts = pd.DataFrame(rows).value_counts(sort=False).rename("features").reset_index()
    wide = counts.pivot_table(index=["layer", "position"], columns="class", values="features", fill_value=0).astype(int)
    lines = table("layer, position", *map(str, wide.columns))
    for (layer, pos), row in wide.iterrows():  # type: ignore[misc]
        lines.add_row(f"L{layer} @{pos}", *map(str, row))
    console.print("[bold]What features are functions of[/bold], where they are active on any of the 10,000 sums")
    console.print(lines)
    return counts.to_dict("records")


def show_pathways(console: Console, graph: AttributionGraph) -> list[dict]:
    """The pathways of the traced prompt."""
    found = graph.pathways(6)
    console.print(f"\n[bold]Pathways of {plain(graph.meta['prompt'])}[/bold], by their share of the answer's influence")
    for path in found:
        console.print(f"  {path.share:5.1%}  {plain(path.text)}", soft_wrap=True)
    return [{"share": path.share, "text": path.text} for path in found]


def show_influence(console: Console, graphs: GraphSet, features: SumFeatures) -> list[dict]:
    """How much of the answer passes each class of features, over all graphs."""
    classes = {(n.layer, n.pos, n.index): m.group for n, m in zip(features.nodes, features.meanings, strict=True)}
    per_graph = []
    for graph in graphs:
        nodes = graph.nodes.dropna(subset=["index"])
        keys = zip(nodes["layer"], nodes["pos"], nodes["index"], strict=True)
        groups = [f"L{key[0]} {classes.get(key, 'not looked at')}" for key in keys]
        per_graph.append(nodes["influence"].groupby(groups).sum())
    wide = pd.concat(per_graph, axis=1).T.fillna(0)
    found = pd.DataFrame({"share": wide.mean(), "se": wide.sem(), "graphs": (wide > 0).mean()})
    found = found.sort_values("share", ascending=False).rename_axis("features").reset_index()
    lines = table("features", "of the answer", "in graphs")
    records = [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]
    for row in records[:10]:
        lines.add_row(row["features"], f"{row['share']:.1%} ± {row['se']:.1%}", f"{row['graphs']:.0%}")
    console.print(f"\n[bold]What the answer passes[/bold], mean over {len(graphs)} graphs ± standard error")
    console.print(lines)
    return records


def show_carry(console: Console, graphs: GraphSet, features: SumFeatures) -> list[dict]:
    """The features that differ most between sums that carry and sums that do not."""
    if min(graphs.labels.get(label, 0) for label in ("carry", "no carry")) < 2:
        return []
    found = graphs.compare("carry", "no carry")
    labels = {(n.layer, n.pos, n.index): m.label for n, m in zip(features.nodes, features.meanings, strict=True)}
    found["meaning"] = [labels.get(key, "") for key in zip(found["layer"], found["pos"], found["index"], strict=True)]
    n_sure = sum(p <= 0.05 for p in found["p"])
    console.print(
        f"\n[bold]Carry[/bold]: {n_sure} features differ in influence (p ≤ 0.05 over all {len(found)} together)"
    )
    lines = table("feature", "with a carry", "without", "p", "meaning")
    records = [{str(name): value for name, value in row.items()} for row in found.head(20).to_dict("records")]
    for row in records[:5]:
        numbers = (f"{row[name]:.3f}" for name in ("influence_a", "influence_b", "p"))
        lines.add_row(f"L{row['layer']}#{row['index']} @{row['pos']}", *numbers, plain(row["meaning"]))
    console.print(lines)
    return records


def show_turned(console: Console, graph: AttributionGraph, turned: Sequence[Mapping[str, Any]]) -> None:
    """What one sum is answered with each kind of features turned to -1 times what they are."""
    asked = f"{graph.meta['prompt']} {graph.logits[0].name}"
    console.print(f"\n[bold]{plain(asked)}[/bold], features turned to -1 times what they are")
    lines = table("features", "how many", "likeliest answers")
    for row in turned:
        words = ", ".join(f"{word} {p:.2f}" for word, p in row["answers"])
        lines.add_row(plain(row["features"]), str(row["n"]), plain(words))
    console.print(lines)


def show_trials(console: Console, trials: Sequence[Trial], n: int) -> None:
    """Counts of each outcome, with the control's in brackets."""
    lines = table("intervention", "features per sum", *OUTCOMES, "does as swapped")
    for row in trials:
        cells = [counted(row.shares[name], row.control.get(name), n) for name in OUTCOMES]
        does = "" if row.follows is None else counted(row.follows, row.follows_control, n)
        lines.add_row(row.title, f"{row.n_features:.1f}", *cells, does)
    console.print(f"\n[bold]On {n} sums[/bold], counts; in brackets as many features at random, mean of {DRAWS} draws")
    console.print(lines)
    console.print(
        f"  [dim]size kept: off by at most {NEAR}; 95 % intervals reach at most {98 / sqrt(n):.0f} % to a side"
    )


def counted(share: float, control: float | None, n: int) -> str:
    """A count, and the control's in brackets."""
    return f"{share * n:.0f}" + ("" if control is None else f" ({control * n:.0f})")


def bar_table(trials: Sequence[Trial], n: int) -> pd.DataFrame:
    """Shares, intervals and controls of each row, as the figure takes them."""
    found = []
    for row in trials:
        line: dict[str, Any] = {"title": row.title}
        for name, share in row.shares.items():
            low, high = interval(share, n)
            line |= {name: share, f"{name}_low": low, f"{name}_high": high}
            line[f"{name}_control"] = row.control.get(name, float("nan"))
        found.append(line)
    return pd.DataFrame(found)
