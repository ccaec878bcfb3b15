"""Train an SAE with SAELens on any model, at any hook, over text, and score it on text that it was not trained on.

    python scripts/train_sae.py                                                  # tinyworld, on its own training text
    python scripts/train_sae.py book.txt more.txt --model gpt2 --hook blocks.6.hook_resid_pre --features 4096

Writes a folder in SAELens's format, which `mechkit.dictionaries.load_sae(folder, model)` and SAELens's own
`SAE.load_from_disk` read. A run that was cut off goes on from its last checkpoint.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

import mechkit as mk
from mechkit.core.progress import showing
from mechkit.dictionaries import fidelity, load_sae, read_rows
from mechkit.dictionaries.sae_training import Plan, train_sae
from mechkit.report.console import plain, table, terminal
from mechkit.zoo import processing_of
from mechkit.zoo.folder import origin_of


def main(
    texts: Annotated[list[Path] | None, typer.Argument(help="UTF-8 text files; tinyworld needs none.")] = None,
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the Hub.")] = "tinyworld",
    hook: Annotated[str, typer.Option(help="Where the SAE reads.")] = "blocks.2.hook_resid_post",
    features: Annotated[int, typer.Option(min=2, help="How many features it has.")] = 1024,
    l0: Annotated[float, typer.Option(help="Mean number of active features per token.")] = 16.0,
    rows: Annotated[int, typer.Option(min=1, help="Tokens to train on, drawn with replacement.")] = 1_000_000,
    width: Annotated[int, typer.Option(min=2, help="Tokens per row of text.")] = 96,
    seed: Annotated[int, typer.Option(help="Of the text, the first weights and the draws.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps.")] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("sae"),
    runs: Annotated[Path, typer.Option(help="Where checkpoints go.")] = Path("runs/sae"),
) -> None:
    """Train the SAE that is not there yet, and print how good it is."""
    loaded = mk.load(model, device=device)
    tokens = text_of(loaded, texts or [], width, seed)
    n_test = max(1, len(tokens) // 20)
    with showing(lambda items, label, total: track(items, label, total)):
        if not out.is_dir():
            plan = Plan(d_features=features, l0=l0, n_rows=rows, seed=seed)
            stored = read_rows(loaded, [hook], tokens[n_test:])[hook]
            metadata = about(loaded, model, hook, width)
            train_sae(out, stored, plan, metadata=metadata, runs=runs, device=str(loaded.cfg.device))
        show(loaded, out, tokens[:n_test])


def text_of(model: Any, texts: list[Path], width: int, seed: int) -> torch.Tensor:
    """Rows of token ids: those of the files, or tinyworld's training text."""
    if texts:
        return packed(model, texts, width)
    origin = origin_of(model)
    if origin is None or origin.name != "tinyworld":
        raise typer.BadParameter("give text files; only tinyworld has a text of its own")
    from mechkit.zoo.tinyworld import corpus

    return corpus.batch(4000, width=width, seed=seed)


def packed(model: Any, texts: list[Path], width: int) -> torch.Tensor:
    """The files' tokens in rows; where the model has a BOS, one before each file and at the start of each row."""
    bos = [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []
    room = width - len(bos)
    ids = [token for file in texts for token in [*bos, *_tokens(model, file.read_text(encoding="utf-8"))]]
    rows = [[*bos, *ids[start : start + room]] for start in range(0, len(ids) - room + 1, room)]
    if not rows:
        raise typer.BadParameter(f"{len(ids)} tokens of text do not fill one row of {width}")
    return torch.tensor(rows)


def _tokens(model: Any, text: str) -> list[int]:
    return model.to_tokens(text, prepend_bos=False, truncate=False)[0].tolist()


def about(model: Any, name: str, hook: str, width: int) -> dict[str, Any]:
    """What the SAE's metadata say of the model it was trained on."""
    origin = origin_of(model)
    found = {
        "hook_name": hook,
        "model_name": name,
        "context_size": width,
        "prepend_bos": bool(model.cfg.default_prepend_bos),
        "processing": processing_of(model),
    }
    return found if origin is None or origin.sha256 is None else {**found, "weights_sha256": origin.sha256}


def show(model: Any, folder: Path, tokens: torch.Tensor) -> None:
    """The SAE's scores as a table."""
    sae = load_sae(folder, model)
    (found,) = fidelity(model, [sae], tokens)
    lines = table("score", "value")
    for name, value in (
        ("features", f"{found.n_features}"),
        ("variance explained", f"{found.explained_variance:.3f}"),
        ("L0", f"{found.l0:.1f}"),
        ("dead", f"{found.dead:.1%}"),
        ("loss recovered", f"{found.recovered:.1%}"),
        ("loss, and with the SAE in place", f"{found.loss:.3f}, {found.loss_rebuilt:.3f} nats per token"),
    ):
        lines.add_row(name, value)
    console = terminal()
    console.print(f"{plain(found.hook)}, scored on {found.n_tokens} tokens it was not trained on")
    console.print(lines)
    console.print(f"  [dim]in {plain(str(folder))}[/dim]", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
