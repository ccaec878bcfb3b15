"""Gradients at hooks equal finite differences, parameters stay out of the graph, rules change slopes and no values."""

import gc

import pytest
import torch

import mechkit as mk
from mechkit.core.gradients import Rules, Side, along, at, dropping_layers, measure_part
from mechkit.core.rules import direct_paths, relp
from tests.conftest import tiny_model

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
PROMPTS = mk.Prompts.from_tokens(TOKENS, [7, 8], [9, 10])
ROWS = [0, 1]

ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
GROUPED = {"n_heads": 4, "d_head": 4, "n_key_value_heads": 2}
ARCHITECTURES = {
    "layer norm": {"act_fn": "gelu"},
    "no norm": {"normalization_type": None, "act_fn": "silu"},
    "Llama": ROTARY | GROUPED | {"gated_mlp": True, "normalization_type": "RMS", "act_fn": "silu"},
    "parallel": {"parallel_attn_mlp": True, "act_fn": "gelu"},
    "attention only": {"attn_only": True},
    "soft caps": {"attn_scores_soft_cap": 0.7, "output_logits_soft_cap": 2.0, "act_fn": "gelu"},
}
NAMES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern")
NEURONS = ("mlp_pre", "mlp_post")


def hooks(model):
    """One of each kind of hook in each layer, as far as it fires."""
    absent = {"hook_mlp_out"} if model.cfg.attn_only else set()
    kinds = [mk.Site(name, layer).hook for layer in range(model.cfg.n_layers) for name in NAMES + NEURONS]
    return ["hook_embed", *(name for name in kinds if name in model.hook_dict and name.split(".")[-1] not in absent)]


def measured(metric=mk.logprob):
    return lambda logits: measure_part(metric, PROMPTS, ROWS, logits)


def double(**changes):
    return tiny_model(**changes, dtype=torch.float64)


def difference(model, name, direction, size=1e-5, fixed=()):
    """(metric(x + size · direction) - metric(x - size · direction)) / 2 size, with some hooks held."""
    held = [(hook, lambda x, hook, value=value: value) for hook, value in fixed]
    ends = []
    for sign in (1, -1):
        nudge = (name, lambda x, hook, sign=sign: x + sign * size * direction)
        ends.append(mk.logprob(model.run_with_hooks(TOKENS, fwd_hooks=[*held, nudge]), PROMPTS))
    return (ends[0] - ends[1]) / (2 * size)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_gradients_at_every_hook_equal_finite_differences(changes):
    model = double(**changes)
    found = at(model, Side(PROMPTS), ROWS, hooks(model), measured())
    for name in hooks(model):
        [gradient], [value] = found.gradients[0][name], found.values[name]
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = difference(model, name, direction)
        # Central differences of size h are wrong by h² times a third derivative.
        torch.testing.assert_close((gradient * direction).flatten(1).sum(1), expected, rtol=1e-6, atol=1e-8)
        assert expected.abs().max() > 1e-4 or name.endswith("mlp.hook_pre")


def test_a_hook_that_fires_three_times_has_three_gradients():
    model = double()
    name = "blocks.1.ln1.hook_scale"
    found = at(model, Side(PROMPTS), ROWS, [name], measured())
    total = sum((gradient * torch.ones_like(gradient)).flatten(1).sum(1) for gradient in found.gradients[0][name])
    assert len(found.values[name]) == 3
    expected = difference(model, name, torch.ones(2, 5, 1, dtype=torch.float64))
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-8)


def test_a_users_edits_are_part_of_the_pass():
    model = double()
    site = "L0.resid_mid@2"
    side = Side(PROMPTS, [mk.Scale(site, 3.0)])
    name = "blocks.0.hook_resid_pre"
    [gradient] = at(model, side, ROWS, [name], measured()).gradients[0][name]
    model.add_hook("blocks.0.hook_resid_mid", lambda x, hook: torch.cat([x[:, :2], 3 * x[:, 2:3], x[:, 3:]], 1))
    expected = difference(model, name, torch.ones_like(gradient))
    torch.testing.assert_close(gradient.flatten(1).sum(1), expected, rtol=1e-6, atol=1e-8)


