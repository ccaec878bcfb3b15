"""Run every benchmark and print its table: `python -m benchmarks [--device cuda] [--out results.md]`."""

import platform
import subprocess
from pathlib import Path
from typing import Annotated

import torch
import typer

import mechkit
from benchmarks.graphs import graph_table


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=3, help="Timed runs of each case.")] = 7,
    out: Annotated[Path | None, typer.Option(help="File for the tables, in Markdown.")] = None,
) -> None:
    """Run every benchmark."""
    text = "\n\n".join([made_by(device), graph_table(device, repeats)])
    typer.echo(text)
    if out is not None:
        out.write_text(text + "\n")


def made_by(device: str) -> str:
    """Device, versions and commit."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "no commit"
    return (
        f"{device}: {name}, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, mechkit {mechkit.__version__} ({commit})"
    )


if __name__ == "__main__":
    typer.run(main)
