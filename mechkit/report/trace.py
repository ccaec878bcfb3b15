"""A traced prompt as a page of terminal output, and as plain data."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mechkit.graphs.export import SCORES, level_table


def trace_summary(graph) -> dict:
    """What `print_trace` prints, as JSON-able data."""
    answer, heads = graph.logits[0], graph.heads()
    return {
        "prompt": graph.meta["prompt"],
        "answer": answer.name,
        "probability": graph.probabilities[answer.id],
        "scores": graph.scores,
        "heads": dict(zip(heads.labels, heads.scores[:, 0].tolist(), strict=True)),
        "pathways": [{"share": path.share, "text": path.text} for path in graph.pathways()],
        "supernodes": [vars(check) for check in graph.supernode_checks],
        "exact_error": None if graph.check is None else graph.check.exact_error,
        "levels": level_table(graph),
        "findings": [vars(finding) for finding in graph.findings],
    }


def print_trace(graph, written: Sequence[Path], console: Console | None = None) -> None:
    """Print the answer, the graph's scores, pathways, interventions and findings, and what was written."""
    console = console or _console()
    answer = graph.logits[0]
    probability = graph.probabilities[answer.id]
    console.print(
        f"\n[bold]{_plain(graph.meta['prompt'])} {_plain(answer.name)}[/bold]   probability {probability:.1%}\n"
    )
    for name, value in graph.scores.items():
        if value is not None:
            console.print(f"  {name:<13} {value:.2f}   {SCORES[name]}")
    _print_pathways(graph, console)
    _print_supernodes(answer.name, graph.supernode_checks, console)
    _print_levels(graph, console)
    _print_findings(graph, console)
    console.print()
    for path in written:
        console.print(f"wrote {_plain(str(path))}", soft_wrap=True)
    page = next((path for path in written if path.suffix == ".html"), None)
    if page is not None:
        console.print(f"open [bold]file://{_plain(str(page.resolve()))}[/bold] in a browser", soft_wrap=True)


def _console() -> Console:
    """The terminal; where there is none, wide enough that nothing wraps."""
    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, width=width)


def _print_pathways(graph, console: Console) -> None:
    result = graph.heads()
    heads = zip(result.labels, result.scores[:, 0].tolist(), strict=True)
    console.print(
        "\n[bold]Pathways[/bold], by the share of the answer's influence each carries (sizes: some argue against)"
    )
    for path in graph.pathways():
        console.print(f"  {path.share:5.1%}  {_plain(path.text)}")
    shown = ", ".join(f"{site.removesuffix('.z')} {share:.0%}" for site, share in heads if share >= 0.02)
    console.print(f"  heads, by the share each carries last: {shown or 'none'}")


def _print_supernodes(answer: str, checks: Sequence, console: Console) -> None:
    if not checks:
        return
    table = _table("suppress", "features", "predicted", "measured ii", "measured iii", "answer")
    table.add_column("strongest feature")
    for check in checks:
        changes = (f"{value:+.2f}" for value in (check.predicted, check.frozen, check.measured))
        table.add_row(
            _plain(check.name), str(check.n_features), *changes, _plain(check.answer), _plain(check.strongest)
        )
    console.print(f"\n[bold]Interventions[/bold]: supernodes suppressed, change of the logit of {_plain(answer)}")
    console.print(table)
    console.print("  [dim]ii: attention and norms frozen. iii: nothing frozen[/dim]")


def _print_levels(graph, console: Console) -> None:
    if graph.check is None or not graph.check.nodes:
        return
    console.print(
        f"\n[bold]Is the graph true?[/bold] Each of the {len(graph.check.nodes)} kept features suppressed; "
        f"with all else frozen, equal to {graph.check.exact_error:.0e}"
    )
    columns, *rows = level_table(graph)
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("  [dim]control: edge weights permuted. At ii the last layer is exact: it feeds only logits[/dim]")


def _print_findings(graph, console: Console) -> None:
    if not graph.findings:
        return
    n = graph.findings[0].n_sums
    console.print(f"\n[bold]Two pathways?[/bold] Whole classes of features suppressed on {n} sums the model never saw")
    table = _table("suppress", "features per sum", "right", "last digit changed", "size changed")
    for finding in graph.findings:
        table.add_row(*map(_plain, finding.row()))
    console.print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column(f" {first}")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _plain(text: str) -> str:
    """Text of a prompt with the console's markup made inert."""
    from rich.markup import escape

    return escape(text)
