"""Ablations, noise in place of corrupt prompts, and prompts that match by spans."""

import pytest
import torch

import mechkit as mk
from mechkit.patching.contrast import Contrast
from tests.patching import brute
from tests.patching.test_patch import CLOSE, PAIR, RAGGED

SITES = ["L*.H*.z@-1", "L0.mlp_out", "L1.H0.pattern", "L1.attn_out@s[-1]", "L1.mlp_post@1#3", "L0.resid_mid@1:3"]
REFERENCE = mk.Prompts.from_tokens(
    [[1, 2, 3, 4], [5, 6, 7, 8, 9], [9, 8, 7], [6, 6, 2, 1], [2, 7, 1, 8, 2]], spans={"s": [(0, 2)] * 5}
)


def ablated(model, prompts, site, value):
    """Changes `[prompt]` of the metric when `site` takes `value(i)` on prompt `i`."""
    changes = [
        brute.score(model, prompts, i, mk.logit_diff, [brute.put(site, prompts, i, value(i))])
        - brute.score(model, prompts, i, mk.logit_diff)
        for i in range(len(prompts))
    ]
    return torch.tensor(changes)


@pytest.mark.parametrize("prompts", [PAIR.clean, PAIR], ids=["prompts", "pair"])
def test_zero_ablation_puts_zeros_into_the_clean_run(model, prompts):
    found = mk.patch(model, prompts, SITES, mk.logit_diff, ablate="zero")
    assert found.gap is None
    for site, scores in zip(found.sites, found.scores, strict=True):
        torch.testing.assert_close(scores, ablated(model, PAIR.clean, site, lambda i: 0.0), **CLOSE)


def masked_mean(model, site, clean, i):
    """By hand: each position of the site averaged over the reference prompts that have it."""
    seen = [brute.cached(model, REFERENCE, j)[1][site.hook] for j in range(len(REFERENCE))]
    if isinstance(site.pos, int) and site.pos >= 0:
        there = [j for j, length in enumerate(REFERENCE.lengths) if length > site.pos]
        return torch.stack([seen[j][brute.spot(site, REFERENCE, j)] for j in there]).mean(0)
    if site.pos is not None:
        return torch.stack([seen[j][brute.spot(site, REFERENCE, j)] for j in range(len(seen))]).mean(0)
    if site.name == "pattern":
        n = clean.lengths[i]
        entry = lambda a, b: torch.stack([x[site.head, a, b] for x in seen if x.shape[1] > max(a, b)]).mean()  # noqa: E731
        return torch.tensor([[entry(a, b) for b in range(n)] for a in range(n)])
    return torch.stack([torch.stack([x[p] for x in seen if len(x) > p]).mean(0) for p in range(clean.lengths[i])])


@pytest.mark.parametrize("pair", [PAIR, RAGGED], ids=["one length", "several lengths"])
def test_mean_ablation_is_a_masked_mean_by_position(model, pair):
    sites = [site for site in SITES if site != "L0.resid_mid@1:3"]
    found = mk.patch(model, pair, sites, mk.logit_diff, ablate="mean", reference=REFERENCE)
    for site, scores in zip(found.sites, found.scores, strict=True):
        by_hand = ablated(model, pair.clean, site, lambda i, site=site: masked_mean(model, site, pair.clean, i))
        torch.testing.assert_close(scores, by_hand, **CLOSE)
    assert found.scores.abs().max() > 0.1


def test_the_mean_is_over_the_corrupt_prompts_unless_told(model):
    default = mk.patch(model, PAIR, SITES, mk.logit_diff, ablate="mean")
    told = mk.patch(model, PAIR, SITES, mk.logit_diff, ablate="mean", reference=PAIR.corrupt)
    assert torch.equal(default.scores, told.scores)
    other = mk.patch(model, PAIR, SITES, mk.logit_diff, ablate="mean", reference=REFERENCE[[0, 1, 3]])
    assert not torch.allclose(default.scores, other.scores, atol=1e-2)


def test_a_mean_over_many_prompts_is_the_same_in_parts(model, monkeypatch):
    whole = mk.patch(model, PAIR, SITES, mk.logit_diff, ablate="mean")
    monkeypatch.setattr("mechkit.patching.values._BATCH", 2)
    torch.testing.assert_close(mk.patch(model, PAIR, SITES, mk.logit_diff, ablate="mean").scores, whole.scores, **CLOSE)


def test_resampling_takes_the_value_on_another_prompt_drawn_by_the_seed(model):
    pair = mk.Pair(PAIR.clean, PAIR.clean)  # the corrupt prompts are the clean ones: another means another
    found = mk.patch(model, pair, SITES, mk.logit_diff, ablate="resample", seed=3)
    drawn = Contrast.of(pair, "resample", None, 3).source
    assert not (drawn.tokens == pair.clean.tokens).all(1).any()
    rows = [[site] for site in found.sites]
    torch.testing.assert_close(found.scores, brute.patched(model, pair.clean, drawn, rows, mk.logit_diff), **CLOSE)
    again = mk.patch(model, pair, SITES, mk.logit_diff, ablate="resample", seed=3)
    assert torch.equal(found.scores, again.scores)
    seeds = [mk.patch(model, pair, SITES, mk.logit_diff, ablate="resample", seed=seed).scores for seed in range(4)]
    assert any(not torch.equal(seeds[0], other) for other in seeds[1:])
    assert found.gap is None


