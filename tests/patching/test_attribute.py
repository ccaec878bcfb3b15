"""Estimates equal their definitions, and exact patching where the model is linear; a random control does not pass."""

import pytest
import torch

import mechkit as mk
from mechkit.core.interventions import Replace
from tests.conftest import tiny_model
from tests.patching.estimates import (
    ARCHITECTURES,
    CLEAN,
    CLOSE,
    CORRUPT,
    GROUPED,
    LLAMA,
    OPTIONS,
    PAIR,
    ROTARY,
    by_definition,
    exactly,
    sites_of,
    slices,
)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_attribution_patching_is_change_times_gradient_at_every_kind_of_site(changes):
    model = tiny_model(**changes)
    found = mk.attribute(model, PAIR, sites_of(model), mk.logit_diff)
    assert found.sites == mk.expand(model, sites_of(model), PAIR.corrupt)
    torch.testing.assert_close(found.scores, by_definition(model, found.sites), **CLOSE)
    assert found.scores.abs().max() > 0.01
    gap = mk.logit_diff(model(CLEAN), PAIR.clean) - mk.logit_diff(model(CORRUPT), PAIR.corrupt)
    torch.testing.assert_close(found.gap, gap.detach())
    assert found.unit == "logits"


@pytest.mark.parametrize("changes", [{}, LLAMA, ARCHITECTURES["Gemma 2"]], ids=["plain", "Llama", "Gemma 2"])
def test_head_results_need_no_flag(changes):
    sites = ["L*.H*.result@*", "L0.result@s", "L1.H1.result#*", "L0.result@2#3"]
    found = mk.attribute(tiny_model(**changes), PAIR, sites, mk.logit_diff)
    flagged = tiny_model(**changes, use_attn_result=True)
    torch.testing.assert_close(found.scores, by_definition(flagged, found.sites), **CLOSE)
    torch.testing.assert_close(mk.attribute(flagged, PAIR, sites, mk.logit_diff).scores, found.scores, **CLOSE)
    assert found.scores[-1].abs().max() > 0


def linear_model():
    """Attention that looks at all tokens alike, no norm, MLPs far from their kink: linear from end to end."""
    model = tiny_model(normalization_type=None, dtype=torch.float64)
    for block in model.blocks:
        block.attn.W_Q.data.zero_()
        block.attn.b_Q.data.zero_()
        block.mlp.b_in.data += 100
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "integrated", "steps": 2}, {"method": "integrated", "path": "activations", "steps": 1}],
    ids=["gradient", "inputs", "activations"],
)
def test_on_a_linear_model_an_estimate_is_exact_patching(options):
    model = linear_model()
    sites = ["L*.resid_pre@*", "L*.resid_mid@s", "L*.H*.z@3", "L*.H*.v@s", "L*.mlp_out", "L1.mlp_post#*", "L*.attn_out"]
    found = mk.attribute(model, PAIR, sites, mk.logit_diff, **options)
    exact = exactly(model, sites)
    torch.testing.assert_close(found.scores, exact, rtol=1e-9, atol=1e-9)
    assert exact.abs().max() > 0.1
    bent = mk.Metric("sine", "1", "last", lambda logits, prompts: mk.logit_diff(logits, prompts).sin())
    assert not torch.allclose(mk.attribute(model, PAIR, sites, bent).scores, exactly(model, sites, bent), rtol=0.01)


def test_small_changes_are_estimated_to_first_order():
    """A pair corrupted by noise of size h: the estimate is wrong by h², so by less than a thousandth of it."""
    model = tiny_model(act_fn="gelu", dtype=torch.float64)
    pair = mk.Pair.from_edits(PAIR.clean, [mk.Noise("embed@s", 1e-5), mk.Noise("L0.attn_out@3", 1e-5)])
    sites = ["L*.resid_pre@*", "L*.H*.z@*", "L*.H*.q@*", "L*.H*.k@*", "L1.mlp_post"]
    exact = mk.patch(model, pair, sites, mk.logprob).scores
    for options in ({}, {"qk_fix": True}, {"method": "integrated", "path": "activations", "steps": 3}):
        found = mk.attribute(model, pair, sites, mk.logprob, **options)
        assert (found.scores - exact).abs().max() < 1e-3 * exact.abs().max()
    assert exact.abs().max() > 1e-8


