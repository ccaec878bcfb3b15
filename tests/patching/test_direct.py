"""Direct effects sum to the metric, each equals its own definition, and a live norm's is what removal does."""

import pytest
import torch

import mechkit as mk
from tests.conftest import tiny_model
from tests.core.architectures import GROUPED, LLAMA, ROTARY, fold

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
PROMPTS = mk.Prompts.from_tokens(TOKENS, [7, 8], [9, 10], spans={"s": [(1, 3), (0, 2)]})

ARCHITECTURES = {
    "LayerNorm with weights": {"eps": 0.03},
    "RMSNorm": {"normalization_type": "RMS", "final_rms": True},
    "no norm": {"normalization_type": None},
    "attention only": {"attn_only": True},
    "parallel": {"parallel_attn_mlp": True},
    "grouped queries": GROUPED,
    "Llama": LLAMA,
    "rotary": ROTARY,
    "shortformer": {"positional_embedding_type": "shortformer"},
    "ALiBi": {"positional_embedding_type": "alibi"},
    "another output vocabulary": {"d_vocab_out": 17},
    "soft-capped logits": {"output_logits_soft_cap": 1.5},
    "SoLU with its norm": {"act_fn": "solu_ln"},
    "mixture of experts": {"num_experts": 3, "experts_per_token": 2, "gated_mlp": True, "normalization_type": "RMS"},
    "results computed": {"use_attn_result": True},
    "one layer": {"n_layers": 1},
}


def before_the_cap(model, metric, prompts=PROMPTS):
    """The metric of the logits that a soft-cap would bend."""
    kept = {}
    model.run_with_hooks(prompts.tokens, fwd_hooks=[("unembed.hook_out", lambda x, hook: kept.update(x=x))])
    return metric(kept["x"], prompts).detach()


def assert_sums(found, metric):
    size = found.scores.abs().sum(0)
    torch.testing.assert_close(found.gap, metric)
    assert ((found.scores.sum(0) - metric).abs() / size).max() < 1e-6, "float32: a few 1e-7 a term"
    assert ((found.scores.sum(0) - metric).abs()).max() < 1e-5


@pytest.mark.parametrize("metric", [mk.logit_diff, mk.logit], ids=["logit_diff", "logit"])
@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_components_and_biases_sum_to_the_metric(changes, metric):
    model = tiny_model(**changes)
    found = mk.attribute(model, PROMPTS, None, metric, method="direct")
    assert_sums(found, before_the_cap(model, metric))
    assert (found.scores.abs().max(1).values > 0).sum() >= len(found) - 1  # b_U of a difference may be one
    assert found.unit == "logits"


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["LayerNorm", "RMSNorm"])
def test_folded_models_too(changes):
    model = tiny_model(**changes)
    plain = mk.attribute(model, PROMPTS, None, mk.logit_diff, method="direct")
    fold(model)
    found = mk.attribute(model, PROMPTS, None, mk.logit_diff, method="direct")
    assert_sums(found, before_the_cap(model, mk.logit_diff))
    torch.testing.assert_close(found.gap, plain.gap, rtol=1e-3, atol=1e-4)


def by_hand(model, cache, written, i):
    """(out - mean) / scale · w · (W_U[:, answer] - W_U[:, wrong]) at the last token of prompt i."""
    direction = model.W_U[:, PROMPTS.answers[i, 0]] - model.W_U[:, PROMPTS.wrong[i, 0]]
    out = written[i, -1] - written[i, -1].mean()
    return (out / cache["ln_final.hook_scale"][i, -1] * model.ln_final.w) @ direction


def test_each_component_is_its_output_through_the_frozen_norm():
    model = tiny_model()
    _, cache = model.run_with_cache(TOKENS)
    found = mk.attribute(model, PROMPTS, None, mk.logit_diff, method="direct")
    for site, scores in zip(found.sites, found.scores, strict=True):
        if site.name in ("ln_final.b", "b_U"):
            continue
        if site.name == "z":
            written = cache[site.hook][:, :, site.head] @ model.blocks[site.layer].attn.W_O[site.head]
        elif site.name == "b_O":
            written = model.blocks[site.layer].attn.b_O.expand(2, 5, 16)
        else:
            written = cache[site.hook]
        torch.testing.assert_close(scores, torch.stack([by_hand(model, cache, written, i) for i in (0, 1)]).detach())
    unembed = model.W_U @ torch.eye(30)
    for i, scores in enumerate(found.where(name="ln_final.b").scores.T):
        direction = unembed[:, PROMPTS.answers[i, 0]] - unembed[:, PROMPTS.wrong[i, 0]]
        torch.testing.assert_close(scores[0], (model.ln_final.b @ direction).detach())


