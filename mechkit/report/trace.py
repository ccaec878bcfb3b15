"""A traced prompt as a page of terminal output, and as plain data."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mechkit.graphs.files.export import SCORES, level_table
from mechkit.report.console import plain, print_written, table, terminal


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
    console = console or terminal()
    answer = graph.logits[0]
    probability = graph.probabilities[answer.id]
    console.print(
        f"\n[bold]{plain(graph.meta['prompt'])} {plain(answer.name)}[/bold]   probability {probability:.1%}\n"
    )
    for name, value in graph.scores.items():
        if value is not None:
            console.print(f"  {name:<13} {value:.2f}   {SCORES[name]}")
    _print_pathways(graph, console)
    _print_supernodes(answer.name, graph.supernode_checks, console)
    _print_levels(graph, console)
    _print_findings(graph, console)
    print_written(written, console)


def _print_pathways(graph, console: Console) -> None:
    result = graph.heads()
    heads = zip(result.labels, result.scores[:, 0].tolist(), strict=True)
    console.print(
        "\n[bold]Pathways[/bold], by the share of the answer's influence each carries (sizes: some argue against)"
    )
    for path in graph.pathways():
        console.print(f"  {path.share:5.1%}  {plain(path.text)}")
    shown = ", ".join(f"{site.removesuffix('.z')} {share:.0%}" for site, share in heads if share >= 0.02)
    console.print(f"  heads, by the share each carries last: {shown or 'none'}")


def _print_supernodes(answer: str, checks: Sequence, console: Console) -> None:
    if not checks:
        return
    lines = table("suppress", "features", "predicted", "measured ii", "measured iii", "answer")
    lines.add_column("strongest feature")
    for check in checks:
        changes = (f"{value:+.2f}" for value in (check.predicted, check.frozen, check.measured))
        lines.add_row(plain(check.name), str(check.n_features), *changes, plain(check.answer), plain(check.strongest))
    console.print(f"\n[bold]Interventions[/bold]: supernodes suppressed, change of the logit of {plain(answer)}")
    console.print(lines)
    console.print("  [dim]ii: attention and norms frozen. iii: nothing frozen[/dim]")


def _print_levels(graph, console: Console) -> None:
    if graph.check is None or not graph.check.nodes:
        return
    console.print(
        f"\n[bold]Is the graph true?[/bold] Each of the {len(graph.check.nodes)} kept features suppressed; "
        f"with all else frozen, equal to {graph.check.exact_error:.0e}"
    )
    columns, *rows = level_table(graph)
    lines = table(*columns)
    for row in rows:
        lines.add_row(*row)
    console.print(lines)
    console.print("  [dim]control: edge weights permuted. At ii the last layer is exact: it feeds only logits[/dim]")


def _print_findings(graph, console: Console) -> None:
    if not graph.findings:
        return
    n = graph.findings[0].n_sums
    console.print(f"\n[bold]Two pathways?[/bold] Whole classes of features suppressed on {n} sums the model never saw")
    lines = table("suppress", "features per sum", "right", "last digit changed", "size changed")
    for finding in graph.findings:
        lines.add_row(*map(plain, finding.row()))
    console.print(lines)
