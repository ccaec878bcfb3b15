import pytest
import torch

import mechkit as mk
from mechkit.core.loop import loop

RAGGED = [[3, 1, 4, 1], [5, 9], [2, 6, 5, 3, 5], [8, 9, 7, 9]]
PROMPTS = mk.Prompts.from_tokens(RAGGED, [1, 2, 3, 4], [5, 6, 7, 8], spans={"s": [(0, 2), (1, 2), (2, 5), (3, 4)]})
EVEN = mk.Prompts.from_tokens([[3, 1, 4], [1, 5, 9], [2, 6, 5]], [1, 2, 3], [4, 5, 6])
D = torch.linspace(-1, 1, 16)
CLOSE = 1e-5
"""Absolute: float32 sums in another order, as a batch of one uses other kernels than a batch of three."""
VARIANTS = {
    "plain": {},
    "attention only": {"attn_only": True},
    "one head, no norm": {"n_heads": 1, "d_head": 16, "normalization_type": None},
    "grouped rotary gated": {
        "n_heads": 4, "d_head": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4,
        "gated_mlp": True, "normalization_type": "RMS",
    },
    "parallel": {"parallel_attn_mlp": True},
    "bidirectional": {"attention_dir": "bidirectional"},
    "another output vocabulary": {"d_vocab_out": 17},
}  # fmt: skip


def one_by_one(model, prompts, runs, metric, base=()):
    """The definition: each run on each prompt alone, through TransformerLens's own hooks."""
    scores = torch.empty(len(runs), len(prompts))
    for i, run in enumerate(runs):
        for j in range(len(prompts)):
            alone = prompts[j]
            hooks = [
                (edit.site.hook, lambda x, hook, edit=edit, alone=alone, j=j: edit.apply(x, alone, [j]))
                for edit in [*base, *run]
            ]
            scores[i, j] = metric(model.run_with_hooks(alone.tokens, fwd_hooks=hooks), alone)[0]
    return scores


def many_runs(model):
    head_runs = [[mk.Zero(site)] for site in mk.expand(model, "L*.H*.z@-1")]
    return [
        [],
        *head_runs,
        [mk.Add("L0.resid_pre@s", D), mk.Scale("L1.resid_pre@s[-1]", 2.0)],
        [mk.Noise("embed", 0.5, seed=4)],
        [mk.Replace("L0.resid_mid@0", torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))]
        if "blocks.0.hook_resid_mid" in model.hook_dict
        else [mk.Zero("L1.attn_out")],
        [mk.Scale("L0.H0.pattern@-1<-0", 0.5)],
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_ragged_batch_is_its_prompts_one_by_one(build, variant):
    model = build(**VARIANTS[variant])
    runs = many_runs(model)
    for metric in (mk.logit_diff, mk.logprob):
        scores = mk.sweep(model, PROMPTS, runs, metric).scores
        assert torch.allclose(scores, one_by_one(model, PROMPTS, runs, metric), atol=CLOSE)
        assert (scores[1:] - scores[0]).abs().amax(1).min() > 1e-3  # every run did something


def test_a_sweep_is_a_loop_of_run_with_hooks(model):
    swept = mk.sweep(model, EVEN, [[mk.Zero("L0.H1.z@-1")], [mk.Add("L1.resid_pre@1", D)]], mk.logit_diff)

    def zero(z, hook):
        z[:, -1, 1] = 0
        return z

    def add(x, hook):
        return torch.cat([x[:, :1], x[:, 1:2] + D, x[:, 2:]], 1)

    for scores, (name, hook) in zip(
        swept.scores, [("blocks.0.attn.hook_z", zero), ("blocks.1.hook_resid_pre", add)], strict=True
    ):
        logits = model.run_with_hooks(EVEN.tokens, fwd_hooks=[(name, hook)])[:, -1]
        wanted = logits[range(3), [1, 2, 3]] - logits[range(3), [4, 5, 6]]
        assert torch.allclose(scores, wanted, atol=CLOSE)