def test_parameters_are_no_part_of_the_graph_and_get_no_gradient():
    model, during = tiny_model(), []
    model.embed.W_E.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.add_hook(
        "blocks.1.hook_resid_mid", lambda x, hook: during.append([p.requires_grad for p in model.parameters()])
    )
    at(model, Side(PROMPTS), ROWS, ["blocks.0.hook_resid_pre"], measured())
    assert during
    assert not any(during[0])
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert sum(before.values()) > 10
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_pass_that_is_cut_short_leaves_parameters_and_hooks_as_they_were(error):
    model = tiny_model()

    def fail(x, hook):
        raise error

    model.add_hook("blocks.1.hook_resid_mid", fail)
    with torch.no_grad(), pytest.raises(error):
        at(model, Side(PROMPTS), ROWS, ["blocks.0.hook_resid_pre"], measured())
    assert all(p.requires_grad for p in model.parameters())
    assert [name for name, point in model.hook_dict.items() if point._forward_hooks] == ["blocks.1.hook_resid_mid"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_changes_nothing(mode):
    model, name = tiny_model(), "blocks.0.attn.hook_q"
    with torch.enable_grad():
        plain = at(model, Side(PROMPTS), ROWS, [name], measured())
    with mode():
        found = at(model, Side(PROMPTS), ROWS, [name], measured())
    assert torch.equal(found.gradients[0][name][0], plain.gradients[0][name][0])
    assert plain.gradients[0][name][0].abs().max() > 0


def test_no_graph_is_left_after_a_pass():
    model = tiny_model()
    found = dropping_layers(model, Side(PROMPTS), ROWS, hooks(model), measured())
    gc.collect()
    left = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.grad_fn is not None]
    assert not left
    assert not any(x.requires_grad for tensors in found.values.values() for x in tensors)


def test_an_edit_in_place_after_a_hook_does_not_reach_its_value():
    model = tiny_model()
    name = "blocks.0.hook_resid_post"
    plain = at(model, Side(PROMPTS), ROWS, [name], measured()).values[name][0]
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: x.mul_(2))
    assert torch.equal(at(model, Side(PROMPTS), ROWS, [name], measured()).values[name][0], plain)


def test_a_metric_without_a_gradient_is_an_error():
    with pytest.raises(ValueError, match="no gradient"):
        at(tiny_model(), Side(PROMPTS), ROWS, ["hook_embed"], measured(mk.accuracy))


