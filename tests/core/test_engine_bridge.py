"""A sweep on a TransformerBridge gives the numbers of the HookedTransformer with the same weights.

The plain loop is no reference here: hooks registered on a bridge's points directly see tensors without a head axis,
and a new value returned at `resid_mid` reaches the MLP alone.
"""

from copy import deepcopy

import pytest
import torch

import mechkit as mk
from mechkit.core.loop import loop
from mechkit.core.site import HEAD_NAMES, Site
from tests.core.runs import BLOCK_NAMES, EVEN, RAGGED, TOP_NAMES, edit, mixed_runs, restored, shapes, single_runs

CLOSE = 2e-5
"""Relative to the largest logit: the bridge's modules sum in another order."""


@pytest.fixture(scope="module")
def models():
    """A bridge around a random GPT-2, and the HookedTransformer with its weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import GPT2Config, GPT2LMHeadModel

    config = HookedTransformerConfig(
        n_layers=3, d_model=16, n_heads=2, d_head=8, d_mlp=24, n_ctx=12, d_vocab=30, act_fn="gelu_new",
        normalization_type="LN", device="cpu",
    )  # fmt: skip
    sizes = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_inner": 24, "n_positions": 12, "vocab_size": 30}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
        for parameter in hf.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
        twin = HookedTransformer(config)
    twin.load_state_dict(convert_gpt2_weights(hf, config), strict=False)
    bridge = build_bridge_from_module(deepcopy(hf), "GPT2LMHeadModel", hf_config=hf.config, tokenizer=None)
    bridge.enable_compatibility_mode(no_processing=True)
    return bridge, twin


def assert_is_the_twin(models, prompts, runs, base=(), read=()):
    bridge, twin = models
    wanted, slices, _ = loop(twin, prompts, runs, [mk.logit_diff, mk.loss], base, read)
    found = mk.sweep(bridge, prompts, runs, [mk.logit_diff, mk.loss], base=base, read=read)
    scale = twin(prompts.tokens).abs().max().item()
    torch.testing.assert_close(found.scores, wanted, rtol=0, atol=CLOSE * scale)
    for site, values in slices.items():
        torch.testing.assert_close(found.read[site], values, rtol=0, atol=CLOSE * scale)
    assert ((wanted[1:] - wanted[:1]).abs() > 1e-4).flatten(1).any(1).float().mean() > 0.7


def known_sites(models, prompts, names):
    return {site: shape for site, shape in shapes(models[1], prompts).items() if site.name in names}


RESIDUAL = {*TOP_NAMES, *BLOCK_NAMES} - HEAD_NAMES - {"resid_mid", "ln1.normalized", "ln1.scale"}


@pytest.mark.parametrize("prompts", [EVEN, RAGGED], ids=["even", "ragged"])
def test_edits_without_heads_are_the_twins(models, prompts):
    known = known_sites(models, prompts, RESIDUAL)
    runs = [[], *single_runs(known, prompts, "bridge", 2), [mk.Zero("L2.mlp_out@-1"), mk.Scale("embed@s", 2.0)]]
    assert_is_the_twin(models, prompts, runs, [mk.Scale("L0.mlp_post@1", 2.0)], [Site.parse("L1.resid_post@-1")])


@pytest.mark.parametrize("name", ["q", "k", "v", "z", "pattern", "attn_scores", "result"])
def test_edits_of_heads_are_the_twins(models, name):
    runs = [
        [],
        *(
            [mk.Scale(f"L{layer}.{head}{name}@{pos}", 1.5)]
            for layer, head, pos in ((0, "H1.", -1), (1, "", 2), (1, "H0.", "s"))
        ),
        [mk.Zero(f"L1.H1.{name}"), mk.Scale("L0.resid_pre@1", 2.0)],
    ]
    twin = deepcopy(models[1])
    twin.set_use_attn_result(name == "result")
    assert_is_the_twin((models[0], twin), EVEN, runs, read=[Site.parse(f"L1.H0.{name}@-1")])


def test_runs_of_several_edits_are_the_twins(models):
    found = loop(models[1], EVEN, [[]], [mk.logit_diff], [], restored(models[1]))[1]
    slices = {str(site): values[0] for site, values in found.items()}
    assert_is_the_twin(models, EVEN, [[], *mixed_runs(shapes(models[1], EVEN), EVEN, slices)])


@pytest.mark.parametrize("pos", [None, -1, 1, "s"])
def test_an_edit_of_resid_mid_reaches_the_residual_stream(models, pos):
    site = Site("resid_mid", layer=1, pos=pos)
    runs = [[], *([edit(kind, site, [2, 5, 16], EVEN)] for kind in ("zero", "replace", "add", "scale"))]
    assert_is_the_twin(models, EVEN, runs, read=[Site.parse("L1.resid_mid@-1"), Site.parse("L2.resid_pre@1")])


def test_an_edit_that_reaches_nothing_on_a_bridge_is_an_error(models):
    with pytest.raises(ValueError, match=r"no site 'L1\.mlp_sideways'"):
        mk.sweep(models[0], EVEN, [[mk.Zero("L1.mlp_sideways")]], mk.logit_diff)
