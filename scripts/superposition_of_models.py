"""How the features of real weights share their dimensions: the toy models' measures over whole models.

    python scripts/superposition_of_models.py --out figures                         # the bundled models
    python scripts/superposition_of_models.py --model gpt2 --sae saes/resid --out figures

For each model it measures embeddings, heads, neurons, unembedding and the decoders of dictionaries (a bundled model's
own, or --sae) against random directions and against Gaussian rows of the same covariance, writes a PNG and the table
as Parquet, prints the table and what may be concluded. Beside each model, --control measures the same shapes filled
with independent Gaussian weights, where neither null should be rejected in more than about one matrix of twenty.
"""

from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

import mechkit as mk
from mechkit.dictionaries import transcoders_for
from mechkit.dictionaries.decoders import decoders_at
from mechkit.report.superposition import model_png, print_superposition
from mechkit.zoo.loading import zoo_names


def main(
    model: Annotated[list[str] | None, typer.Option(help="Bundled, a folder, or on the Hub; again.")] = None,
    sae: Annotated[list[Path] | None, typer.Option(help="Folder of SAELens dictionaries of the one model.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Also the same shapes with random weights.")] = False,
    draws: Annotated[int, typer.Option(min=40, help="Draws of each null.")] = 99,
    sample: Annotated[int, typer.Option(min=2, help="Features compared with the nulls, at random.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the nulls, the samples and the control.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files; made where it is not there.")] = Path("figures"),
) -> None:
    """Write a table and a picture for each model and print what was found."""
    names = model or zoo_names()
    if sae and len(names) > 1:
        raise typer.BadParameter("dictionaries are of one model; give one --model with --sae")
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    for name in track(names, "measuring", console=console, transient=True):
        loaded = mk.load(name, device=device)
        options: dict[str, Any] = {"draws": draws, "sample": sample, "seed": seed}
        write(mk.measure_model(loaded, dictionaries_of(loaded, sae), **options), out, Path(name).name)
        if control:
            write(mk.measure_model(randomised(loaded, name, seed), **options), out, f"{Path(name).name}_random")


def dictionaries_of(model: Any, folders: list[Path] | None) -> list[Any]:
    """Those in the folders, or those that come with the model."""
    if folders:
        return [decoder for folder in folders for decoder in decoders_at(folder, model)]
    return list(transcoders_for(model) or [])


def randomised(model: Any, name: str, seed: int) -> Any:
    """A copy whose matrices hold independent Gaussian numbers of the same size."""
    copy, generator = deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in copy.parameters():
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator) * float(parameter.detach().float().std())
            parameter.data = noise.to(parameter)
    copy.cfg.model_name = f"{Path(name).name}, random weights"
    return copy


def write(found: mk.ModelSuperposition, out: Path, name: str) -> None:
    """The table and the picture beside each other, and what they say on the terminal."""
    image = out / f"superposition_{name}.png"
    image.write_bytes(model_png(found))
    print_superposition(found, [found.save(image.with_suffix(".parquet")), image])


if __name__ == "__main__":
    typer.run(main)
