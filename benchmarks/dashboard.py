"""What does `scan` cost against `sae_dashboard`, the tool that makes pages of feature examples?

    python -m benchmarks.dashboard --features 512 --rows 64

sae_dashboard asks for transformer-lens below 3, so it runs in a virtual environment of its own, which pip makes on the
first call and which is kept in `--home`. Model, SAE and tokens go there as files, and what comes back is how often each
feature fired, and CPU seconds without imports and loading. It is asked for its data alone, not for pages: 20 strongest
examples and 10 bands of 5 for every feature, histograms, promoted tokens. `scan` keeps 20 rows and a sample of 64
firings for every feature, with as many tokens around each, and writes them to disk.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file

from benchmarks.features import Subject, subjects
from benchmarks.measure import timed
from benchmarks.table import number
from mechkit.features import scan

PACKAGES = ("sae-dashboard==0.8.0", "pyarrow<22", f"torch=={torch.__version__.split('+')[0]}")
"""What pip puts into the other environment: a pyarrow for its older NumPy, and the same torch as here."""
UNUSED = ("torchvision", "torchaudio")
"""Come along, and fail on import where they were built for another torch."""
WANTED = 10.0
"""How many times the scan's seconds sae_dashboard is to take, at least."""
WIDTH = 128
"""Tokens of a row."""


def main(
    features: Annotated[int, typer.Option(min=16, help="Features of the SAE.")] = 512,
    rows: Annotated[int, typer.Option(min=1, help=f"Rows of {WIDTH} tokens.")] = 64,
    home: Annotated[Path, typer.Option(help="Folder of the other virtual environment.")] = Path("runs/sae_dashboard"),
    model: Annotated[str, typer.Option(help="stories260k, or the GPT-2-small shape.")] = "stories260k",
) -> None:
    """Run both on the same model, SAE and tokens, compare, and print the ratio of CPU seconds."""
    subject = chosen(model, features, rows)
    python = environment(home)
    with tempfile.TemporaryDirectory() as folder:
        hand_over(subject, Path(folder))
        theirs = answered(python, Path(folder))
        out = Path(folder) / "index"
        ours = timed(
            lambda: scan(subject.model, subject.sae, subject.tokens, out, bos=False, window=(5, 5)), "cpu"
        ).busy
        n = scan(subject.model, subject.sae, subject.tokens, out, bos=False, window=(5, 5)).n_firings
    apart = int(np.abs(n - np.array(theirs["n_firings"])).sum())
    if apart > 1e-4 * n.sum():
        raise SystemExit(f"answers disagree: {apart} of {n.sum()} firings are not in both")
    ratio = theirs["busy"] / ours
    print(
        f"{subject.name}, {subject.tokens.numel():,} tokens: firings agree but for {apart} of {n.sum():,}; "
        f"sae_dashboard {theirs['version']} {number(theirs['busy'])} s CPU, scan {number(ours)} s CPU, "
        f"{ratio:.1f} times (wanted ≥ {WANTED:g}: {'met' if ratio >= WANTED else 'NOT met'})"
    )


def chosen(name: str, features: int, rows: int) -> Subject:
    """A model with an SAE of so many features, and rows of tokens."""
    found = [one for one in subjects("cpu", "small", features) if one.name.startswith(name)]
    if not found:
        raise typer.BadParameter(
            f"no model '{name}' here; there are stories260k (in shared/data) and GPT-2-small shape"
        )
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(found[0].model.cfg.d_vocab, (rows, WIDTH), generator=generator)
    return Subject(found[0].name, found[0].model, found[0].sae, tokens)


def environment(home: Path) -> Path:
    """The Python of the other environment, made with pip where it is not there yet."""
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (home / ".whole").exists():
        print(
            f"making a virtual environment in '{home}' with {', '.join(PACKAGES)}; this takes minutes", file=sys.stderr
        )
        venv.create(home, with_pip=True, clear=True)
        for words in (["install", "-q", *PACKAGES], ["uninstall", "-q", "-y", *UNUSED]):
            subprocess.run([python, "-m", "pip", *words], check=True)
        (home / ".whole").touch()
    return python


def hand_over(subject: Subject, folder: Path) -> None:
    """Write the model (its settings and weights), the SAE and the tokens as files. Decoder directions have length 1."""
    sae = subject.sae
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    sae.save_model(folder / "sae")
    weights = {name: value.contiguous().clone() for name, value in subject.model.named_parameters()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(_plain(subject.model.cfg.to_dict())))
    np.save(folder / "tokens.npy", subject.tokens.numpy())


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that JSON can hold."""
    return {key: value for key, value in settings.items() if isinstance(value, str | int | float | bool)}


def answered(python: Path, folder: Path) -> dict[str, Any]:
    """What the other side says."""
    script = Path(__file__).with_name("dashboard_peer.py")
    done = subprocess.run([python, script, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"sae_dashboard failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return json.loads((folder / "answer.json").read_text())


if __name__ == "__main__":
    typer.run(main)
