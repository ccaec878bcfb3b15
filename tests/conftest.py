"""Shapes are checked in every test: jaxtyping and beartype see each call of the library."""

import os

# Threads that spin while they wait starve each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("mechkit", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402


def tiny_model(**changes):
    """A random HookedTransformer of two layers; `changes` go to its configuration."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    settings = {
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "n_ctx": 12, "d_vocab": 30,
        "act_fn": "relu", "normalization_type": "LN", "seed": 1, "device": "cpu", "init_weights": True,
    }  # fmt: skip
    with torch.random.fork_rng():
        model = HookedTransformer(HookedTransformerConfig(**settings | changes))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            shift = 1.0 if name.endswith((".ln1.w", ".ln2.w", "ln_final.w")) else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data = shift + noise * (0.3 if parameter.ndim < 2 or "b_" in name else 0.25)
    return model.eval()


@pytest.fixture(scope="session")
def build():
    """`tiny_model` itself, for tests that need other shapes (a conftest cannot be imported by name)."""
    return tiny_model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def gpt2_like():
    """A random model of three layers with GPT-2's tokenizer, where that lies in `shared/data` above this folder."""
    folders = (up / "shared/data/gpt2_tokenizer/tokenizer.json" for up in Path(__file__).resolve().parents)
    found = next((path for path in folders if path.exists()), None)
    if found is None:
        pytest.skip("GPT-2's tokenizer is not in a folder shared/data above the tests")
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(found), bos_token=end, eos_token=end, unk_token=end, pad_token=end, padding_side="right"
    )
    model = tiny_model(n_layers=3, d_vocab=50257, n_ctx=32)
    model.tokenizer, model.cfg.tokenizer_prepends_bos = tokenizer, False  # set_tokenizer would ask the Hub
    return model


@pytest.fixture(scope="session")
def addition():
    import mechkit as mk

    return mk.load("addition")
