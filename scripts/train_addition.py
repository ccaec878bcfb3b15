"""Train the addition model and its transcoders from seeds, or check the stored ones.

    python scripts/train_addition.py --check      every score of the stored weights, in seconds
    python scripts/train_addition.py              train all of it again, on a CPU in under 20 minutes

A run that was cut off goes on where it stopped (checkpoints in --runs).
"""

import argparse
import time
from pathlib import Path

import torch
from rich.progress import track

from mechkit.core.progress import showing
from mechkit.dictionaries import load_transcoders, measure, sample_rows, train_transcoder
from mechkit.dictionaries.scores import Scores, accuracy, hooked_rows
from mechkit.dictionaries.transcoder import mlp_hooks
from mechkit.zoo import load_folder, processing_of, save_folder
from mechkit.zoo.addition import tasks
from mechkit.zoo.addition.fourier import peaks, spectrum
from mechkit.zoo.card import CARD, fill_card
from mechkit.zoo.folder import WEIGHTS, file_hash, fold
from mechkit.zoo.tokenizer import word_tokenizer
from mechkit.zoo.training import new_model, train

HOME = Path(tasks.__file__).parent
SEED = 1
MODEL = {
    "n_layers": 2,
    "d_model": 128,
    "n_heads": 4,
    "d_head": 32,
    "d_mlp": 512,
    "n_ctx": 5,
    "d_vocab": len(tasks.TOKENS),
    "act_fn": "relu",
    "normalization_type": "LN",
    "default_prepend_bos": False,
    "model_name": "addition",
}
BATCH = 1000
STEPS = 1500
LEARNING_RATE = 3e-3
FEATURES, L0, TRANSCODER_STEPS, TRANSCODER_RATE, ROWS = 448, 10, 2000, 5e-3, 1024
POSITION_WEIGHTS = (0.1, 0.02, 0.2, 0.68)
"""How often a transcoder sees the first operand, the +, the second operand and the =."""
KNOWS = f"the numbers 0 to {tasks.N_NUMBERS - 1} and the words {', '.join(tasks.WORDS[1:])}"
ALL_SUMS = [(a, b) for a in range(tasks.N_OPERANDS) for b in range(tasks.N_OPERANDS)]


def train_model(out: Path, runs: Path) -> None:
    """Train, fold and save the model; what folding does to the log-probabilities is reported."""
    model = new_model(SEED, device="cpu", **MODEL)
    train(
        model,
        lambda generator: tasks.sample_batch(BATCH, generator),
        n_steps=STEPS,
        seed=SEED,
        learning_rate=LEARNING_RATE,
        checkpoint=runs / "model.safetensors",
    )
    tokens = tasks.sums_tokens(ALL_SUMS)
    before = log_probabilities(model, tokens)
    fold(model)
    print(f"folding moved log-probabilities by {(log_probabilities(model, tokens) - before).abs().max():.1e}")
    about = {
        "tokenizer": "words",
        "called": "the addition model",
        "knows": KNOWS,
        "made_by": "scripts/train_addition.py",
        "seed": SEED,
        "steps": STEPS,
        "mix": tasks.MIX,
    }
    save_folder(
        model,
        out,
        processing="folded",
        tokenizer_json=word_tokenizer(tasks.TOKENS).to_str(pretty=True),
        about=about,
    )


@torch.no_grad()
def log_probabilities(model, tokens):
    """Log-probabilities after the last position."""
    return model(tokens)[:, -1].log_softmax(-1)


def train_transcoders(out: Path) -> None:
    """Train one transcoder per layer on the stored model's activations on the seen sums."""
    model = load_folder(out, name="addition", device="cpu")
    hooks = [mlp_hooks(model, layer) for layer in range(model.cfg.n_layers)]
    tokens = tasks.sums_tokens(tasks.seen_sums())
    weight = torch.tensor(POSITION_WEIGHTS).repeat(len(tokens))
    for layer, (x, y) in enumerate(zip(*hooked_rows(model, hooks, tokens), strict=True)):
        transcoder = train_transcoder(
            sample_rows(x.flatten(0, 1), y.flatten(0, 1), n_rows=ROWS, seed=SEED, weight=weight),
            d_features=FEATURES,
            l0=L0,
            n_steps=TRANSCODER_STEPS,
            seed=SEED,
            learning_rate=TRANSCODER_RATE,
            label=f"training the transcoder of layer {layer}",
            metadata={
                "hook_name": hooks[layer][0],
                "hook_name_out": hooks[layer][1],
                "model_name": "addition",
                "prepend_bos": False,
                "processing": processing_of(model),
                "weights_sha256": file_hash(out / WEIGHTS),
            },
        )
        transcoder.save_model(out / "transcoders" / f"layer_{layer}")


def check(folder: Path) -> str:
    """Every score of the stored weights, as the lines of the model card."""
    model = load_folder(folder, name="addition", device="cpu")
    transcoders = load_transcoders(folder / "transcoders", model)
    unseen = tasks.unseen_sums()
    scores = measure(
        model,
        transcoders,
        tasks.sums_tokens(unseen),
        tasks.sums_answers(unseen),
        everywhere=tasks.sums_tokens(ALL_SUMS),
    )
    seen = accuracy(model, tasks.sums_tokens(tasks.seen_sums()), tasks.sums_answers(tasks.seen_sums()))
    shares = spectrum(model.W_E[: tasks.N_OPERANDS])
    lines = [
        f"unseen sums right            {scores.accuracy:.2%} of {len(unseen)}",
        f"seen sums right              {seen:.2%} of {len(tasks.seen_sums())}",
        f"right with all MLPs replaced {scores.accuracy_replaced:.2%} of the unseen",
        *layer_lines(scores, transcoders),
        "strongest periods            " + ", ".join(f"{p:.4g}: {shares[p]:.1%}" for p in list(shares)[:10]),
        "higher than both neighbours  " + ", ".join(f"{p:.4g}" for p in peaks(shares)[:7]),
        f"size of all files            {folder_size(folder) / 2**20:.2f} MiB",
        f"sha256 of the weights        {file_hash(folder / WEIGHTS)}",
    ]
    return "\n".join(lines)


def layer_lines(scores: Scores, transcoders) -> list[str]:
    """One line per transcoder."""
    return [
        f"layer {t.layer} transcoder           {t.d_features} features, at `=`: variance unexplained "
        f"{scores.fvu[i]:.4f}, mean L0 {scores.l0[i]:.1f}; dead {scores.dead[i]:.1%}; "
        f"L0 by position {', '.join(f'{l0:.1f}' for l0 in scores.l0_everywhere[i])}"
        for i, t in enumerate(transcoders)
    ]


def folder_size(folder: Path) -> int:
    """Bytes of all files but Python's."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only score what is stored")
    parser.add_argument("--out", type=Path, default=HOME, help="the model folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/addition"), help="where checkpoints go")
    return parser.parse_args()


def main() -> None:
    """Train what is asked for, then print the scores."""
    arguments = parse()
    torch.set_num_threads(1)  # sums in one order: the same seeds give the same bits
    if not arguments.check:
        start = time.perf_counter()
        with showing(lambda items, label, total: track(items, label, total)):
            train_model(arguments.out, arguments.runs)
            train_transcoders(arguments.out)
        print(f"trained in {time.perf_counter() - start:.0f} s")
        fill_card(HOME / CARD, arguments.out, check(arguments.out))
    print(check(arguments.out))


if __name__ == "__main__":
    main()
