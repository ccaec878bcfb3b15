"""What does a scan of SAE features cost, against the bare forward pass and encoding; how long do questions take?

    python -m benchmarks --only features --size full

Bare is the model as far as the SAE's hook and `sae.encode`, in the batches of the scan and with activations encoded in
the best of several sizes. The pass is what `scan` does per token, parts on disk included; the whole call also puts the
parts together and writes the index, most of which does not grow with the corpus. Counts and strongest
activations of every feature are compared first. SAEs are random, with features that fire on 1 in 10,000 to 1 in 50
tokens. In full, a million tokens of the bundled model are scanned in a process of their own, whose peak is reported.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import mechkit as mk
from benchmarks.counting import counted
from benchmarks.measure import left_out, timed
from benchmarks.models import SEED, random_model
from benchmarks.table import number, spread
from mechkit.features import FeatureIndex, merging, scan
from mechkit.features.reading import values_at

WANTED = 0.8
"""Tokens per second of the pass over those of the bare one, at least."""
ROUNDS = {"small": 2, "full": 3}
N_TOKENS = {"small": (16_384, 4_096), "full": (131_072, 16_384)}
"""Tokens of stories260k, and of the GPT-2-small shape."""
CHUNKS = (1 << 20, 1 << 21, 1 << 22, 1 << 24)
"""Activations that the bare side may encode together."""
BATCH = 4096
MILLION = 1_000_000
QUESTION, OPEN = 0.005, 1.0
"""Seconds that a question and the first opening may take."""


@dataclass(frozen=True)
class Subject:
    """A model with an SAE, and what they are run on."""

    name: str
    """Name, with its shape."""
    model: Any
    """The HookedTransformer."""
    sae: Any
    """An SAE of it."""
    tokens: Tensor
    """Token ids `[row, pos]`."""

    @property
    def hook(self) -> str:
        """What the SAE reads."""
        return self.sae.cfg.metadata.hook_name


def feature_table(device: str, size: str, rate: float) -> str:
    """The tables, in Markdown. Raises AssertionError where the index and the bare encoding disagree."""
    head = [
        "model", "tokens, active a token", "bare CPU µs a token (min to max)", "floor", "pass (min to max)",
        "bare over pass", "wanted", "whole call", "bare over whole call",
    ]  # fmt: skip
    lines, questions = [head, ["---"] * len(head)], []
    for subject in subjects(device, size):
        with tempfile.TemporaryDirectory() as folder:
            lines.append(throughput(subject, Path(folder), device, ROUNDS[size], rate))
            questions = question_rows(subject, Path(folder) / "whole") or questions
    parts = ["## SAE feature scans", "", *(f"| {' | '.join(line)} |" for line in lines), "", *questions]
    return "\n".join([*parts, "", memory()] if size == "full" else parts)


def throughput(subject: Subject, folder: Path, device: str, rounds: int, rate: float) -> list[str]:
    """One row: the index compared with a dense encoding, then bare, pass and whole call in turn."""
    index = scan(subject.model, subject.sae, subject.tokens, folder / "whole", bos=False, batch=BATCH)
    n_active = _compared(subject, index)
    few = subject.tokens[: max(1, len(subject.tokens) // 8)]
    chunk = min(CHUNKS, key=lambda chunk: timed(lambda: bare(subject, chunk, few), device).busy)
    times = []
    for number_of in range(rounds):
        first = clock(device)
        bare(subject, chunk)
        times.append([clock(device) - first, *scanned(subject, folder / str(number_of), device)])
    ours = [[1e6 * one / subject.tokens.numel() for one in side] for side in zip(*times, strict=True)]
    flops = counted(lambda: bare(subject, chunk, subject.tokens[:4]))[1] / subject.tokens[:4].numel()
    ratio, whole = (median(one[0] / one[i] for one in times) for i in (1, 2))
    return [
        subject.name, f"{subject.tokens.numel():,}, {n_active:.0f}", spread(ours[0]), number(flops / rate * 1e6),
        spread(ours[1]), f"{ratio:.2f}", f"≥ {WANTED}: {'met' if ratio >= WANTED else 'NOT met'}", spread(ours[2]),
        f"{whole:.2f}",
    ]  # fmt: skip


@torch.no_grad()
def bare(subject: Subject, chunk: int, tokens: Tensor | None = None) -> None:
    """The model as far as the hook, and the SAE's encoder; nothing is kept."""
    tokens = subject.tokens if tokens is None else tokens
    for part in tokens.split(max(1, BATCH // tokens.shape[1])):
        x = values_at(subject.model, part, [subject.hook])[subject.hook].flatten(0, 1)
        for few in x.split(max(1, chunk // subject.sae.cfg.d_sae)):
            subject.sae.encode(few)


def scanned(subject: Subject, folder: Path, device: str) -> tuple[float, float]:
    """Seconds of the pass, and of the whole call with what puts the parts together."""
    spent = []

    def merge(*arguments: Any) -> None:
        first = clock(device)
        whole(*arguments)
        spent.append(clock(device) - first)

    whole, first = merging.merge, clock(device)
    with patch.object(merging, "merge", merge):
        scan(subject.model, subject.sae, subject.tokens, folder, bos=False, batch=BATCH)
    all_of_it = clock(device) - first
    return all_of_it - spent[0], all_of_it


def clock(device: str) -> float:
    """Seconds that the process has computed, on a CPU; on CUDA those on the clock, once all is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def _compared(subject: Subject, index: FeatureIndex) -> float:
    """Firings a token. Raises AssertionError where counts or strongest activations are not those of the index."""
    n, most = torch.zeros(index.n_features, dtype=torch.long), torch.zeros(index.n_features)
    for part in subject.tokens.split(max(1, BATCH // subject.tokens.shape[1])):
        x = values_at(subject.model, part, [subject.hook])[subject.hook].flatten(0, 1)
        for few in x.split(256):
            active = subject.sae.encode(few)
            n += (active != 0).sum(0).cpu()
            most = torch.maximum(most, active.abs().amax(0).float().cpu())
    apart = (n - torch.from_numpy(index.n_firings)).abs().sum() / n.sum()
    assert apart < 1e-4, f"{apart:.1e} of the firings are not those of the index"  # rounding turns a few at 0
    strongest = torch.from_numpy(index.max).nan_to_num()
    torch.testing.assert_close(most, strongest, rtol=1e-3, atol=1e-3)
    return float(n.sum()) / subject.tokens.numel()


def question_rows(subject: Subject, folder: Path) -> list[str]:
    """A table of the median CPU time of every question; none for a model without a tokenizer."""
    if subject.model.tokenizer is None:
        return []
    opened = timed(lambda: _first(folder), "cpu")
    index = FeatureIndex.open(folder, model=subject.model)
    index.label(3, "names of girls")
    some = index.n_firings.argsort()[-500:]
    ask: dict[str, Callable[[int], object]] = {
        "lookup of 12 tokens": lambda i: index.lookup(subject.tokens[0, :12].tolist()),
        "feature": lambda i: index.feature(int(some[i])),
        "examples": lambda i: index.examples(int(some[i])),
        "promoting": lambda i: index.promoting(int(subject.tokens[0, i])),
        "similar": lambda i: index.similar(int(some[i])),
        "cofiring": lambda i: index.cofiring(int(some[i])),
        "search": lambda i: index.search("girl"),
    }
    lines = [f"Questions to the index of {subject.name}, CPU ms (min to max):", "", "| question | ms | wanted |"]
    lines += [
        "| --- | --- | --- |",
        f"| first opening and answer | {number(opened.busy * 1e3)} | {_met(opened.busy, OPEN)} |",
    ]
    for name, answer in ask.items():
        answer(0)
        times = [timed(lambda i=i, answer=answer: answer(i), "cpu").busy for i in range(1, 21)]
        lines.append(f"| {name} | {spread([1e3 * one for one in times])} | {_met(median(times), QUESTION)} |")
        if name.startswith("lookup"):
            runs = [timed(lambda: _run(subject, subject.tokens[0, :12]), "cpu").busy for _ in times]
            own = median(times) - median(runs)
            lines.append(
                f"| of that, not the model's and the SAE's pass | {number(own * 1e3)} | {_met(own, QUESTION)} |"
            )
    return lines


@torch.no_grad()
def _run(subject: Subject, ids: Tensor) -> None:
    """What no lookup does without: the prompt through the model, and its features through the SAE and back."""
    subject.sae(values_at(subject.model, ids[None], [subject.hook])[subject.hook])


def _met(seconds: float, wanted: float) -> str:
    return f"< {wanted * 1e3:g}: {'met' if seconds < wanted else 'NOT met'}"


def _first(folder: Path) -> None:
    index = FeatureIndex.open(folder)
    index.feature(0)
    index.examples(0)


def memory() -> str:
    """The line about a million tokens of the bundled model, scanned in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.features"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        left_out("a million tokens", done.stderr.strip().splitlines()[-1] if done.stderr else "no reason given")
        return ""
    found = json.loads(done.stdout.splitlines()[-1])
    return (
        f"{found['n_tokens']:,} tokens of tinyworld at {found['hook']}, {found['n_features']:,} features, "
        f"{found['active']:.1f} active a token: peak {found['peak'] / 2**20:,.0f} MiB resident, weights and imports "
        f"({found['before'] / 2**20:,.0f} MiB) included (wanted < 2,048: "
        f"{'met' if found['peak'] < 2 << 30 else 'NOT met'}), {found['busy']:.0f} s CPU, {found['wall']:.0f} s on the "
        f"clock, {found['n_tokens'] / found['busy']:,.0f} tokens per CPU second"
    )


def a_million(n_tokens: int = MILLION) -> dict[str, Any]:
    """Scan the bundled model's own text, and say what it took."""
    from mechkit.dictionaries import saes_for
    from mechkit.zoo.tinyworld import corpus

    model = mk.load("tinyworld")
    sae = list(saes_for(model).values())[-1]
    width, n_parts = model.cfg.n_ctx, 64
    n_rows = -(-n_tokens // (width * n_parts))
    tokens = torch.cat([corpus.batch(n_rows, width=width, seed=SEED + i) for i in range(n_parts)])
    before = _peak()
    with tempfile.TemporaryDirectory() as folder:
        busy, wall = time.process_time(), time.perf_counter()
        index = scan(model, sae, tokens, Path(folder) / "index", bos=False)
        spent = {"busy": time.process_time() - busy, "wall": time.perf_counter() - wall}
        active = float(index.n_firings.sum()) / index.n_tokens
    about = {"n_tokens": tokens.numel(), "hook": index.hook, "n_features": index.n_features, "active": active}
    return {**about, "peak": _peak(), "before": before, **spent}


def _peak() -> int:
    """Most bytes that this process has held resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def subjects(device: str, size: str, d_sae: int = 16_384) -> list[Subject]:
    """stories260k where it lies in a folder shared/data above this one, and two layers of the GPT-2-small shape."""
    n_stories, n_gpt2 = N_TOKENS[size]
    found = []
    up = (folder / "shared/data/stories260k" for folder in Path(__file__).resolve().parents)
    folder = next((path for path in up if path.is_dir()), None)
    if folder is None:
        left_out("stories260k", "it is in no folder shared/data above this one")
    else:
        model = mk.load(folder, device=device)
        found.append(
            _subject("stories260k, 5 layers", model, model.cfg.n_layers - 1, _rows(model, n_stories, 256), d_sae)
        )
    shape = {"n_heads": 12, "d_model": 768, "d_head": 64, "d_mlp": 3072, "n_ctx": 1024, "d_vocab": 5000}
    model = random_model(device, n_layers=2, act_fn="gelu_new", normalization_type="LN", **shape)
    return [*found, _subject("GPT-2-small shape, 2 layers", model, 1, _rows(model, n_gpt2, 128), d_sae)]


def _rows(model: Any, n_tokens: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(model.cfg.d_vocab, (n_tokens // width, width), generator=generator).to(model.cfg.device)


def _subject(name: str, model: Any, layer: int, tokens: Tensor, d_sae: int) -> Subject:
    hook = f"blocks.{layer}.hook_resid_post"
    sae = random_sae(model, hook, d_sae, tokens[: max(1, 2048 // tokens.shape[1])])
    return Subject(f"{name}, {d_sae:,} features", model, sae, tokens)


@torch.no_grad()
def random_sae(model: Any, hook: str, d_sae: int, tokens: Tensor) -> Any:
    """An SAE with random directions, each of which fires on a share of the tokens drawn log-evenly."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    d_in, generator = model.cfg.d_model, torch.Generator().manual_seed(SEED)
    metadata = SAEMetadata(hook_name=hook, context_size=tokens.shape[1], prepend_bos=False)
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, metadata=metadata, device=str(model.cfg.device)))
    directions = torch.randn(d_sae, d_in, generator=generator) / d_in**0.5
    share = 1e-4 * 200 ** torch.rand(d_sae, generator=generator)
    sae.W_enc.data, sae.W_dec.data = directions.T.contiguous().to(sae.W_enc), directions.to(sae.W_dec)
    x = values_at(model, tokens, [hook])[hook].flatten(0, 1)
    for few in torch.arange(d_sae).split(1024):
        strength = (x @ sae.W_enc[:, few]).sort(0, descending=True).values
        rank = (share[few] * len(x)).long().clamp(max=len(x) - 1).to(x.device)
        sae.b_enc.data[few] = -strength.gather(0, rank[None])[0]
    return sae.eval()


if __name__ == "__main__":
    print(json.dumps(a_million()))
