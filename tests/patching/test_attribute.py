"""Estimates equal their definitions, and exact patching where the model is linear; a random control does not pass."""

import pytest
import torch

import mechkit as mk
from mechkit.core.interventions import Replace
from mechkit.core.metrics import as_metric
from mechkit.core.places import cut, places
from mechkit.patching.attribution import check_options
from tests.conftest import tiny_model

CLEAN = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [2, 7, 1, 8, 2]])
CORRUPT = torch.tensor([[3, 1, 7, 1, 5], [9, 2, 8, 5, 1], [2, 7, 1, 3, 2]])
PAIR = mk.Pair.from_tokens(CLEAN, CORRUPT, [7, 8, 9], [1, 2, 3], spans={"s": [(1, 3), (0, 2), (2, 4)]})

ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
GROUPED = {"n_heads": 4, "d_head": 4, "n_key_value_heads": 2}
LLAMA = ROTARY | GROUPED | {"gated_mlp": True, "normalization_type": "RMS", "act_fn": "silu"}
ARCHITECTURES = {
    "layer norm": {"act_fn": "gelu"},
    "Llama": LLAMA,
    "parallel": {"parallel_attn_mlp": True, "act_fn": "gelu"},
    "attention only": {"attn_only": True},
    "bidirectional": {"attention_dir": "bidirectional"},
    "Gemma 2": LLAMA | {"use_normalization_before_and_after": True, "output_logits_soft_cap": 3.0},
}
# Float32 sums of some hundred terms in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def sites_of(model):
    """Sites of every kind."""
    found = ["embed@*", "L*.resid_pre@*", "L*.resid_post", "L*.attn_out@s", "L1.H*.z@*", "L*.H*.q@-1", "L*.H*.k@s[0]"]
    found += [
        "L*.H*.v@*",
        "L*.H*.pattern",
        "L1.H1.pattern@-1<-2",
        "L1.z",
        "L0.z#3",
        "L1.resid_pre@2#*",
        "L*.H*.attn_scores",
    ]
    if not model.cfg.attn_only:
        found += ["L*.mlp_out@-3:", "L1.mlp_post#*", "L0.mlp_pre@2#5"]
    if "blocks.0.hook_resid_mid" in model.hook_dict:
        found += ["L*.resid_mid@*"]
    return found


def slices(x, site, prompts, i):
    """The slice of one prompt."""
    return cut(x[i : i + 1], site, places(site, prompts)[i])


def by_definition(model, sites, metric=mk.logit_diff, pair=PAIR, slopes_at=(0.0,)):
    """(clean - corrupt) · d metric / d site, by retained gradients of plain hooked passes; embeddings on the way."""
    embeds = {}
    for side in ("clean", "corrupt"):
        tokens = getattr(pair, side).tokens
        embeds[side] = model.run_with_cache(tokens)[1]["hook_embed"].detach()
    names = list(dict.fromkeys(site.hook for site in sites))
    _, clean = model.run_with_cache(pair.clean.tokens, names_filter=names)
    _, corrupt = model.run_with_cache(pair.corrupt.tokens, names_filter=names)
    slopes = dict.fromkeys(names, 0)
    for share in slopes_at:
        kept, point = {}, embeds["corrupt"] + share * (embeds["clean"] - embeds["corrupt"])
        keep = lambda x, hook, kept=kept: kept.setdefault(hook.name, x).retain_grad()  # noqa: E731
        start = ("hook_embed", lambda x, hook, point=point: point.clone().requires_grad_())
        logits = model.run_with_hooks(pair.corrupt.tokens, fwd_hooks=[start, *((name, keep) for name in names)])
        metric(logits, pair.corrupt).sum().backward()
        for name in names:
            slope = torch.zeros_like(kept[name]) if kept[name].grad is None else kept[name].grad
            slopes[name] = slopes[name] + slope / len(slopes_at)
    model.zero_grad()
    scores = torch.zeros(len(sites), len(pair))
    for row, site in enumerate(sites):
        for i in range(len(pair)):
            new, old = slices(clean[site.hook], site, pair.clean, i), slices(corrupt[site.hook], site, pair.corrupt, i)
            change = torch.where(new == old, 0, new - old)
            scores[row, i] = (change * slices(slopes[site.hook], site, pair.corrupt, i)).sum()
    return scores


