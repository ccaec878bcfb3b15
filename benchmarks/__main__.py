"""Run the benchmarks and print their tables: `python -m benchmarks --device cuda --size full --out results.md`."""

import datetime
import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer

import mechkit
from benchmarks.features import feature_table
from benchmarks.forwards import forward_rows
from benchmarks.gradients import gradient_rows
from benchmarks.graphs import graph_table
from benchmarks.measure import Row, matmul_rate
from benchmarks.models import SEED, Subject, subjects
from benchmarks.paths import path_rows
from benchmarks.sweeps import sweep_rows
from benchmarks.table import table
from benchmarks.toys import toy_table

Rows = Callable[[Subject, str, str, float], Iterator[Row]]

QUESTIONS: dict[str, tuple[str, Rows]] = {
    "forwards": ("One forward pass: plain, cached, hooked", forward_rows),
    "sweeps": ("Patching sweeps", sweep_rows),
    "paths": ("Path patching", path_rows),
    "gradients": ("Attribution patching", gradient_rows),
}
TABLES = {"features": feature_table, "graphs": graph_table, "toys": toy_table}
"""Questions that are of no one model: each makes its own table, and fails where answers disagree."""
SECONDS = {"small": 0.2, "full": 8.0}
"""Seconds a side is timed for, beyond the fewest rounds."""
PACKAGES = ("torch", "transformer_lens", "transformers", "nnsight")


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    size: Annotated[str, typer.Option(help="small (minutes) or full.")] = "small",
    only: Annotated[str | None, typer.Option(help="One question, such as sweeps; see README.md.")] = None,
    stories: Annotated[Path | None, typer.Option(help="Folder of the stories260k model.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the tables, in Markdown.")] = None,
) -> None:
    """Run the benchmarks. Exit status 1 where an answer disagrees."""
    known = [*QUESTIONS, *TABLES]
    chosen = known if only is None else [only]
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"no question '{unknown[0]}'; there are {', '.join(known)}")
    if size not in SECONDS:
        raise typer.BadParameter(f"size is '{size}'; it is small or full")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here; use --device cpu")
    rate = matmul_rate(device)
    sections, agreed = [made_by(device, size, rate)], True
    for name in chosen:
        if name in TABLES:
            sections.append(TABLES[name](device, size, rate))
            continue
        title, rows_of = QUESTIONS[name]
        rows = [row for one in subjects(device, size, stories) for row in rows_of(one, device, size, SECONDS[size])]
        agreed &= all(row.agrees for row in rows)
        sections.append(table(title, rows, device, rate))
        typer.echo(f"{sections[-1]}\n")
    text = "\n\n".join(sections)
    typer.echo(sections[0])
    if out is not None:
        out.write_text(text + "\n")
    if not agreed:
        raise typer.Exit(1)


def made_by(device: str, size: str, rate: float) -> str:
    """Date, device, versions, commit and seed."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "no commit"
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    found = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    return (
        f"{today}, {device}: {name}, {torch.get_num_threads()} threads, size {size}, seed {SEED}; "
        f"Python {platform.python_version()}, {found}, mechkit {mechkit.__version__} ({commit}); "
        f"float32 matrix products run at {rate / 1e9:,.0f} GFLOP per busy second"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    typer.run(main)