def test_base_edits_come_before_those_of_the_run(model):
    base, run = [mk.Replace("L1.resid_pre@-1", D)], [mk.Scale("L1.resid_pre@-1", 3.0)]
    swept = mk.sweep(model, PROMPTS, [[], run], mk.logit_diff, base=base).scores
    wanted = one_by_one(model, PROMPTS, [base, [mk.Replace("L1.resid_pre@-1", 3 * D)]], mk.logit_diff)
    assert torch.allclose(swept, wanted, atol=CLOSE)
    assert not torch.allclose(swept, one_by_one(model, PROMPTS, [[], run], mk.logit_diff), atol=1e-2)


def test_read_sites_come_back_per_run_after_its_edits(model):
    runs = [[], [mk.Add("L0.resid_pre@-1", D)], [mk.Zero("L1.resid_pre@-1")]]
    read = mk.sweep(model, EVEN, runs, mk.logit_diff, read=["L*.resid_pre@-1", "L1.H0.z@0"]).read
    assert [str(site) for site in read] == ["L0.resid_pre@-1", "L1.resid_pre@-1", "L1.H0.z@0"]
    _, cache = model.run_with_cache(EVEN.tokens)
    first, second, head = read.values()
    assert torch.allclose(first[0], cache["resid_pre", 0][:, -1], atol=CLOSE)
    assert torch.allclose(first[1], cache["resid_pre", 0][:, -1] + D, atol=CLOSE)
    assert torch.allclose(second[2], torch.zeros(3, 16), atol=CLOSE)
    assert head.shape == (3, 3, 8)
    assert torch.allclose(head[0], cache["z", 1][:, 0, 0], atol=CLOSE)


def test_a_sweep_takes_one_pass_for_the_base_run_and_one_for_all_others(model):
    runs = [[], [mk.Zero("L0.z")], [mk.Scale("L1.z", 1.0)], [mk.Zero("L1.H0.z@-1")]]
    swept = mk.sweep(model, PROMPTS, runs, mk.logit_diff)
    assert (swept.path, swept.unit, swept.passes) == ("lean", "logits", 2)
    assert swept.n_rows == 2 * len(PROMPTS)  # the empty run and the one that scales by 1 are not run
    assert mk.sweep(model, EVEN, [[]] * 4, mk.logit_diff).passes == 1


def test_a_sweep_of_no_runs_is_empty(model):
    assert mk.sweep(model, EVEN, [], mk.logit_diff, read="L0.z").scores.shape == (0, 3)


def test_a_plain_function_is_a_metric_of_a_sweep(model):
    swept = mk.sweep(model, EVEN, [[], [mk.Zero("L1.z")]], lambda logits: logits[:, -1, 7])
    assert torch.allclose(swept.scores[0], model(EVEN.tokens)[:, -1, 7], atol=CLOSE)
    with pytest.raises(ValueError, match="it must give one number per prompt"):
        mk.sweep(model, EVEN, [[]], lambda logits: logits.sum())
    with pytest.raises(ValueError, match="logits of padding are NaN"):
        mk.sweep(model, PROMPTS, [[]], lambda logits: logits[:, -1, 7])


def test_an_edit_that_never_fires_is_an_error(model):
    for run, base in (([mk.Zero("L0.mlp_in@-1")], []), ([], [mk.Zero("L0.mlp_in@-1")])):
        with pytest.raises(ValueError, match=r"'L0.mlp_in@-1' was never reached.*turn on the model's own flag"):
            mk.sweep(model, EVEN, [run], mk.logit_diff, base=base)
    with pytest.raises(ValueError, match=r"'L0.mlp_in@-1' was never reached"):
        mk.activations(model, EVEN, "L0.mlp_in@-1")