def exactly(model, sites, metric=mk.logit_diff, pair=PAIR):
    """Every site of the corrupt run replaced by its clean value, by `sweep`."""
    sites = mk.expand(model, sites, pair.corrupt)
    values = mk.activations(model, pair.clean, sites)
    runs = [[], *([Replace(site, values[site])] for site in sites)]
    scores = mk.sweep(model, pair.corrupt, runs, metric).scores
    return scores[1:] - scores[0]


def spearman(a, b):
    """Rank correlation of `a` with the exact `b`, where a patch does anything at all."""
    kept = b.abs() > 1e-5 * b.abs().max()
    ranks = [x[kept].argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


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


OPTIONS = [
    {},
    {"qk_fix": True, "grad_drop": True},
    {"method": "integrated", "steps": 3},
    {"method": "integrated", "steps": 3, "path": "activations"},
    {"method": "relp"},
    {"method": "direct"},
    {"method": "direct", "norm": "live"},
]


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


def cancelling_model():
    """Layer 0's MLP writes coordinate 0; layer 1's MLP reads it and writes its negative: the two paths cancel."""
    model = tiny_model(normalization_type=None, n_heads=1)
    for name, parameter in model.named_parameters():
        if name != "embed.W_E":
            parameter.data.zero_()
    mlps = [block.mlp for block in model.blocks]
    mlps[0].W_in.data[1, 0] = mlps[0].W_out.data[0, 0] = mlps[1].W_in.data[0, 0] = 1.0
    mlps[1].W_out.data[0, 0] = -1.0
    for mlp in mlps:
        mlp.b_in.data[0] = 100.0
    model.unembed.W_U.data[0, [7, 8, 9]] = 1.0
    return model


def test_grad_drop_sees_a_component_whose_paths_cancel():
    """Its own layer left out: 0. The other left out: the direct path alone, counted whole, as 1 / (L - 1) is 1."""
    model = cancelling_model()
    plain = mk.attribute(model, PAIR, "L0.mlp_out@-1", mk.logit_diff).scores
    dropped = mk.attribute(model, PAIR, "L0.mlp_out@-1", mk.logit_diff, grad_drop=True).scores
    alone = mk.attribute(model, PAIR, "L0.mlp_out@-1", mk.logit_diff, method="direct").scores
    corrupt = mk.attribute(model, PAIR.corrupt, "L0.mlp_out@-1", mk.logit_diff, method="direct").scores
    assert plain.abs().max() < 1e-5
    torch.testing.assert_close(dropped, (alone - corrupt).abs(), rtol=1e-4, atol=1e-4)
    assert dropped.max() > 0.1


def test_grad_drop_is_the_mean_size_over_layers_times_l_over_l_minus_1():
    model, sites = tiny_model(n_layers=3), ["L*.H*.z@*", "L*.mlp_out@*", "L*.resid_pre@2"]
    found = mk.attribute(model, PAIR, sites, mk.logit_diff, grad_drop=True)
    total = 0
    for layer in range(3):
        cut = model_without_gradient(model, layer)
        total = total + by_definition(cut, found.sites).abs()
        cut.reset_hooks()
    torch.testing.assert_close(found.scores, total / 3 * (3 / 2), **CLOSE)


def model_without_gradient(model, layer):
    """Nothing flows back from what this layer adds; a hook of the test keeps its own gradient, which is then 0."""

    def cut(x, hook):
        x.register_hook(torch.zeros_like) if x.requires_grad else None

    for name in ("attn_out", "mlp_out"):
        model.add_hook(f"blocks.{layer}.hook_{name}", cut)
    return model


def test_relp_is_change_times_its_coefficient():
    """Against coefficients from copies of the norms and activation functions, frozen by hand."""
    model = tiny_model(act_fn="gelu")
    sites = ["L*.resid_pre@*", "L*.mlp_post#*", "L*.H*.z@*", "L*.H*.v@*", "L*.H*.q@*"]
    found = mk.attribute(model, PAIR, sites, mk.logit_diff, method="relp")
    frozen = [name for name in model.hook_dict if name.endswith(("hook_pattern", "hook_scale"))]
    for name in frozen:
        model.add_hook(name, lambda x, hook: x.detach())
    functions = [block.mlp.act_fn for block in model.blocks]
    for block in model.blocks:
        block.mlp.act_fn = lambda x, f=block.mlp.act_fn: x * (f(x) / x).detach()
    try:
        torch.testing.assert_close(found.scores, by_definition(model, found.sites), **CLOSE)
    finally:
        model.reset_hooks()
        for block, function in zip(model.blocks, functions, strict=True):
            block.mlp.act_fn = function
    assert found.scores.abs().max() > 0.01
    assert not found.where(name="q").scores.any()


@pytest.fixture(scope="module")
def sums(addition):
    """Sums, sites of the addition model and their exact scores; the control is a random model's exact scores."""
    pair = mk.tasks.addition(20, seed=0)
    sites = ["L*.resid_pre@*", "L*.attn_out@*", "L*.mlp_out@*", "L*.H*.z@*"]
    return addition, pair, sites, mk.patch(addition, pair, sites, mk.logit_diff).scores


def test_on_the_addition_model_integrated_gradients_agree_with_patching_where_gradients_do_less(sums):
    """Spearman over sites and prompts. Random scores agree with nothing."""
    model, pair, sites, exact = sums
    runs = {
        "AtP": {},
        "RelP": {"method": "relp"},
        "inputs": {"method": "integrated", "steps": 10},
        "activations": {"method": "integrated", "steps": 10, "path": "activations"},
    }
    agree = {
        name: spearman(mk.attribute(model, pair, sites, mk.logit_diff, **options).scores, exact)
        for name, options in runs.items()
    }
    control = spearman(torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)), exact)
    assert agree["activations"] > 0.85, agree
    assert agree["inputs"] > 0.8, agree
    assert agree["RelP"] > 0.7, agree
    assert agree["activations"] > agree["inputs"] > agree["AtP"] > 0.45, agree
    assert agree["RelP"] > agree["AtP"], agree
    assert abs(control) < 0.1