def test_noise_is_denoise_of_the_reversed_pair():
    model = tiny_model()
    found = mk.attribute(model, PAIR, "L*.H*.z@*", mk.logit_diff, mode="noise")
    reverse = mk.attribute(model, mk.Pair(PAIR.corrupt, PAIR.clean), "L*.H*.z@*", mk.logit_diff)
    assert torch.equal(found.scores, reverse.scores)
    assert torch.equal(found.gap, reverse.gap)
    assert not torch.allclose(found.scores, mk.attribute(model, PAIR, "L*.H*.z@*", mk.logit_diff).scores)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_equals_its_prompts_one_by_one_and_lengths_may_differ(options):
    model, direct = tiny_model(act_fn="gelu"), options.get("method") == "direct"
    tokens = (
        [[3, 1, 4, 1, 5], [9, 2, 6], [2, 7, 1, 8, 2], [1, 1, 6]],
        [[3, 1, 7, 1, 5], [9, 2, 8], [2, 7, 1, 3, 2], [1, 3, 6]],
    )
    pair = mk.Pair.from_tokens(*tokens, [7, 8, 9, 3], [1, 2, 3, 4], spans={"s": [(1, 3), (0, 2), (2, 4), (1, 3)]})
    sites = ["L0.H*.z@s", "L1.mlp_out@-1"] + ([] if direct else ["L0.H*.q@s", "L1.H*.k@-1"])
    whole = mk.attribute(model, pair, sites, mk.logit_diff, **options)
    parts = mk.attribute(model, pair, sites, mk.logit_diff, batch_size=1, **options)
    torch.testing.assert_close(parts.scores, whole.scores, **CLOSE)
    alone = [mk.attribute(model, pair[i], sites, mk.logit_diff, **options) for i in range(4)]
    torch.testing.assert_close(torch.cat([one.scores for one in alone], 1), whole.scores, **CLOSE)
    torch.testing.assert_close(torch.cat([one.gap for one in alone]), whole.gap, **CLOSE)
    assert whole.scores.abs().max(0).values.min() > 0


def test_spans_of_prompts_of_different_lengths():
    model = tiny_model()
    clean, corrupt = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [[3, 3, 1, 7, 1, 5], [9, 8, 6, 5, 3, 1]]
    pair = mk.Pair(
        mk.Prompts.from_tokens(clean, [7, 8], [1, 2], spans={"s": [(1, 3), (2, 4)]}),
        mk.Prompts.from_tokens(corrupt, [7, 8], [1, 2], spans={"s": [(2, 4), (2, 4)]}),
    )
    found = mk.attribute(model, pair, ["L*.H*.z@s", "L0.mlp_post@s[0]#*", "L1.resid_pre@-1"], mk.logit_diff)
    torch.testing.assert_close(found.scores, by_definition_uneven(model, found.sites, pair), **CLOSE)
    with pytest.raises(ValueError, match="differ in length"):
        mk.attribute(model, pair, "L*.H*.z@s", mk.logit_diff, method="integrated")


def by_definition_uneven(model, sites, pair):
    names = list(dict.fromkeys(site.hook for site in sites))
    _, clean = model.run_with_cache(pair.clean.tokens, names_filter=names)
    kept = {}
    keep = lambda x, hook: kept.setdefault(hook.name, x).retain_grad()  # noqa: E731
    logits = model.run_with_hooks(pair.corrupt.tokens, fwd_hooks=[(name, keep) for name in names])
    mk.logit_diff(logits, pair.corrupt).sum().backward()
    scores = torch.zeros(len(sites), len(pair))
    for row, site in enumerate(sites):
        for i in range(len(pair)):
            new, old = slices(clean[site.hook], site, pair.clean, i), slices(kept[site.hook], site, pair.corrupt, i)
            scores[row, i] = ((new - old) * slices(kept[site.hook].grad, site, pair.corrupt, i)).sum()
    return scores.detach()


def test_integrated_gradients_are_the_mean_over_midpoints_of_the_embeddings():
    model = tiny_model(act_fn="gelu")
    sites = ["L*.resid_pre@*", "L*.H*.z@*", "L1.mlp_post#*"]
    midpoints = [(k + 0.5) / 4 for k in range(4)]
    for batch_size in (3, 7, 64):
        options = {"method": "integrated", "steps": 4, "batch_size": batch_size}
        found = mk.attribute(model, PAIR, sites, mk.logit_diff, **options)
        torch.testing.assert_close(found.scores, by_definition(model, found.sites, slopes_at=midpoints), **CLOSE)


@pytest.mark.parametrize("path", ["inputs", "activations"])
def test_integrated_gradients_are_complete_and_the_error_falls_as_steps_squared(path):
    """Inputs: at the input. Activations: every layer's residual stream, each of which is patched whole."""
    model = tiny_model(act_fn="gelu", dtype=torch.float64)
    layers = [0] if path == "inputs" else [0, 1]
    for layer in layers:
        errors = []
        for steps in (8, 32, 128):
            options = {"method": "integrated", "steps": steps, "path": path}
            found = mk.attribute(model, PAIR, f"L{layer}.resid_pre@*", mk.logprob, **options)
            errors.append(float((found.scores.sum(0) - found.gap).abs().max() / found.gap.abs().max()))
        assert errors[2] < 1e-3
        assert errors[1] < errors[0] / 8
        assert errors[2] < errors[1] / 8
    plain = mk.attribute(model, PAIR, "L0.resid_pre@*", mk.logprob)
    assert float((plain.scores.sum(0) - plain.gap).abs().max() / plain.gap.abs().max()) > 0.05


