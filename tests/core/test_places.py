import pytest
import torch

import mechkit as mk
from mechkit.core.places import cut, groups, paste, places
from mechkit.core.site import Site

PROMPTS = mk.Prompts.from_tokens([[1, 2, 3], [4, 5, 6]])


def expanded(model, text, prompts=None):
    return [str(site) for site in mk.expand(model, text, prompts)]


def test_stars_run_layer_first_then_head_then_position_then_source(model):
    wanted = [
        f"L{layer}.H{head}.pattern@{dest}<-{src}"
        for layer in range(2) for head in range(2) for dest in range(3) for src in range(3)
    ]  # fmt: skip
    assert expanded(model, "L*.H*.pattern@*<-*", PROMPTS) == wanted


def test_a_list_of_sites_expands_in_its_own_order(model):
    assert expanded(model, ["L1.resid_pre@-1", "L*.H0.z"]) == ["L1.resid_pre@-1", "L0.H0.z", "L1.H0.z"]


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mlp_post", 24), ("mlp_pre", 24), ("mlp_out", 16), ("mlp_in", 16), ("resid_pre", 16), ("z", 8), ("q", 8),
        ("result", 16), ("q_input", 16), ("k_input", 16), ("ln1.scale", 1), ("ln2.normalized", 16), ("attn_out", 16),
    ],
)  # fmt: skip
def test_index_star_counts_the_last_axis_of_the_hook(build, name, width):
    model = build(use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True)
    assert expanded(model, f"L1.{name}#*") == [f"L1.{name}#{i}" for i in range(width)]
    _, cache = model.run_with_cache(PROMPTS.tokens)
    assert cache[Site.parse(f"L1.{name}").hook].shape[-1] == width


def test_keys_and_values_have_the_models_key_value_heads(build):
    grouped = build(n_heads=4, d_head=4, n_key_value_heads=2)
    assert expanded(grouped, "L0.H*.q") == [f"L0.H{head}.q" for head in range(4)]
    for name in ("k", "v"):
        assert expanded(grouped, f"L0.H*.{name}") == [f"L0.H{head}.{name}" for head in range(2)]
    with pytest.raises(ValueError, match=r"no site 'L0.H2.k': the model has layers 0 to 1 and heads 0 to 1"):
        mk.expand(grouped, "L0.H2.k")


def test_ungrouped_keys_and_values_have_a_head_for_every_query_head(build):
    model = build(n_heads=4, d_head=4, n_key_value_heads=2, ungroup_grouped_query_attention=True)
    assert expanded(model, "L1.H*.k") == [f"L1.H{head}.k" for head in range(4)]
    _, cache = model.run_with_cache(PROMPTS.tokens)
    assert cache["k", 1].shape[2] == 4


def test_position_star_needs_prompts_of_one_length(model):
    with pytest.raises(ValueError, match="give the prompts they belong to"):
        mk.expand(model, "L0.resid_pre@*")
    with pytest.raises(ValueError, match=r"the prompts have \[2, 3\] tokens; use spans"):
        mk.expand(model, "L0.resid_pre@*", mk.Prompts.from_tokens([[1, 2], [1, 2, 3]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L2.H3.z", "no site 'L2.H3.z': the model has layers 0 to 1 and heads 0 to 1"),
        ("L12.resid_pre", "no site 'L12.resid_pre': the model has layers 0 to 1$"),
        ("L0.H2.z", "heads 0 to 1"),
        ("L0.resid_prr@-1", "no hook 'blocks.0.hook_resid_prr'; there are resid_pre, .*attn_out, "),
        ("ln_finale", "needs a layer"),
        ("L0.embed", "no hook 'blocks.0.hook_embed'; there are .*resid_pre"),
        ("L0.mlp_post#24", "no site 'L0.mlp_post#24': the model has 24 coordinates there, from #0"),
    ],
)
def test_a_site_the_model_lacks_is_an_error_naming_what_it_has(model, text, message):
    with pytest.raises(ValueError, match=message):
        mk.expand(model, text)


def test_a_models_own_name_is_in_the_error(build):
    model = build(model_name="tiny-12")
    with pytest.raises(ValueError, match="tiny-12 has layers 0 to 1"):
        mk.expand(model, "L9.z")


HOOKS = {
    "L0.resid_pre": (3, 5, 4), "L0.resid_pre@-1": (3, 5, 4), "L0.resid_pre@1:3": (3, 5, 4), "L0.resid_pre#2": (3, 5, 4),
    "L0.z@2": (3, 5, 2, 4), "L0.H1.z": (3, 5, 2, 4), "L0.H1.z@0#3": (3, 5, 2, 4), "L0.z#3": (3, 5, 2, 4),
    "L0.pattern@1": (3, 2, 5, 5), "L0.H1.pattern@4<-2": (3, 2, 5, 5), "L0.pattern@<-2": (3, 2, 5, 5),
}  # fmt: skip
SLICES = {
    "L0.resid_pre": lambda x: x, "L0.resid_pre@-1": lambda x: x[:, 4], "L0.resid_pre@1:3": lambda x: x[:, 1:3],
    "L0.resid_pre#2": lambda x: x[:, :, 2], "L0.z@2": lambda x: x[:, 2], "L0.H1.z": lambda x: x[:, :, 1],
    "L0.H1.z@0#3": lambda x: x[:, 0, 1, 3], "L0.z#3": lambda x: x[..., 3], "L0.pattern@1": lambda x: x[:, :, 1],
    "L0.H1.pattern@4<-2": lambda x: x[:, 1, 4, 2], "L0.pattern@<-2": lambda x: x[:, :, :, 2],
}  # fmt: skip


@pytest.mark.parametrize("text", HOOKS)
def test_cut_is_the_slice_and_paste_changes_only_it(text):
    x = torch.arange(torch.Size(HOOKS[text]).numel()).reshape(HOOKS[text]).float()
    before, site = x.clone(), Site.parse(text)
    place = places(site, mk.Prompts.from_tokens([[1] * 5] * 3))[0]
    assert torch.equal(cut(x, site, place), SLICES[text](x))
    wanted = x.clone()
    SLICES[text](wanted).fill_(-1)
    assert torch.equal(paste(x, site, place, torch.tensor(-1.0)), wanted)
    assert torch.equal(x, before)


def test_a_dictionarys_features_are_not_cut_from_a_hook():
    with pytest.raises(ValueError, match="in the basis 'sae'"):
        cut(torch.zeros(1, 2, 3), Site.parse("L0.resid_pre[sae]@0#1"), 0)


def test_groups_hold_each_prompt_once_at_its_own_place():
    found = [1, slice(0, 2), 1, slice(0, 3), slice(0, 2)]
    assert groups(found) == [(1, [0, 2]), (slice(0, 2), [1, 4]), (slice(0, 3), [3])]
    assert groups([2, 2]) == [(2, [0, 1])]
