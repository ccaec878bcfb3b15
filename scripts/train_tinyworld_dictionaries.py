"""Train the SAEs and transcoders of tinyworld with SAELens, or score the stored ones.

    python scripts/train_tinyworld_dictionaries.py --check     every score of the stored ones, in a minute or two
    python scripts/train_tinyworld_dictionaries.py             train those that are not there, in half an hour

Two residual layers have an SAE, every MLP a transcoder. They are trained on the model's activations on its training
text, which holds none of the held-out content, and scored on other text and on held-out prompts. A run that was cut off
goes on where it stopped: one dictionary after the other, each from its last checkpoint in --runs.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from mechkit.core.progress import showing
from mechkit.core.prompts import Pair, by_length
from mechkit.dictionaries import fidelity, load_transcoders, read_rows, saes_for
from mechkit.dictionaries.on_text import Stand, text_loss
from mechkit.dictionaries.sae_training import Plan, train_mlp_transcoder, train_sae
from mechkit.dictionaries.scores import accuracy, replacing
from mechkit.dictionaries.transcoder import mlp_hooks
from mechkit.zoo import load_folder, processing_of
from mechkit.zoo.card import CARD, fill_card
from mechkit.zoo.tinyworld import BUILDERS, corpus

HOME = Path(corpus.__file__).parent
SAE_HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
"""A middle layer and a late one."""
MIX: dict[str, float] = {
    "facts": 0.20,
    "ioi": 0.08,
    "induction": 0.10,
    "greater_than": 0.07,
    "in_context": 0.20,
    "sentences": 0.10,
    "agreement": 0.04,
    "pronouns": 0.04,
    "analogies": 0.04,
    "calendar": 0.04,
    "false_belief": 0.05,
    "sums": 0.04,
}
"""The share of each kind of document in the text that dictionaries are trained and scored on."""
WIDTH = 96
N_TRAIN, N_TEST = 4000, 400
"""Rows of text that dictionaries are trained and scored on."""
TRAIN_SEED, TEST_SEED = 10**12, 2 * 10**12
"""Seeds of texts that no other script draws."""
SAE_PLAN = Plan(d_features=2048, l0=16, n_rows=800_000)
TRANSCODER_PLAN = Plan(d_features=2048, l0=24, n_rows=800_000)
BEHAVIOURS = ("facts", "ioi", "induction", "in_context")
"""Held-out prompts whose answers are counted with dictionaries in place."""
N_PROMPTS = 200


def wanted(folder: Path, model) -> dict[Path, tuple[str, str]]:
    """The folder of every dictionary and the hooks it reads and rebuilds; those of an SAE are the same."""
    saes = {folder / "saes" / hook: (hook, hook) for hook in SAE_HOOKS}
    layers = range(model.cfg.n_layers)
    return saes | {folder / "transcoders" / f"layer_{layer}": mlp_hooks(model, layer) for layer in layers}


def train_missing(folder: Path, runs: Path, device: str, only: Sequence[str] = ("",)) -> None:
    """Train the dictionaries that are not there and whose path holds one of `only`."""
    model = load_folder(folder, name="tinyworld", device=device, dtype=torch.float32)
    chosen = lambda path: not path.is_dir() and any(part in str(path) for part in only)  # noqa: E731
    todo = {path: hooks for path, hooks in wanted(folder, model).items() if chosen(path)}
    if not todo:
        return
    tokens = corpus.batch(N_TRAIN, width=WIDTH, seed=TRAIN_SEED, mix=MIX)
    rows = read_rows(model, sorted({hook for hooks in todo.values() for hook in hooks}), tokens)
    for path, hooks in todo.items():
        start = time.perf_counter()
        train_one(path, hooks, rows, about(model), runs / path.name, device)
        print(f"{path.parent.name}/{path.name} trained in {time.perf_counter() - start:.0f} s")


def train_one(
    path: Path, hooks: tuple[str, str], rows: Mapping[str, Any], about: dict, runs: Path, device: str
) -> None:
    """An SAE where both hooks are the same, else a transcoder."""
    x, y = hooks
    if x == y:
        train_sae(path, rows[x], SAE_PLAN, metadata={"hook_name": x, **about}, runs=runs, device=device)
    else:
        metadata = {"hook_name": x, "hook_name_out": y, **about}
        train_mlp_transcoder(path, rows[x], rows[y], TRANSCODER_PLAN, metadata=metadata, runs=runs, device=device)


def about(model) -> dict[str, Any]:
    """What every dictionary's metadata say of the model it was trained on."""
    return {
        "model_name": "tinyworld",
        "prepend_bos": True,
        "context_size": WIDTH,
        "processing": processing_of(model),
        "weights_sha256": model.mechkit_origin.sha256,
    }