def test_resampling_prefers_prompts_of_the_same_length(model):
    drawn = Contrast.of(RAGGED.clean[[0, 1]], "resample", REFERENCE, 0).source
    assert drawn.lengths == [4, 5]


NOISY = mk.Pair.from_edits(PAIR.clean, [mk.Noise("embed@s", 2.0, seed=5)])


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_a_pair_corrupted_by_noise_is_patched_as_one_with_corrupt_prompts(model, mode):
    sites = mk.expand(model, ["L*.resid_pre@*", "L*.H*.z@-1", "L0.mlp_out", "embed@s"], PAIR.clean)
    found = mk.patch(model, NOISY, sites, mk.logit_diff, mode=mode)
    for i in range(len(PAIR)):
        alone = PAIR.clean[i]

        def noisy(x, hook, i=i, alone=alone):
            return NOISY.edits[0].apply(x, alone, [i])

        noise = [("hook_embed", noisy)]
        base, source = (noise, []) if mode == "denoise" else ([], noise)
        values = brute.cached(model, PAIR.clean, i, source)[1]
        before = brute.score(model, PAIR.clean, i, mk.logit_diff, base)
        for site, score in zip(sites, found.scores[:, i], strict=True):
            value = values[site.hook][brute.spot(site, PAIR.clean, i)]
            after = brute.score(model, PAIR.clean, i, mk.logit_diff, [*base, brute.put(site, PAIR.clean, i, value)])
            torch.testing.assert_close(score, after - before, **CLOSE)
    restored = found.where(name="embed")
    torch.testing.assert_close(restored.scores[0], found.gap, **CLOSE)
    assert found.gap.abs().min() > 0.05


def test_a_pair_corrupted_by_noise_needs_a_reference_for_means(model):
    with pytest.raises(ValueError, match="ablate='mean' needs other prompts"):
        mk.patch(model, NOISY, "L0.mlp_out", mk.logit_diff, ablate="mean")
    zeros = mk.patch(model, NOISY, "L0.mlp_out", mk.logit_diff, ablate="zero").scores
    assert torch.equal(zeros, mk.patch(model, PAIR, "L0.mlp_out", mk.logit_diff, ablate="zero").scores)


SPANNED = mk.Pair(
    mk.Prompts.from_tokens(
        [[3, 1, 4, 1], [9, 2, 6, 5]], [7, 8], [9, 10], spans={"s": [(1, 3), (0, 2)], "w": [(1, 3), (1, 3)]}
    ),
    mk.Prompts.from_tokens(
        [[3, 3, 7, 4, 2], [8, 2, 6]], [7, 8], [9, 10], spans={"s": [(2, 4), (0, 2)], "w": [(1, 4), (1, 3)]}
    ),
)  # fmt: skip


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_pairs_of_different_lengths_match_by_spans_and_from_the_end(model, mode):
    target, source = (SPANNED.corrupt, SPANNED.clean) if mode == "denoise" else (SPANNED.clean, SPANNED.corrupt)
    sites = ["L*.resid_pre@s", "L*.H*.z@-1", "L0.H*.pattern@s<-s", "L1.attn_out@w[0]", "L0.mlp_out@s[-1]"]
    found = mk.patch(model, SPANNED, sites, mk.logit_diff, mode=mode)
    rows = [[site] for site in found.sites]
    torch.testing.assert_close(found.scores, brute.patched(model, target, source, rows, mk.logit_diff), **CLOSE)
    torch.testing.assert_close(found.gap, brute.gap(model, target, source, mk.logit_diff), **CLOSE)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("L0.resid_pre", r"clean prompt 0 has 4 tokens, its corrupt prompt has 5.*name a span, such as @subject"),
        ("L0.resid_pre@0", "so positions do not match"),
        ("L0.resid_pre@*", "so positions do not match|use spans"),
        ("L0.H0.pattern@-1", "so positions do not match"),
        ("L0.resid_pre@-2:", "so positions do not match"),
        ("L0.resid_pre@w", r"@w' covers 2 tokens of clean prompt 0 and 3 of its corrupt prompt.*@subject\[-1\]"),
        ("L0.resid_pre@t", "no span 't'"),
    ],
)  # fmt: skip
def test_sites_that_do_not_match_are_errors_before_any_pass(model, untouched, sites, message):
    with pytest.raises(ValueError, match=message):
        mk.patch(model, SPANNED, sites, mk.logit_diff)


@pytest.fixture
def untouched(model, monkeypatch):
    """A model that must not run."""

    def refuse(*args, **kwargs):
        raise AssertionError("a pass was made")

    monkeypatch.setattr(model, "forward", refuse)