def test_a_site_the_model_lacks_is_an_error_before_any_pass(model):
    calls = []
    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: calls.append(1))]):
        for runs, options in (
            ([[mk.Zero("L0.z")], [mk.Zero("L5.z")]], {}),
            ([[]], {"base": [mk.Zero("L5.z")]}),
            ([[]], {"read": "L5.z"}),
        ):
            with pytest.raises(ValueError, match=r"no site 'L5\.z': the model has layers 0 to 1 and heads 0 to 1"):
                mk.sweep(model, EVEN, runs, mk.logit_diff, **options)
    assert calls == []


def test_activations_are_those_of_run_with_cache(model):
    sites = ["L*.resid_pre@*", "L*.H*.z@-1", "L0.mlp_post@1:3#5", "L1.H0.pattern@2<-0", "embed", "ln_final@-1", "L1.k"]
    found = mk.activations(model, EVEN, sites)
    _, cache = model.run_with_cache(EVEN.tokens)
    assert len(found) == 2 * 3 + 2 * 2 + 5
    assert torch.equal(found["L1.resid_pre@2"], cache["resid_pre", 1][:, 2])
    assert torch.equal(found["L0.H1.z@-1"], cache["z", 0][:, -1, 1])
    assert torch.equal(found["L0.mlp_post@1:3#5"], cache["post", 0][:, 1:3, 5])
    assert torch.equal(found["L1.H0.pattern@2<-0"], cache["pattern", 1][:, 0, 2, 0])
    assert torch.equal(found["embed"], cache["embed"])
    assert torch.equal(found["ln_final@-1"], cache["ln_final.hook_normalized"][:, -1])
    assert torch.equal(found["L1.k"], cache["k", 1])
    assert "L1.k  [3, 3, 2, 8]" in repr(found)


def test_activations_of_a_ragged_batch_are_in_the_prompts_own_order(model):
    found = mk.activations(model, PROMPTS, ["L1.resid_pre@-1", "L1.resid_pre@s[0]", "L0.H1.pattern@-1<-0"])
    for i, row in enumerate(RAGGED):
        _, cache = model.run_with_cache(torch.tensor([row]))
        start = PROMPTS.spans["s"][i][0]
        assert torch.allclose(found["L1.resid_pre@-1"][i], cache["resid_pre", 1][0, -1], atol=CLOSE)
        assert torch.allclose(found["L1.resid_pre@s[0]"][i], cache["resid_pre", 1][0, start], atol=CLOSE)
        assert torch.allclose(found["L0.H1.pattern@-1<-0"][i], cache["pattern", 0][0, 1, -1, 0], atol=CLOSE)


@pytest.mark.parametrize("site", ["L0.resid_pre", "L0.resid_pre@s"])
def test_slices_of_unequal_shapes_are_an_error(model, site):
    with pytest.raises(ValueError, match=f"site '{site}' has slices of shapes .* name one position"):
        mk.activations(model, PROMPTS, site)


def test_every_long_loop_tells_the_progress_hook(model):
    from mechkit.core.progress import showing

    told = []

    def bar(items, label, total):
        told.append((label, total))
        for item in items:
            told.append("step")
            yield item

    with showing(bar):
        mk.sweep(model, EVEN, [[], [mk.Zero("L0.z")], [mk.Zero("L1.z")]], mk.logit_diff)
    assert told == [("runs", 2), "step", "step"]  # of three runs one changes nothing
    mk.sweep(model, EVEN, [[]], mk.logit_diff)
    assert len(told) == 3  # outside the block nothing is told


def test_a_block_with_a_forward_of_its_own_is_never_left_out(build):
    model = build(n_layers=3)
    old = model.blocks[1].forward
    model.blocks[1].forward = lambda *args, **more: old(*args, **more) + 0.5
    runs = [[mk.Zero("L2.q@1")], [mk.Scale("L2.resid_pre@1", 2.0)]]
    wanted, _, _ = loop(model, EVEN, runs, [mk.logit_diff], [], [])
    torch.testing.assert_close(mk.sweep(model, EVEN, runs, mk.logit_diff).scores, wanted[..., 0], rtol=0, atol=1e-4)