def test_gradients_of_another_model_do_not_agree_with_this_ones_patching(sums):
    from copy import deepcopy

    model, pair, sites, exact = sums
    other = deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        shuffled = torch.randperm(parameter.numel(), generator=generator)
        parameter.data = parameter.data.flatten()[shuffled].reshape(parameter.shape)
    options = {"method": "integrated", "steps": 10, "path": "activations"}
    assert spearman(mk.attribute(other, pair, sites, mk.logit_diff, **options).scores, exact) < 0.5


COSTS = [
    ({}, 2, 1),
    ({"qk_fix": True}, 2, 1),
    ({"grad_drop": True}, 2, 2),
    ({"method": "relp"}, 2, 1),
    ({"method": "integrated", "steps": 5}, 2 + 1, 1),
    ({"method": "integrated", "steps": 5, "batch_size": 3}, 2 + 5, 5),
    ({"method": "direct"}, 1, 1),
    ({"method": "direct", "norm": "live"}, 1, 0),
]


@pytest.mark.parametrize(("options", "forwards", "backwards"), COSTS, ids=str)
def test_passes_are_those_documented(options, forwards, backwards):
    model, passed = tiny_model(), {"forward": 0, "backward": 0}

    def count(x, hook):
        passed["forward"] += 1

    def count_back(x, hook):
        def back(gradient):
            passed["backward"] += 1

        x.register_hook(back) if x.requires_grad else None

    model.add_hook("hook_embed", count)
    model.add_hook("ln_final.hook_normalized", count_back)
    sites = ["L*.H*.z@*", *([] if options.get("method") == "direct" else ["L*.H*.q@*"])]
    mk.attribute(model, PAIR, sites, mk.logit_diff, **options)
    assert passed == {"forward": forwards, "backward": backwards}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_get_no_gradients(options):
    model = tiny_model()
    mk.attribute(model, PAIR, ["L*.H*.z@*", "L0.mlp_out"], mk.logit_diff, **options)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("metric", [mk.logprob, mk.loss, mk.prob, lambda logits: logits[:, -1, 3] - logits[:, 1, 4]])
