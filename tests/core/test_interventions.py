import pytest
import torch

import mechkit as mk
from mechkit.core.site import Site

TOKENS = torch.randint(0, 30, (3, 6), generator=torch.Generator().manual_seed(0))
START = torch.tensor([[1, 2, 3]])
PROMPTS = mk.Prompts.from_tokens(TOKENS, spans={"s": [(0, 2), (3, 5), (4, 6)]})


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(model, hook_name, change):
    """Logits with `change(x)` made in place on a copy of one hook's tensor."""

    def hook(x, hook):
        x = x.clone()
        change(x)
        return x

    return model.run_with_hooks(TOKENS, fwd_hooks=[(hook_name, hook)])


def set_to(where, value):
    def change(x):
        x[where] = value

    return change


def add_to(where, value):
    def change(x):
        x[where] += value

    return change


D, Z = random(16), random(3, 8)
ALL = slice(None)
RESID, HEAD, PATTERN, POST = (
    "blocks.1.hook_resid_pre",
    "blocks.0.attn.hook_z",
    "blocks.1.attn.hook_pattern",
    "blocks.0.mlp.hook_post",
)
CASES = {
    "replace": (mk.Replace("L1.resid_pre@-1", D), RESID, set_to((ALL, -1), D)),
    "replace by a number": (mk.Replace("L1.resid_pre@2", 0.5), RESID, set_to((ALL, 2), 0.5)),
    "replace per prompt": (mk.Replace("L0.H1.z@2", Z), HEAD, set_to((ALL, 2, 1), Z)),
    "zero": (mk.Zero("L1.resid_pre@1:4"), RESID, set_to((ALL, slice(1, 4)), 0)),
    "zero a head": (mk.Zero("L0.H1.z"), HEAD, set_to((ALL, ALL, 1), 0)),
    "add": (mk.Add("L1.resid_pre", D), RESID, add_to(..., D)),
    "add to a neuron": (mk.Add("L0.mlp_post@-1#5", 2.0), POST, add_to((ALL, -1, 5), 2.0)),
    "add to a neuron everywhere": (mk.Add("L0.mlp_post#5", 2.0), POST, add_to((ALL, ALL, 5), 2.0)),
    "scale": (mk.Scale("L0.H0.z@-1", -1.5), HEAD, lambda x: x[:, -1, 0].mul_(-1.5)),
    "scale attention": (mk.Scale("L1.H1.pattern@4<-2", 0.25), PATTERN, lambda x: x[:, 1, 4, 2].mul_(0.25)),
    "zero attention from one token": (mk.Zero("L1.pattern@-1"), PATTERN, set_to((ALL, ALL, -1), 0)),
    "zero attention to one token": (mk.Zero("L1.H0.pattern@<-1"), PATTERN, set_to((ALL, 0, ALL, 1), 0)),
    "mean by position": (
        mk.Mean("L1.resid_pre", random(5, 6, 16)), RESID, set_to(..., random(5, 6, 16).mean(0)),
    ),
    "mean by all": (
        mk.Mean("L1.resid_pre", random(5, 6, 16), "all"), RESID, set_to(..., random(5, 6, 16).mean((0, 1))),
    ),
    "mean at one position": (
        mk.Mean("L1.resid_pre@2", random(5, 16), "all"), RESID, set_to((ALL, 2), random(5, 16).mean(0)),
    ),
    "mean by label": (
        mk.Mean("L1.resid_pre@2", random(4, 16), ("abab", "bba")), RESID,
        set_to((ALL, 2), torch.stack([random(4, 16)[i::2].mean(0) for i in (1, 1, 0)])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_kind_is_the_same_edit_by_hand(model, case):
    edit, hook_name, change = CASES[case]
    with model.hooks(fwd_hooks=edit.hooks(model)):
        edited = model(TOKENS)
    assert torch.equal(edited, by_hand(model, hook_name, change))
    assert not torch.equal(edited, model(TOKENS))  # it did something


@pytest.mark.parametrize("case", CASES)
def test_the_original_activation_is_unchanged(model, case):
    edit, hook_name, _ = CASES[case]
    _, cache = model.run_with_cache(TOKENS)
    original = cache[hook_name].clone()
    new = edit.apply(cache[hook_name], PROMPTS)
    assert torch.equal(cache[hook_name], original)
    assert not torch.equal(new, original)
    assert new.data_ptr() != cache[hook_name].data_ptr()


def test_a_span_is_edited_in_each_prompt_at_its_own_place(model):
    def change(x):
        for i, (start, end) in enumerate(PROMPTS.spans["s"]):
            x[i, start:end] += D

    with model.hooks(fwd_hooks=mk.Add("L1.resid_pre@s", D).hooks(model, PROMPTS)):
        edited = model(TOKENS)
    assert torch.equal(edited, by_hand(model, RESID, change))


def test_values_go_with_their_own_prompts_where_places_differ(model):
    def change(x):
        for i, (start, _) in enumerate(PROMPTS.spans["s"]):
            x[i, start] = Z.repeat(1, 2)[i]

    with model.hooks(fwd_hooks=mk.Replace("L1.resid_pre@s[0]", Z.repeat(1, 2)).hooks(model, PROMPTS)):
        edited = model(TOKENS)
    assert torch.equal(edited, by_hand(model, RESID, change))


def test_edits_in_one_list_are_made_in_their_order(model):
    edits = [mk.Add("L1.resid_pre@-1", D), mk.Scale("L1.resid_pre@-1", 2.0)]

    def change(x):
        x[:, -1] = (x[:, -1] + D) * 2

    with model.hooks(fwd_hooks=[hook for edit in edits for hook in edit.hooks(model)]):
        edited = model(TOKENS)
    assert torch.equal(edited, by_hand(model, RESID, change))


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
@pytest.mark.parametrize(
    "edit", [mk.Add("L1.resid_pre", 3 * D), mk.Zero("L0.H1.pattern"), mk.Zero("L0.z@-1"), mk.Zero("L0.H0.pattern@<-0")]
)
def test_hooks_steer_generate_as_they_steer_a_loop(model, edit, use_past_kv_cache):
    options = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with model.hooks(fwd_hooks=edit.hooks(model)):
        made = model.generate(START, use_past_kv_cache=use_past_kv_cache, **options)
        tokens = START
        for _ in range(4):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    if use_past_kv_cache and edit.site.pos == -1:
        assert made.shape == tokens.shape  # every step's last token was edited, here only the newest
    else:
        assert torch.equal(made, tokens)


def test_attention_to_every_cached_key_is_edited_while_generating(model):
    seen = []
    hooks = [*mk.Zero("L0.H1.pattern").hooks(model), (HEAD, lambda z, hook: seen.append(z[:, :, 1].abs().max().item()))]
    with model.hooks(fwd_hooks=hooks):
        model.generate(START, max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    assert seen == [0, 0, 0]


def test_noise_is_the_same_for_a_prompt_alone_and_in_a_batch():
    edit, x = mk.Noise("L1.resid_pre", 0.7, seed=3), random(3, 6, 16)
    batch = edit.apply(x, PROMPTS)
    for i in range(3):
        assert torch.equal(edit.apply(x[i : i + 1], PROMPTS[i], [i])[0], batch[i])
    for pos in range(6):
        one = mk.Noise(f"L1.resid_pre@{pos}", 0.7, seed=3).apply(x, PROMPTS)
        assert torch.equal(one[:, pos], batch[:, pos])


def test_noise_differs_between_any_two_keys():
    def noise(seed, sample):
        return mk.Noise("L1.resid_pre", 1.0, seed, sample).apply(torch.zeros(3, 6, 16), PROMPTS).reshape(18, 16)

    rows = torch.cat([noise(seed, sample) for seed in (0, 1, -1) for sample in (0, 1, 2)])
    assert len(torch.unique(rows, dim=0)) == 18 * 9
    assert torch.equal(noise(1, 2), noise(1, 2))


def test_noise_has_its_standard_deviation_and_leaves_the_global_generator_alone():
    prompts = mk.Prompts.from_tokens([[1] * 10] * 40)
    state = torch.get_rng_state()
    noise = mk.Noise("L0.resid_pre", 2.5).apply(torch.zeros(40, 10, 100), prompts)
    assert torch.equal(torch.get_rng_state(), state)
    # 40,000 draws: the standard error of the deviation is 2.5 / sqrt(80,000) = 0.009, of the mean 0.0125.
    assert float(noise.std()) == pytest.approx(2.5, abs=0.04)
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)


def test_noise_on_a_pattern_is_an_error():
    with pytest.raises(ValueError, match="rows that are not probabilities; add it to z"):
        mk.Noise("L0.H0.pattern", 1.0)


@pytest.mark.parametrize(
    "directions", [random(1, 16), random(16), random(3, 16), 1e-3 * random(2, 16), random(2, 16)[[0, 1, 0]]]
)
def test_projecting_out_leaves_nothing_along_the_directions_and_the_rest_as_it_was(directions):
    x = random(3, 6, 16, seed=9)
    new = mk.ProjectOut("L1.resid_pre", directions).apply(x, PROMPTS)
    units = torch.nn.functional.normalize(torch.atleast_2d(directions), dim=-1)
    # One rounding of a float32 dot product of 16 terms of size about 1.
    assert (x @ units.T).abs().max() > 0.5
    assert (new @ units.T).abs().max() < 1e-5
    across = torch.linalg.svd(units.double())[2][torch.linalg.matrix_rank(units) :]
    assert torch.allclose(new.double() @ across.T, x.double() @ across.T, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (mk.Replace("L1.resid_pre@-1", random(8)), r"value of shape \[8\] does not fit 'L1.resid_pre@-1', whose slice"),
        (mk.Add("L0.H1.z@-1", random(3, 6, 8)), "does not fit 'L0.H1.z@-1'"),
        (mk.Replace("L1.resid_pre@-1", random(2, 16)), "has 2 prompts, and prompt 2 needs one"),
        (mk.ProjectOut("L1.resid_pre@-1", random(1, 8)), "directions of 8 do not fit 'L1.resid_pre@-1'"),
        (mk.Zero("L1.resid_pre@6"), "position @6 is outside a prompt of 6 tokens"),
        (mk.Zero("L1.resid_pre[sae]@-1#4"), "in the basis 'sae'"),
    ],
)
def test_what_does_not_fit_is_an_error_naming_the_site(model, edit, message):
    with pytest.raises(ValueError, match=message), model.hooks(fwd_hooks=edit.hooks(model)):
        model(TOKENS)


def test_a_mean_needs_a_known_grouping_and_a_reference_for_every_label():
    with pytest.raises(ValueError, match="a mean is by 'position', 'all' or two sequences of labels, not by 'pos'"):
        mk.Mean.__init__.__wrapped__(object.__new__(mk.Mean), Site.parse("L0.z"), random(2, 3), "pos")
    with pytest.raises(ValueError, match="2 labels for 3 reference prompts"):
        mk.Mean("L0.resid_pre@0", random(3, 16), ("ab", "aba"))
    with pytest.raises(ValueError, match="no reference prompt has the label 'c' of prompt 2"):
        mk.Mean("L0.resid_pre@0", random(2, 16), ("ab", "abc")).apply(random(3, 6, 16), PROMPTS)


def test_an_intervention_needs_one_place_in_the_model(model):
    with pytest.raises(ValueError, match=r"'L\*\.z' stands for many: expand it first"):
        mk.Zero("L*.z")
    with pytest.raises(ValueError, match=r"no site 'L7\.z'"):
        mk.Zero("L7.z").hooks(model)


def test_a_site_given_as_text_becomes_a_site():
    assert mk.Zero("L0.H1.z@-1").site == Site("z", 0, 1, -1)