def test_a_live_norm_gives_what_taking_the_component_out_does():
    model = tiny_model(output_logits_soft_cap=1.5)
    sites = [
        "embed",
        "L*.H*.z",
        "L1.H0.result",
        "L*.mlp_out@s",
        "L0.mlp_post#*",
        "L0.result#3",
        "L*.b_O",
        "b_U",
        "ln_final.b",
    ]
    found = mk.attribute(model, PROMPTS, sites, mk.logprob, method="direct", norm="live")
    _, cache = model.run_with_cache(TOKENS)
    base = before_the_cap(model, mk.logprob)

    def without(written):
        kept = {}
        hooks = [
            ("blocks.1.hook_resid_post", lambda x, hook: x - written),
            ("unembed.hook_out", lambda x, hook: kept.update(x=x)),
        ]
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        return base - mk.logprob(kept["x"], PROMPTS)

    embed = found.where(name="embed").scores[0]
    torch.testing.assert_close(embed, without(cache["hook_embed"]).detach())
    for layer in (0, 1):
        for head in (0, 1):
            written = cache[f"blocks.{layer}.attn.hook_z"][:, :, head] @ model.blocks[layer].attn.W_O[head]
            scores = found.where(name="z", layer=layer, head=head).scores[0]
            torch.testing.assert_close(scores, without(written).detach())
    torch.testing.assert_close(
        found.where(name="result", head=0).scores[0], found.where(name="z", layer=1, head=0).scores[0]
    )
    torch.testing.assert_close(found.where(name="b_O", layer=1).scores[0], without(model.blocks[1].attn.b_O).detach())
    assert found.where(name="b_U").scores.abs().max() > 0
    assert not found.where(name="mlp_out").scores.any(), "the span ends before the token that is read"
    frozen = mk.attribute(model, PROMPTS, sites, mk.logit, method="direct")
    live = mk.attribute(model, PROMPTS, sites, mk.logit, method="direct", norm="live")
    assert not torch.allclose(frozen.scores, live.scores, rtol=0.01)


def test_without_a_norm_live_is_frozen():
    model = tiny_model(normalization_type=None)
    frozen, live = (
        mk.attribute(model, PROMPTS, None, mk.logit, method="direct", norm=norm) for norm in ("frozen", "live")
    )
    torch.testing.assert_close(frozen.scores, live.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, LLAMA, {"act_fn": "solu_ln"}], ids=["plain", "Llama", "SoLU"])
def test_neurons_sum_to_their_mlp_and_heads_to_their_attention(changes):
    model = tiny_model(**changes)
    ask = lambda sites: mk.attribute(model, PROMPTS, sites, mk.logit_diff, method="direct").scores  # noqa: E731
    for layer in (0, 1):
        model.blocks[layer].mlp.b_out.data.zero_()
        torch.testing.assert_close(
            ask(f"L{layer}.mlp_post#*").sum(0), ask(f"L{layer}.mlp_out")[0], rtol=1e-4, atol=1e-5
        )
        heads = ask([f"L{layer}.H*.z", f"L{layer}.b_O"]).sum(0)
        torch.testing.assert_close(heads, ask(f"L{layer}.attn_out")[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ask(f"L{layer}.H*.result#*").sum(0), ask(f"L{layer}.z")[0], rtol=1e-4, atol=1e-5)
    writes = ask(["L0.resid_post", "L1.attn_out", "L1.mlp_out"]).sum(0)
    torch.testing.assert_close(writes, ask("L1.resid_post")[0], rtol=1e-4, atol=1e-5)


def test_only_the_tokens_that_the_metric_reads_count():
    model = tiny_model()
    found = mk.attribute(model, PROMPTS, "L*.H*.z@*", mk.logit_diff, method="direct")
    assert not found.where(pos=[0, 1, 2, 3]).scores.any()
    whole = mk.attribute(model, PROMPTS, "L*.H*.z", mk.logit_diff, method="direct")
    assert torch.equal(found.where(pos=4).scores, whole.scores)
    earlier = mk.attribute(model, PROMPTS, None, lambda logits: logits[:, 2, 7] - 2 * logits[:, 0, 3], method="direct")
    torch.testing.assert_close(earlier.scores.sum(0), earlier.gap, rtol=1e-5, atol=1e-5)


def test_of_a_pair_the_clean_prompts_are_taken_and_lengths_may_differ():
    model = tiny_model()
    clean = mk.Prompts.from_tokens([[3, 1, 4, 1, 5], [9, 2, 6]], [7, 8], [9, 10])
    pair = mk.Pair(clean, mk.Prompts.from_tokens([[3, 1, 7, 1, 5], [9, 2, 5]], [7, 8], [9, 10]))
    found = mk.attribute(model, pair, None, mk.logit_diff, method="direct")
    for i in (0, 1):
        alone = mk.attribute(model, clean[i], None, mk.logit_diff, method="direct")
        torch.testing.assert_close(found.scores[:, i : i + 1], alone.scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.gap[i : i + 1], before_the_cap(model, mk.logit_diff, clean[i]))


def test_its_rows_feed_the_next_question():
    model = tiny_model()
    found = mk.attribute(model, PROMPTS, None, mk.logit_diff, method="direct")
    again = mk.attribute(model, PROMPTS, found.sites, mk.logit_diff, method="direct")
    assert again.sites == found.sites
    assert torch.equal(again.scores, found.scores)


def test_questions_that_have_no_direct_answer_are_clear_errors():
    model = tiny_model()
    ask = lambda model, sites, metric=mk.logit_diff: mk.attribute(model, PROMPTS, sites, metric, method="direct")  # noqa: E731
    with pytest.raises(ValueError, match="not linear in the logits"):
        ask(model, None, mk.logprob)
    with pytest.raises(ValueError, match=r"'L0.H0.q' writes nothing"):
        ask(model, "L*.H*.q")
    with pytest.raises(ValueError, match=r"no bias 'L7.b_O'"):
        ask(model, "L7.b_O")
    with pytest.raises(ValueError, match="norms after attention and MLP"):
        ask(tiny_model(**LLAMA, use_normalization_before_and_after=True), None)
    with pytest.raises(ValueError, match="norms after attention and MLP"):
        ask(tiny_model(original_architecture="Olmo2ForCausalLM", normalization_type="RMS"), None)
    two = mk.Prompts.from_tokens(TOKENS, [[7, 8], [8, 9]], [9, 10])
    with pytest.raises(ValueError, match="answer 0"):
        mk.attribute(model, two, None, mk.logit_diff, method="direct")
