"""Train the small language model "tinyworld" from a seed, or score the stored one.

    python scripts/train_tinyworld.py --check      every held-out score of the stored weights, in under a minute
    python scripts/train_tinyworld.py              train it again, on two CPU cores in about an hour
    python scripts/train_tinyworld.py --hash       make the training text again and print its hash

A run that was cut off goes on where it stopped (checkpoints in --runs).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from rich.progress import track

from mechkit.core.files import write_atomic
from mechkit.core.progress import progress, showing
from mechkit.zoo import load_folder, save_folder
from mechkit.zoo.card import CARD, fill_card
from mechkit.zoo.folder import CONFIG, TOKENIZER, WEIGHTS, file_hash, fold
from mechkit.zoo.language import text_loss
from mechkit.zoo.tinyworld import behaviours, corpus, text
from mechkit.zoo.tokenizer import word_tokenizer
from mechkit.zoo.training import new_model, train

HOME = Path(corpus.__file__).parent
SEED = 1
MODEL = {
    "n_layers": 4,
    "d_model": 192,
    "n_heads": 6,
    "d_head": 32,
    "d_mlp": 768,
    "n_ctx": 96,
    "act_fn": "relu",
    "normalization_type": "LN",
    "model_name": "tinyworld",
}
ROWS, WIDTH = 32, 96
STEPS = 8400
STAGES = ((2200, 7600, corpus.FIRST_MIX), (6200, 7600, corpus.SECOND_MIX), (STEPS, STEPS, corpus.MIX))
"""Up to which step, the length of the learning rate's cosine, and the shares of documents."""
LEARNING_RATE = 2e-3
WEIGHT_DECAY, WARM_UP, MAX_NORM = 0.1, 200, 1.0
N_PARTS = 2
"""A batch is halved, and each half computed in one thread."""
ABOUT = {
    "tokenizer": "words",
    "any_case": True,
    "called": "tinyworld",
    "knows": "the words of its tokenizer (model.tokenizer.get_vocab())",
    "made_by": "scripts/train_tinyworld.py",
    "seed": SEED,
}


def draw_batch(mix, generator: torch.Generator):
    """The next batch of the training text, as `train` wants it."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return (corpus.batch(ROWS, width=WIDTH, seed=seed, mix=mix),)


def train_model(out: Path, runs: Path, steps: int, device: str) -> None:
    """Train, fold and save the model, in half precision; losses go to a file in `runs`."""
    runs.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / TOKENIZER, tokenizer_json())
    model = new_model(SEED, device=device, d_vocab=len(text.ids()), **MODEL)
    with (runs / "loss.txt").open("a", buffering=1) as log:
        for stop, length, mix in STAGES:
            train(
                model,
                partial(draw_batch, mix),
                n_steps=length,
                stop=min(stop, steps),
                seed=SEED,
                loss=text_loss,
                learning_rate=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                n_warmup=WARM_UP,
                max_norm=MAX_NORM,
                n_parts=N_PARTS,
                checkpoint=runs / "model.safetensors",
                save_every=200,
                report=lambda step, loss: print(step, f"{loss:.4f}", file=log),
            )
    save_folder(
        fold_measured(model),
        out,
        processing="folded",
        tokenizer_json=tokenizer_json(),
        about={**ABOUT, "steps": steps, "first_batch_sha256": text_hash(1), "text_sha256": text_hash(steps)},
        dtype=torch.float16,
    )


@torch.no_grad()
def fold_measured(model):
    """The model, folded; what that does to the log-probabilities of a batch is reported."""
    tokens = corpus.batch(8, width=WIDTH, seed=0).to(model.cfg.device)
    before = model(tokens).log_softmax(-1)
    fold(model)
    print(f"folding moved log-probabilities by {(model(tokens).log_softmax(-1) - before).abs().max():.1e}")
    return model


def text_hash(steps: int) -> str:
    """Hash of the first `steps` batches of the training text, chained as `corpus.batch_hash` says."""
    generator, found = torch.Generator().manual_seed(SEED), ""
    for step in progress(range(steps), "hashing the training text"):
        mix = next(mix for stop, _, mix in STAGES if step < stop)
        found = corpus.batch_hash(*draw_batch(mix, generator), found)
    return found


def tokenizer_json() -> str:
    """The tokenizer of every word of the world."""
    made = word_tokenizer(corpus.all_words(), pieces=text.PIECES, spaced=True)
    return str(made.to_str(pretty=True)) + "\n"


def check(folder: Path) -> str:
    """Every score of the stored weights, as the lines of the model card."""
    model = load_folder(folder, name="tinyworld", device="cpu")
    rows = behaviours.measure(model)
    about = json.loads((folder / CONFIG).read_text())["mechkit"]
    lines = [
        *(str(row) for row in rows),
        f"size of the weights          {(folder / WEIGHTS).stat().st_size / 2**20:.2f} MiB",
        f"sha256 of the weights        {file_hash(folder / WEIGHTS)}",
        f"sha256 of the training text  {about['text_sha256']}",
    ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only score what is stored")
    parser.add_argument("--hash", action="store_true", help="only make the training text again, and hash it")
    parser.add_argument("--out", type=Path, default=HOME, help="the model folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/tinyworld"), help="where checkpoints go")
    parser.add_argument("--steps", type=int, default=STEPS, help="batches of 3,072 tokens")
    parser.add_argument("--device", default="cpu", help="where to train")
    return parser.parse_args()


def main() -> None:
    """Train what is asked for, then print the scores."""
    arguments = parse()
    if arguments.hash:
        print(text_hash(arguments.steps))
        return
    if not arguments.check:
        torch.set_num_threads(1)  # sums in one order: the same seeds give the same bits
        start = time.perf_counter()
        with showing(lambda items, label, total: track(items, label, total)):
            train_model(arguments.out, arguments.runs, arguments.steps, arguments.device)
        print(f"trained in {time.perf_counter() - start:.0f} s")
        fill_card(HOME / CARD, arguments.out, check(arguments.out))
    print(check(arguments.out))


if __name__ == "__main__":
    main()
