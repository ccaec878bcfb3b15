"""What is measured on: models by name, and pairs of prompts that differ from one token on.

>>> subject = gpt2_shape("cpu")
>>> pair = subject.pair(16, first=5, different=1)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mechkit as mk
from benchmarks.counting import counted

SEED = 0
"""Of all weights and prompts."""


@dataclass(frozen=True)
class Subject:
    """A model and what it is called in tables."""

    name: str
    """Name, with its shape where the weights are random."""
    model: Any
    """The HookedTransformer."""
    lengths: tuple[int, ...]
    """Prompt lengths to measure at."""
    twin: Callable[[], Any] | None = None
    """Builds the same model in `transformers`, where there is one."""

    def pair(self, n_tokens: int, *, first: int | None) -> mk.Pair:
        """A pair of random prompts that differ at token `first` alone, or at every token with None."""
        d_vocab, device = self.model.cfg.d_vocab, self.model.cfg.device
        generator = torch.Generator().manual_seed(SEED)
        clean = torch.randint(d_vocab, (1, n_tokens), generator=generator)
        corrupt = (clean + torch.randint(1, d_vocab, (1, n_tokens), generator=generator)) % d_vocab
        if first is not None:
            corrupt = torch.where(torch.arange(n_tokens) == first, corrupt, clean)
        pair = mk.Pair.from_tokens(clean, corrupt, [1], [2])
        return mk.Pair(pair.clean.to(device), pair.corrupt.to(device))


def gpt2_shape(device: str, lengths: tuple[int, ...] = (16,)) -> Subject:
    """12 layers, 12 heads, d_model 768, vocabulary 5,000, context 1,024, random weights."""
    model = random_model(
        device, n_layers=12, n_heads=12, d_model=768, d_head=64, d_mlp=3072, n_ctx=1024, d_vocab=5000,
        act_fn="gelu_new", normalization_type="LN",
    )  # fmt: skip
    return Subject("GPT-2-small shape", model, lengths, lambda: gpt2_twin(model))


def billion_shape(device: str, lengths: tuple[int, ...] = (16,)) -> Subject:
    """1.1 billion parameters: 16 layers, 32 heads on 8 key/value heads, d_model 2048, rotary, gated MLP, RMSNorm."""
    model = random_model(
        device, n_layers=16, n_heads=32, n_key_value_heads=8, d_model=2048, d_head=64, d_mlp=8192, n_ctx=1024,
        d_vocab=32_000, act_fn="silu", gated_mlp=True, normalization_type="RMS", final_rms=True,
        positional_embedding_type="rotary", rotary_dim=64,
    )  # fmt: skip
    return Subject("1-billion shape", model, lengths)


def addition(device: str) -> Subject:
    """The bundled model, on sums."""
    return _Sums("addition", mk.load("addition", device=device), (4,))


def stories(device: str, folder: Path, lengths: tuple[int, ...] = (16,)) -> Subject:
    """The model of a folder, such as stories260k."""
    model = mk.load(folder, device=device)
    fitting = tuple(length for length in lengths if length <= model.cfg.n_ctx)
    return Subject(folder.name, model, fitting)


class _Sums(Subject):
    def pair(self, n_tokens: int, *, first: int | None) -> mk.Pair:
        """35+59= against 35+51=, or against 12+40=, whose `+` and `=` cannot differ."""
        return mk.Pair.from_text(self.model, "35+59=", "35+51=" if first is not None else "12+40=")


def gpt2_twin(model):
    """The `transformers` GPT-2 with the weights of a HookedTransformer of GPT-2's kind."""
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = model.cfg
    config = GPT2Config(
        vocab_size=cfg.d_vocab, n_positions=cfg.n_ctx, n_embd=cfg.d_model, n_layer=cfg.n_layers, n_head=cfg.n_heads,
        tie_word_embeddings=False, layer_norm_epsilon=cfg.eps, use_cache=False,
    )  # fmt: skip
    twin = GPT2LMHeadModel(config)
    with torch.no_grad():
        for ours, theirs in _weights(model, twin):
            theirs.copy_(ours)
    return twin.to(cfg.device).eval()


def _weights(model, twin) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weights of a HookedTransformer, laid out as in GPT-2, beside the tensors they go to."""
    inner = twin.transformer
    yield model.W_E, inner.wte.weight
    yield model.W_pos, inner.wpe.weight
    yield model.W_U.T, twin.lm_head.weight
    yield from _norm(model.ln_final, inner.ln_f)
    for ours, theirs in zip(model.blocks, inner.h, strict=True):
        attn, mlp = ours.attn, ours.mlp
        yield from _norm(ours.ln1, theirs.ln_1)
        yield from _norm(ours.ln2, theirs.ln_2)
        wide = [W.permute(1, 0, 2).flatten(1) for W in (attn.W_Q, attn.W_K, attn.W_V)]
        yield torch.cat(wide, 1), theirs.attn.c_attn.weight
        yield torch.cat([b.flatten() for b in (attn.b_Q, attn.b_K, attn.b_V)]), theirs.attn.c_attn.bias
        yield attn.W_O.flatten(0, 1), theirs.attn.c_proj.weight
        yield attn.b_O, theirs.attn.c_proj.bias
        yield mlp.W_in, theirs.mlp.c_fc.weight
        yield mlp.b_in, theirs.mlp.c_fc.bias
        yield mlp.W_out, theirs.mlp.c_proj.weight
        yield mlp.b_out, theirs.mlp.c_proj.bias


def _norm(ours, theirs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield ours.w, theirs.weight
    yield ours.b, theirs.bias


def random_model(device: str, **shape):
    """A HookedTransformer of some shape with random weights, without gradients."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(seed=SEED, device=device, **shape)
    return HookedTransformer(config).eval().requires_grad_(False)


@contextmanager
def gradients_allowed(model) -> Iterator[None]:
    """Parameters that ask for gradients inside the block, as those of a loaded model do; none are left behind."""
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)


@torch.no_grad()
def one_pass(model, prompts: mk.Prompts) -> tuple[float, float]:
    """Largest |logit| of the unedited model, which errors are relative to, and FLOPs of its matrix products."""
    logits, flops, _ = counted(lambda: model(prompts.tokens))
    return float(logits.abs().max()), flops


def subjects(device: str, size: str, folder: Path | None) -> list[Subject]:
    """The models to measure: GPT-2-small shape and addition, in full also a folder's and, on CUDA, a billion."""
    lengths = (16,) if size == "small" else (16, 128, 1024)
    found = [gpt2_shape(device, lengths), addition(device)]
    if folder is not None:
        found.append(stories(device, folder, lengths[:2]))
    if device == "cuda" and size == "full":
        found.append(billion_shape(device, lengths))
    return found