def test_a_part_of_the_prompts_is_measured_as_in_the_whole():
    prompts = mk.Prompts.from_tokens([[3, 1, 4, 1, 5], [9, 2, 6], [2, 7, 1]], [7, 8, 9], [1, 2, 3])
    logits, reference = (torch.randn(3, 5, 30, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for metric in (mk.kl(reference), mk.loss, mk.logit_diff):
        whole = metric(logits, prompts)
        parts = [
            measure_part(metric, prompts, [0], logits[:1]),
            measure_part(metric, prompts, [2, 1], logits[[2, 1], :3]),
        ]
        torch.testing.assert_close(torch.cat(parts), whole[[0, 2, 1]])


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_dropped_layer_is_held_at_its_own_output(changes):
    """do(n_out of the layer <- its value): brute force by finite differences with that output held."""
    model = double(n_layers=3, **changes)
    found = dropping_layers(model, Side(PROMPTS), ROWS, hooks(model), measured())
    name = "hook_embed"
    direction = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, cache = model.run_with_cache(TOKENS)
    seen = []
    for layer, gradients in enumerate(found.gradients):
        outs = [f"blocks.{layer}.hook_{out}" for out in ("attn_out", "mlp_out")]
        fixed = [(out, cache[out]) for out in outs if out in cache.cache_dict]
        expected = difference(model, name, direction, fixed=fixed)
        seen.append((gradients[name][0] * direction).flatten(1).sum(1))
        torch.testing.assert_close(seen[-1], expected, rtol=1e-6, atol=1e-8)
        assert not gradients[f"blocks.{layer}.attn.hook_z"][0].any()
        assert gradients[f"blocks.{(layer + 1) % 3}.attn.hook_z"][0].any()
    assert not torch.allclose(seen[0], seen[1])


def test_along_a_path_the_mean_is_over_midpoints_whatever_the_batch():
    model = double(act_fn="gelu")
    name, end = "blocks.1.hook_resid_pre", torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        start = model.hook_embed(model.embed(TOKENS))
    expected = torch.zeros(2, 5, 16, dtype=torch.float64)
    for k in range(3):
        point = start + (k + 0.5) / 3 * (end - start)
        rules = Rules(before=[("hook_embed", lambda x, hook, point=point: point)])
        expected += at(model, Side(PROMPTS), ROWS, [name], measured(), rules).gradients[0][name][0] / 3
    for batch_size in (1, 4, 64):
        ends = {"hook_embed": (start, end)}
        [found] = along(model, Side(PROMPTS), ROWS, [name], measured(), ends, 3, batch_size)[name]
        torch.testing.assert_close(found, expected)


RELP = ARCHITECTURES | {
    "relu": {},
    "RMSNorm, gated gelu": {"normalization_type": "RMS", "gated_mlp": True, "act_fn": "gelu"},
    "SoLU with its norm": {"act_fn": "solu_ln"},
    "Gemma 2": ROTARY
    | GROUPED
    | {
        "gated_mlp": True,
        "normalization_type": "RMS",
        "act_fn": "gelu",
        "use_normalization_before_and_after": True,
    },
}


@pytest.mark.parametrize("rules", [relp, direct_paths], ids=["RelP", "direct"])
@pytest.mark.parametrize("changes", RELP.values(), ids=RELP)
def test_rules_leave_the_forward_pass_as_it_is_bit_for_bit(changes, rules):
    model = tiny_model(**changes)
    plain = at(model, Side(PROMPTS), ROWS, hooks(model), measured())
    ruled = at(model, Side(PROMPTS), ROWS, hooks(model), measured(), rules(model))
    assert torch.equal(plain.logits, ruled.logits)
    assert all(torch.equal(plain.values[name][0], ruled.values[name][0]) for name in hooks(model))
    assert not torch.equal(plain.gradients[0]["hook_embed"][0], ruled.gradients[0]["hook_embed"][0])


# A soft-cap of the logits is no line through 0.
@pytest.mark.parametrize("changes", [RELP[name] for name in RELP if name != "soft caps"])
def test_relevance_is_conserved_without_biases(changes):
    """With patterns and scales held, and functions as lines through 0, the logits are a sum over the embeddings."""
    model = double(**changes)
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1].lstrip("_").startswith("b"):
            parameter.data.zero_()
    parts = ["hook_embed"] + ["hook_pos_embed"] * ("hook_pos_embed" in model.hook_dict)
    for rules, conserved in ((relp(model), True), (None, False)):
        found = at(model, Side(PROMPTS), ROWS, parts, measured(mk.logit_diff), rules)
        total = sum((found.values[name][0] * found.gradients[0][name][0]).flatten(1).sum(1) for name in parts)
        assert torch.allclose(total, mk.logit_diff(found.logits, PROMPTS), rtol=1e-9) is conserved


def test_relp_takes_the_slope_itself_where_a_pre_activation_is_zero():
    model = double(act_fn="gelu", normalization_type=None)
    for parameter in (model.blocks[1].mlp.W_in, model.blocks[1].mlp.b_in):
        parameter.data.zero_()
    name = "blocks.1.mlp.hook_pre"
    plain = at(model, Side(PROMPTS), ROWS, [name], measured()).gradients[0][name][0]
    ruled = at(model, Side(PROMPTS), ROWS, [name], measured(), relp(model)).gradients[0][name][0]
    torch.testing.assert_close(ruled, plain)
    assert plain.abs().max() > 0


def test_relp_of_a_mixture_of_experts_is_a_clear_error():
    model = tiny_model(num_experts=3, experts_per_token=2, gated_mlp=True, normalization_type="RMS", act_fn="silu")
    with pytest.raises(ValueError, match="mixture of experts"):
        relp(model)
