"""Scores of dictionaries on text, against plain loops over the model's own hooks."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from mechkit.dictionaries import fidelity, neurons, read_rows
from mechkit.dictionaries.on_text import ROWS, Stand, text_loss
from mechkit.dictionaries.transcoder import Transcoder, mlp_hooks

TOKENS = torch.randint(0, 30, (ROWS + 6, 7), generator=torch.Generator().manual_seed(0))
"""More rows than go into one forward pass."""
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def sae():
    made = StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, device="cpu"))
    made.cfg.metadata.hook_name = HOOK
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@pytest.fixture(scope="module")
def rough(model):
    """Half of the neurons of layer 1."""
    whole = neurons(model)[1]
    return Transcoder(1, whole.W_enc[:, :12], whole.b_enc[:12], whole.W_dec[:12], whole.b_dec, *mlp_hooks(model, 1))


def loss_of(model, tokens, hooks=()):
    """Mean of every token's own surprise, one at a time."""
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks)).detach()
    terms = [
        -float(logits[i, pos].log_softmax(-1)[tokens[i, pos + 1]])
        for i in range(len(tokens))
        for pos in range(tokens.shape[1] - 1)
    ]
    return sum(terms) / len(terms)


def test_fidelity_of_an_sae_is_what_a_plain_loop_finds(model, sae):
    (found,) = fidelity(model, [sae], TOKENS)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
        x = cache[HOOK].reshape(-1, 16)
        active, rebuilt = sae.encode(x), sae.decode(sae.encode(x))
    missed = sum(float((a - b).square().sum()) for a, b in zip(rebuilt, x, strict=True))
    spread = sum(float((a - x.mean(0)).square().sum()) for a in x)
    # float32 sums of 500 positions, in another order.
    assert found.explained_variance == pytest.approx(1 - missed / spread, rel=1e-4)
    assert found.l0 == pytest.approx(sum(int((row > 0).sum()) for row in active) / len(x))
    assert found.dead == pytest.approx(sum(not bool((column > 0).any()) for column in active.T) / 40)
    assert found.n_tokens == TOKENS.numel()
    assert found.loss == pytest.approx(loss_of(model, TOKENS), rel=1e-5)
    spliced = [(HOOK, lambda y, hook: sae.decode(sae.encode(y)))]
    assert found.loss_rebuilt == pytest.approx(loss_of(model, TOKENS, spliced), rel=1e-5)
    zeroed = [(HOOK, lambda y, hook: 0 * y)]
    assert found.loss_zeroed == pytest.approx(loss_of(model, TOKENS, zeroed), rel=1e-5)
    share = (found.loss_zeroed - found.loss_rebuilt) / (found.loss_zeroed - found.loss)
    assert found.recovered == pytest.approx(share)


def test_all_neurons_explain_everything_and_half_of_them_less(model, rough):
    whole, half = fidelity(model, [neurons(model)[1], rough], TOKENS)
    assert whole.explained_variance == pytest.approx(1, abs=1e-6)
    assert whole.recovered == pytest.approx(1, abs=1e-4)  # a difference of losses, of some 1e-7 each
    assert half.explained_variance < 0.9
    assert half.loss_rebuilt != pytest.approx(half.loss, rel=1e-4)
    assert (half.hook, half.n_features) == ("blocks.1.hook_mlp_out", 12)


def test_a_transcoder_in_place_reads_its_own_input(model, rough):
    seen = {}

    def keep(name):
        return lambda value, hook: seen.__setitem__(name, value.detach())

    hooks = [(rough.hook_in, keep("x")), *Stand.of(rough).hooks(), ("blocks.1.hook_resid_post", keep("after"))]
    mid = [("blocks.1.hook_resid_mid", keep("mid"))]
    model.run_with_hooks(TOKENS[:3], fwd_hooks=mid + hooks)
    wanted = seen["mid"] + rough.decode(rough.activations(seen["x"]))
    assert torch.allclose(seen["after"], wanted, atol=1e-5)  # one addition in float32


def test_rows_are_the_activations_of_every_position_in_order(model):
    hooks = ["blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"]
    rows = read_rows(model, hooks, TOKENS, dtype=torch.float32)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    for hook in hooks:
        # Batches of other sizes may be multiplied in another order.
        assert torch.allclose(rows[hook], cache[hook].reshape(TOKENS.numel(), -1), atol=1e-6)
    assert read_rows(model, hooks[:1], TOKENS)[hooks[0]].dtype == torch.float16


def test_layers_above_the_last_hook_are_not_run(model):
    def never(value, hook):
        raise AssertionError(hook.name)

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", never)]):
        read_rows(model, [HOOK], TOKENS[:2])
        with pytest.raises(AssertionError, match="resid_pre"):
            read_rows(model, [HOOK, "blocks.1.hook_mlp_out"], TOKENS[:2])
    assert read_rows(model, ["ln_final.hook_normalized"], TOKENS[:2])["ln_final.hook_normalized"].shape == (14, 16)


def test_the_loss_of_text_counts_every_row_alike(model):
    apart = sum(text_loss(model, row[None]) for row in TOKENS) / len(TOKENS)
    assert text_loss(model, TOKENS) == pytest.approx(apart, rel=1e-5)
