"""Graphs of many prompts as a page of terminal output, and as plain data."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from mechkit.graphs.sets.graph_set import GraphSet
from mechkit.report.console import plain, print_written, table, terminal


def summary(graphs: GraphSet, top: int) -> dict[str, Any]:
    """What `print_graphs` prints, as JSON-able data; missing numbers are null."""
    return {
        "prompts": len(graphs),
        "classes": {label: n for label, n in graphs.labels.items() if label},
        "features": _records(graphs.features().head(top)),
        "edges": _records(graphs.edges().head(top)),
        "differences": {
            f"{a} - {b}": _records(graphs.compare(a, b).head(top)) for a, b in combinations(_classes(graphs), 2)
        },
    }


def print_graphs(graphs: GraphSet, top: int, written: Path, console: Console | None = None) -> None:
    """Print the most influential features and edges, how each two classes differ, and what was written."""
    console = console or terminal()
    console.print(f"\n{plain(repr(graphs))}\n")
    found = summary(graphs, top)
    lines = table("feature", "active", "kept", "influence")
    for row in found["features"]:
        influence = _with_error(row["influence"], row["influence_se"])
        lines.add_row(plain(row["node"]), f"{row['active']:.0%}", f"{row['kept']:.0%}", influence)
    console.print(lines)
    lines = table("edge", "kept", "weight where kept", "influence")
    for row in found["edges"]:
        weight, influence = (_with_error(row[of], row[f"{of}_se"]) for of in ("weight", "influence_all"))
        lines.add_row(plain(f"{row['sender']} -> {row['receiver']}"), f"{row['share']:.0%}", weight, influence)
    console.print(lines)
    for pair, rows in found["differences"].items():
        console.print(f"\n[bold]{plain(pair)}[/bold]: difference of mean influence")
        lines = table("feature", "difference", "p over all features")
        for row in rows:
            p = "" if row["p"] is None else f"{row['p']:.3f}"
            lines.add_row(plain(row["node"]), _with_error(row["difference"], row["se"]), p)
        console.print(lines)
    print_written([written], console)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:+.4f}" + ("" if error is None else f" ± {error:.4f}")


def _classes(graphs: GraphSet) -> list[str]:
    return [label for label in graphs.labels if label]


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    plain_rows = rows.astype(object).where(rows.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain_rows.to_dict("records")]