def test_any_differentiable_metric_will_do(metric):
    model = tiny_model()
    found = mk.attribute(model, PAIR, "L*.resid_pre@*", metric)
    torch.testing.assert_close(found.scores, by_definition(model, found.sites, as_metric(metric)), **CLOSE)


def test_kl_to_the_clean_logits_can_be_taken_in_batches():
    model = tiny_model()
    metric = mk.kl(model(CLEAN).detach())
    found = mk.attribute(model, PAIR, "L*.resid_pre@*", metric, batch_size=1)
    torch.testing.assert_close(found.scores, by_definition(model, found.sites, metric), **CLOSE)
    torch.testing.assert_close(found.gap, -metric(model(CORRUPT).detach(), PAIR.corrupt))


BAD = [
    ({"method": "integrated", "steps": 0}, "steps is 0"),
    ({"method": "relp", "qk_fix": True}, "belong to method='gradient'"),
    ({"method": "integrated", "grad_drop": True}, "belong to method='gradient'"),
    ({"batch_size": 0}, "batch_size is 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_options_that_make_no_sense_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        mk.attribute(tiny_model(), PAIR, "L*.H*.z@*", mk.logit_diff, **options)


@pytest.mark.parametrize("option", ["method", "mode", "path", "norm"])
def test_unknown_choices_are_errors_that_list_the_known(option):
    """Asked of the check itself: in the tests, types are refused before it."""
    choices = {"method": "gradient", "mode": "noise", "path": "inputs", "norm": "live"}
    rest = {"steps": 1, "batch_size": 1, "qk_fix": False, "grad_drop": False}
    check_options(tiny_model(), **choices, **rest)
    with pytest.raises(ValueError, match=f"{option} is one of") as error:
        check_options(tiny_model(), **choices | {option: "warm"}, **rest)
    assert choices[option] in str(error.value)
    assert "'warm'" in str(error.value)


def test_questions_that_cannot_be_asked_are_clear_errors():
    model = tiny_model()
    with pytest.raises(TypeError, match="needs a Pair"):
        mk.attribute(model, PAIR.clean, "L*.H*.z", mk.logit_diff)
    with pytest.raises(ValueError, match="needs sites"):
        mk.attribute(model, PAIR, None, mk.logit_diff)
    with pytest.raises(ValueError, match=r"no site 'L7.H0.z'"):
        mk.attribute(model, PAIR, "L7.H0.z", mk.logit_diff)
    with pytest.raises(ValueError, match=r"'L0.mlp_in' was never reached"):
        mk.attribute(model, PAIR, "L0.mlp_in", mk.logit_diff)
    with pytest.raises(ValueError, match="the metric has no gradient"):
        mk.attribute(model, PAIR, "L*.H*.z", mk.accuracy)
    with pytest.raises(ValueError, match="needs two or more"):
        mk.attribute(tiny_model(n_layers=1), PAIR, "L*.H*.z", mk.logit_diff, grad_drop=True)
    with pytest.raises(ValueError, match=r"edited at 'L1.z'"):
        mk.attribute(
            model, mk.Pair.from_edits(PAIR.clean, [mk.Noise("L1.z", 1.0)]), "L1.z", mk.logit_diff, method="integrated"
        )
    olmo = tiny_model(original_architecture="Olmo2ForCausalLM", normalization_type="RMS")
    with pytest.raises(ValueError, match="over all heads together"):
        mk.attribute(olmo, PAIR, "L*.H*.q", mk.logit_diff, qk_fix=True)


def test_a_result_says_how_it_was_made_and_its_sites_feed_patch(tmp_path):
    found = mk.attribute(tiny_model(), PAIR, "L*.H*.q@*", mk.logit_diff, qk_fix=True)
    assert found.meta["verb"] == "attribute"
    assert found.meta["qk_fix"] is True
    again = mk.Result.load(found.save(tmp_path / "found.parquet"))
    assert torch.equal(again.scores, found.scores)
    assert len(mk.patch(tiny_model(), PAIR, found.top(2).sites, mk.logit_diff)) == 2