def test_activations_of_any_hook_sum_to_patching_all_of_it():
    model = tiny_model(act_fn="gelu", dtype=torch.float64)
    whole = ["L1.z", "L0.attn_out", "L0.k", "L1.pattern", "L1.mlp_post", "L1.resid_mid"]
    parts = ["L1.H*.z@*", "L0.attn_out@*", "L0.H*.k@*", "L1.H*.pattern@*<-*", "L1.mlp_post@*#*", "L1.resid_mid@*#*"]
    exact = exactly(model, whole)
    options = {"method": "integrated", "path": "activations", "steps": 40}
    for part, expected in zip(parts, exact, strict=True):
        found = mk.attribute(model, PAIR, part, mk.logit_diff, **options).scores.sum(0)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


QK = {
    "plain": {},
    "Llama": LLAMA,
    "rotary, adjacent pairs": ROTARY | {"rotary_dim": 8, "rotary_adjacent_pairs": True},
    "ungrouped": GROUPED | {"ungroup_grouped_query_attention": True},
    "soft-capped scores": {"attn_scores_soft_cap": 0.3},
    "ALiBi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "QK-norm": LLAMA | {"use_qk_norm": True},
    "attention sinks": {"use_attention_sinks": True},
    "local": {"use_local_attn": True, "attn_types": ["local", "global"], "window_size": 2},
    "bidirectional": {"attention_dir": "bidirectional"},
    "split inputs": {"use_split_qkv_input": True},
}


def through_patterns(model, sites, pair):
    """(patched pattern - pattern) · d metric / d pattern, site by site, under the edits of the corrupt run."""
    kept, patterns = {}, [mk.Site("pattern", layer).hook for layer in range(model.cfg.n_layers)]
    keep = lambda x, hook: kept.setdefault(hook.name, x).retain_grad()  # noqa: E731
    edits = [hook for edit in pair.edits for hook in edit.hooks(model, pair.corrupt)]
    logits = model.run_with_hooks(pair.corrupt.tokens, fwd_hooks=[*edits, *((name, keep) for name in patterns)])
    mk.logit_diff(logits, pair.corrupt).sum().backward()
    values = mk.activations(model, pair.clean, sites)
    runs = [[Replace(site, values[site])] for site in sites]
    read = mk.sweep(model, pair.corrupt, runs, mk.logit_diff, base=pair.edits, read="L*.pattern").read
    scores = []
    for run, site in enumerate(sites):
        old, new = kept[mk.Site("pattern", site.layer).hook], read[mk.Site("pattern", site.layer)][run]
        scores.append(((new - old) * old.grad).sum((1, 2, 3)))
    return torch.stack(scores).detach()


@pytest.mark.parametrize("changes", QK.values(), ids=QK)
def test_the_qk_fix_is_the_change_of_pattern_times_its_gradient(changes):
    model = tiny_model(**changes)
    sites = ["L0.H*.q@*", "L*.H*.k@3", "L0.q", "L1.k@s", "L1.H1.q@-1#2", "L0.H0.k#*"]
    sites += ["L*.H*.rot_q@2", "L1.H*.rot_k"] if "blocks.0.attn.hook_rot_q" in model.hook_dict else []
    found = mk.attribute(model, PAIR, sites, mk.logit_diff, qk_fix=True)
    torch.testing.assert_close(found.scores, through_patterns(model, found.sites, PAIR), **CLOSE)
    assert not torch.allclose(mk.attribute(model, PAIR, sites, mk.logit_diff).scores, found.scores, rtol=0.01)


def test_the_qk_fix_sees_a_query_that_a_saturated_softmax_hides():
    """One layer of attention without norms is linear from the pattern on: the fix is exact patching, AtP near 0."""
    model = tiny_model(n_layers=1, attn_only=True, normalization_type=None, dtype=torch.float64)
    model.blocks[0].attn.W_Q.data *= 40
    sites = ["L0.H*.q@*", "L0.H*.k@*"]
    exact = exactly(model, sites)
    fixed = mk.attribute(model, PAIR, sites, mk.logit_diff, qk_fix=True).scores
    plain = mk.attribute(model, PAIR, sites, mk.logit_diff).scores
    torch.testing.assert_close(fixed, exact, rtol=1e-9, atol=1e-9)
    assert exact.abs().max() > 0.05
    assert (plain - exact).abs().mean() > 0.3 * exact.abs().mean()


def test_the_qk_fix_keeps_the_edits_of_the_corrupt_run():
    model = tiny_model(dtype=torch.float64)
    edits = [mk.Noise("L0.k@2", 0.5), mk.Scale("L1.H0.attn_scores@4", 2.0), mk.Noise("embed", 0.5)]
    for pair in (mk.Pair.from_edits(PAIR.clean, edits), mk.Pair(PAIR.clean, PAIR.corrupt, edits)):
        found = mk.attribute(model, pair, ["L*.H*.q@*", "L*.H*.k@*"], mk.logit_diff, qk_fix=True)
        expected = through_patterns(model, found.sites, pair)
        torch.testing.assert_close(found.scores, expected.to(found.scores.dtype), rtol=1e-9, atol=1e-12)