def with_answers(answers, wrong):
    return mk.Pair(*(side.with_answers(answers, wrong) for side in (PAIR.clean, PAIR.corrupt)))


@pytest.mark.parametrize(
    ("pair", "sites", "metric", "options", "message"),
    [
        (with_answers([[7, 1], [8, 2], [9, 3]], [9, 10, 11]), "L0.mlp_out", mk.logit_diff, {},
         r"answer 0 \(answers\) is 2 tokens; the metric needs exactly one"),
        (with_answers([7, 8, 9], [7, 10, 9]), "L0.mlp_out", mk.logprob, {}, r"are the same on prompts \[0, 2\]"),
        (with_answers([7, 8, 9], None), "L0.mlp_out", mk.logit_diff, {}, "the prompts carry no wrong"),
        (PAIR, "L12.H3.z", mk.logit_diff, {}, "no site 'L12.H3.z': the model has layers 0 to 1 and heads 0 to 1"),
        (PAIR, "L0.mlp_outt", mk.logit_diff, {}, "has no hook 'blocks.0.hook_mlp_outt'; there are mlp_out"),
        (PAIR, "L0.mlp_out@9", mk.logit_diff, {}, "position @9 is outside a prompt of 4 tokens"),
        (PAIR, [], mk.logit_diff, {}, "no sites to patch"),
        (PAIR, ["L0.mlp_out", []], mk.logit_diff, {}, "no sites to patch"),
        (PAIR, "L0.mlp_out", [], {}, "metrics are told apart by their names"),
        (PAIR, "L0.mlp_out", [mk.logprob, mk.logprob], {}, "metrics are told apart by their names"),
        (PAIR, "L0.mlp_out", mk.kl(torch.zeros(2, 4, 30)), {}, "kl has reference logits for 2 prompts"),
        (PAIR, "L0.mlp_out", mk.logit_diff, {"mode": "noise", "ablate": "zero"}, "give one of the two"),
        (PAIR, "L0.mlp_out", mk.logit_diff, {"reference": REFERENCE}, "'denoise' takes no reference prompts"),
        (PAIR, "L0.mlp_out", mk.logit_diff, {"ablate": "resample", "reference": PAIR.clean[[0]]},
         "every reference prompt is the same as clean prompt 0"),
        (PAIR.clean, "L0.mlp_out", mk.logit_diff, {"ablate": "mean"}, "ablate='mean' needs other prompts"),
        (PAIR, "L0.mlp_out[sae]#1", mk.logit_diff, {}, "is in the dictionary 'sae'; given are none"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_before_any_pass(model, untouched, pair, sites, metric, options, message):
    with pytest.raises(ValueError, match=message):
        mk.patch(model, pair, sites, metric, **options)


def test_patching_between_runs_needs_a_pair(model, untouched):
    with pytest.raises(TypeError, match="'noise' needs a Pair; Prompts alone can be ablated"):
        mk.patch(model, PAIR.clean, "L0.mlp_out", mk.logit_diff, mode="noise")


def test_words_that_mean_nothing_are_errors():
    from mechkit.patching.activation import _kind

    with pytest.raises(ValueError, match="mode is one of denoise, noise, not 'both'"):
        _kind("both", None)
    with pytest.raises(ValueError, match="ablate is one of zero, mean, resample, not 'one'"):
        _kind(None, "one")


@pytest.mark.parametrize("metric", [lambda logits: logits[:, -1], lambda logits: logits.sum()])
def test_a_metric_of_the_wrong_shape_is_an_error(model, metric):
    with pytest.raises(ValueError, match="it must give one number per prompt"):
        mk.patch(model, PAIR, "L0.mlp_out", metric)


def test_a_model_with_nan_is_an_error(build):
    model = build(seed=2)
    model.unembed.W_U.data[:, 7] = torch.nan
    with pytest.raises(ValueError, match="NaN on prompt 0 before any"):
        mk.patch(model, PAIR, "L0.mlp_out", mk.logit_diff)


def test_a_metric_that_is_nan_before_any_patch_is_an_error(model):
    def share(logits):
        return logits[:, -1, 3] * torch.tensor([1.0, 0.0, 1.0]) / torch.tensor([1.0, 0.0, 1.0])

    with pytest.raises(ValueError, match="metric 'share' is NaN on prompt 1 before any patch"):
        mk.patch(model, PAIR, "L0.mlp_out", share)


def test_a_mean_needs_reference_prompts_that_are_long_enough(model):
    short = {"ablate": "mean", "reference": REFERENCE[[2]]}
    with pytest.raises(ValueError, match=r"reaches all of site 'L0\.mlp_out' in prompt 0: the longest has 3 tokens"):
        mk.patch(model, RAGGED, "L0.mlp_out", mk.logit_diff, **short)
    with pytest.raises(ValueError, match=r"no reference prompt reaches all of site 'L0\.mlp_out@3'"):
        mk.patch(model, PAIR, "L0.mlp_out@3", mk.logit_diff, **short)