def check(folder: Path) -> str:
    """Every score of the stored dictionaries, as the lines of the model card."""
    model = load_folder(folder, name="tinyworld", device="cpu", dtype=torch.float32)
    saes, transcoders = saes_for(model), load_transcoders(folder / "transcoders", model)
    tokens = corpus.batch(N_TEST, width=WIDTH, seed=TEST_SEED, mix=MIX)
    named = {f"SAE {hook}": sae for hook, sae in saes.items()} | {f"transcoder {t.layer}": t for t in transcoders}
    found = fidelity(model, list(named.values()), tokens)
    lines = [
        f"{name:32} {one.n_features} features, variance explained {one.explained_variance:.3f}, L0 {one.l0:.1f}, dead "
        f"{one.dead:.1%}, loss recovered {one.recovered:.1%} ({one.loss_rebuilt:.3f})"
        for name, one in zip(named, found, strict=True)
    ]
    together = text_loss(model, tokens, replacing(transcoders))
    lines += [
        f"{'loss on this text, nats':32} {found[0].loss:.3f}; with all MLPs replaced {together:.3f}",
        f"{'positions measured':32} {found[0].n_tokens}",
    ]
    hooks = {"nothing replaced": [], "all MLPs replaced": replacing(transcoders)}
    hooks |= {f"SAE {hook}": Stand.of(sae).hooks() for hook, sae in saes.items()}
    pairs = {name: BUILDERS[name](N_PROMPTS, 0) for name in BEHAVIOURS}
    for name, some in hooks.items():
        shares = ", ".join(f"{task} {right(model, pair, some):.1%}" for task, pair in pairs.items())
        lines.append(f"{'right, ' + name:32} {shares}")
    size = sum(file.stat().st_size for part in ("saes", "transcoders") for file in (folder / part).rglob("*.*"))
    return "\n".join([*lines, f"{'size of all dictionaries':32} {size / 2**20:.2f} MiB"])


def right(model, pair: Pair, hooks: Sequence[tuple]) -> float:
    """Share of held-out clean prompts whose likeliest next token is the answer."""
    prompts, total = pair.clean, 0.0
    for rows in by_length(prompts):
        part = prompts[rows]
        assert part.answers is not None
        total += len(rows) * accuracy(model, part.tokens, part.answers[:, 0], hooks)
    return total / len(prompts)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only score what is stored")
    parser.add_argument("--out", type=Path, default=HOME, help="the model folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/tinyworld_dictionaries"), help="where checkpoints go")
    parser.add_argument("--only", nargs="+", help="only train, those whose path holds one of these: saes layer_0 ...")
    parser.add_argument("--device", default="cpu", help="where to train")
    return parser.parse_args()


def main() -> None:
    """Train what is not there, then print the scores."""
    arguments = parse()
    torch.set_num_threads(1)  # sums in one order: the same seeds give the same bits
    with showing(lambda items, label, total: track(items, label, total)):
        if not arguments.check:
            train_missing(arguments.out, arguments.runs, arguments.device, arguments.only or [""])
        if arguments.check or not arguments.only:
            scores = check(arguments.out)
            print(scores)
            if not arguments.check:
                fill_card(HOME / CARD, arguments.out, scores, "dictionaries")


if __name__ == "__main__":
    main()
