from copy import deepcopy

import pytest
import torch

import mechkit as mk
from tests.patching import brute

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
"""Float32 sums in another order: batches use other kernels than single prompts."""

SPANS = {"s": [(1, 3), (2, 4), (0, 2)]}
PAIR = mk.Pair.from_tokens(
    [[3, 1, 4, 1], [9, 2, 6, 5], [5, 8, 9, 7]], [[3, 7, 4, 2], [8, 2, 6, 6], [5, 8, 1, 7]], [7, 8, 9], [9, 10, 11],
    spans=SPANS,
)  # fmt: skip
RAGGED = mk.Pair.from_tokens(
    [[3, 1, 4, 1], [9, 2, 6, 5, 3], [5, 8]], [[3, 7, 4, 2], [8, 2, 6, 6, 1], [6, 8]], [7, 8, 9], [9, 10, 11],
    spans=SPANS,
)  # fmt: skip
VARIANTS = {
    "plain": {},
    "grouped rotary gated": {
        "n_heads": 4, "d_head": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4,
        "gated_mlp": True, "normalization_type": "RMS",
    },
    "parallel, one head, no norm": {
        "parallel_attn_mlp": True, "n_heads": 1, "d_head": 16, "normalization_type": None,
    },
    "bidirectional": {"attention_dir": "bidirectional"},
}  # fmt: skip
ONE_PLACE = [
    "L*.resid_pre@-1", "L1.resid_post@0", "L0.attn_out@s", "L*.mlp_out@s[-1]", "L*.H*.z@-1", "L0.H*.q@1", "L*.H*.k@s",
    "L0.H*.v@-2", "L0.H*.pattern@-1<-0", "L1.pattern@s<-1", "L1.mlp_post@-1#17", "embed@1", "L1.H0.z@-1#2",
]  # fmt: skip
ALL_PLACES = ["L*.resid_pre", "L1.attn_out", "L*.mlp_out", "L*.H*.z", "L1.H*.q", "L0.H*.k", "L1.v", "L*.H*.pattern"]
GROUPS = [["L0.H*.z@-1", "L1.mlp_out@s"], ["L0.H0.v", "L0.H0.pattern"], ["embed", "L1.resid_pre@-1"], "L0.mlp_out@-1"]


def rows_of(model, sites, prompts):
    return [[site] for site in mk.expand(model, sites, prompts)]


@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_one_hooked_pass_per_site_and_prompt(build, variant, mode):
    model = build(**VARIANTS[variant])
    for pair, sites in ((PAIR, [*ONE_PLACE, *ALL_PLACES, "L0.resid_pre@*"]), (RAGGED, [*ALL_PLACES, "L*.H*.z@-1"])):
        target, source = (pair.corrupt, pair.clean) if mode == "denoise" else (pair.clean, pair.corrupt)
        found = mk.patch(model, pair, sites, mk.logit_diff, mode=mode)
        rows = rows_of(model, sites, target)
        assert found.sites == [row[0] for row in rows]
        torch.testing.assert_close(found.scores, brute.patched(model, target, source, rows, mk.logit_diff), **CLOSE)
        torch.testing.assert_close(found.gap, brute.gap(model, target, source, mk.logit_diff), **CLOSE)
        assert found.unit == "logits"
        assert found.scores.abs().max() > 0.1


def test_denoising_is_the_default_and_noising_its_opposite(model):
    default, denoise, noise = (
        mk.patch(model, PAIR, "L*.H*.z@-1", mk.logit_diff, mode=mode) for mode in (None, "denoise", "noise")
    )
    assert torch.equal(default.scores, denoise.scores)
    torch.testing.assert_close(noise.gap, -denoise.gap)
    swapped = mk.patch(model, mk.Pair(PAIR.corrupt, PAIR.clean), "L*.H*.z@-1", mk.logit_diff, mode="noise")
    assert torch.equal(swapped.scores, denoise.scores)


@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_patching_every_site_recovers_the_gap(build, variant, mode):
    model = build(**VARIANTS[variant])
    whole = ["embed", "L1.resid_pre", "L1.resid_post", "L1.resid_post@-1", ["embed", "L*.attn_out", "L*.mlp_out"]]
    found = mk.patch(model, PAIR, whole, mk.logit_diff, mode=mode)
    torch.testing.assert_close(found.scores, found.gap.expand(5, -1), **CLOSE)
    assert found.gap.abs().min() > 0.05


def test_a_group_is_patched_together_in_one_row(model):
    found = mk.patch(model, PAIR, GROUPS, mk.logit_diff)
    rows = [mk.expand(model, row) for row in GROUPS]
    assert found.groups == rows
    torch.testing.assert_close(
        found.scores, brute.patched(model, PAIR.corrupt, PAIR.clean, rows, mk.logit_diff), **CLOSE
    )
    apart = mk.patch(model, PAIR, [site for row in rows[:1] for site in row], mk.logit_diff)
    assert not torch.allclose(apart.scores.sum(0), found.scores[0], atol=1e-2)  # effects do not add up


def test_groups_are_saved_and_feed_the_next_question(model, tmp_path):
    found = mk.patch(model, PAIR, GROUPS, mk.logit_diff)
    back = mk.Result.load(found.save(tmp_path / "groups.parquet"))
    assert back.groups == found.groups
    again = mk.patch(model, PAIR, back.top(2).groups, mk.logit_diff)
    torch.testing.assert_close(again.scores, found.top(2).scores, **CLOSE)
    heads = mk.patch(model, PAIR, "L*.H*.z@-1", mk.logit_diff)
    again = mk.patch(model, PAIR, heads.top(3).sites, mk.logit_diff)
    torch.testing.assert_close(again.scores, heads.top(3).scores, **CLOSE)


def test_head_results_are_z_times_W_O_and_no_flag_is_set(build):
    model = build(**VARIANTS["grouped rotary gated"])
    sites = ["L*.H*.result@-1", "L0.result@s", "L1.H1.result", "L1.H0.result@-1#3"]
    found = mk.patch(model, PAIR, sites, mk.logit_diff)
    assert not model.cfg.use_attn_result
    flagged = deepcopy(model)
    flagged.set_use_attn_result(True)
    rows = rows_of(flagged, sites, PAIR.clean)
    torch.testing.assert_close(
        found.scores, brute.patched(flagged, PAIR.corrupt, PAIR.clean, rows, mk.logit_diff), **CLOSE
    )
    whole = mk.patch(model, PAIR, "L0.H*.z@-1", mk.logit_diff)
    torch.testing.assert_close(found.where(layer=0, pos=-1).scores, whole.scores, **CLOSE)


def test_key_and_value_rows_are_the_models_own_heads(build):
    model = build(**VARIANTS["grouped rotary gated"])
    assert len(mk.patch(model, PAIR, ["L0.H*.k", "L0.H*.v"], mk.logit_diff)) == 4
    with pytest.raises(ValueError, match="heads 0 to 1"):
        mk.patch(model, PAIR, "L0.H2.k", mk.logit_diff)


def test_several_metrics_are_measured_in_one_sweep(model):
    metrics = [mk.logit_diff, mk.logprob, last_token_logit]
    found = mk.patch(model, PAIR, "L*.H*.z@-1", metrics)
    assert (found.axes, found.scores.shape, found.gap.shape) == (("row", "prompt", "metric"), (4, 3, 3), (3, 3))
    for metric, unit in zip(metrics, ("logits", "nats", "metric"), strict=True):
        alone = mk.patch(model, PAIR, "L*.H*.z@-1", metric)
        one = found.metric(alone.meta["metrics"][0])
        assert one.unit == alone.unit == unit
        torch.testing.assert_close(one.scores, alone.scores, **CLOSE)
        torch.testing.assert_close(one.gap, alone.gap, **CLOSE)
        assert one.top(1).labels == alone.top(1).labels


def last_token_logit(logits, prompts):
    return torch.stack([row[length - 1, 3] for row, length in zip(logits, prompts.lengths, strict=True)])


def test_intervals_hold_the_mean_of_the_prompts(model):
    found = mk.patch(model, PAIR, "L*.H*.z@-1", mk.logit_diff)
    low, high = found.interval(level=0.9)
    mean = found.scores.mean(1)
    assert ((low <= mean) & (mean <= high)).all()
    assert (low < high).all()


def test_a_batch_is_its_pairs_one_by_one(model):
    sites = ["L*.H*.z@-1", "L0.mlp_out@s"]
    whole = mk.patch(model, PAIR, sites, mk.logit_diff)
    for i in range(3):
        one = mk.patch(model, PAIR[[i]], sites, mk.logit_diff)
        torch.testing.assert_close(one.scores[:, 0], whole.scores[:, i], **CLOSE)


def test_no_more_passes_than_documented(build):
    model = build()
    passes = []
    model.add_hook("hook_embed", lambda x, hook: passes.append(len(x)))
    found = mk.patch(model, PAIR, "L*.H*.z@*", mk.logit_diff)
    assert 2 <= len(passes) <= len(found) + 2
    model.reset_hooks()


def test_meta_says_how_it_was_made_and_is_json(model, tmp_path):
    found = mk.patch(model, PAIR, "L0.H0.z@-1", mk.logit_diff, mode="noise")
    assert {
        "verb": "patch",
        "kind": "noise",
        "metrics": ["logit_diff"],
        "units": ["logits"],
    }.items() <= found.meta.items()
    assert mk.Result.load(found.save(tmp_path / "a.parquet")).meta == found.meta


def copying_model(build):
    """Head L0.H1 takes the token at position 1 to the last position; nothing else does anything."""
    model = build(
        n_layers=1, d_model=24, n_heads=2, d_head=10, n_ctx=4, d_vocab=10, attn_only=True, normalization_type=None
    )
    for parameter in model.parameters():
        parameter.data.zero_()
    model.embed.W_E.data[:, :10] = torch.eye(10)  # token in the first ten dimensions
    model.pos_embed.W_pos.data[:, 10:14] = torch.eye(4)  # position in the next four
    attn = model.blocks[0].attn
    attn.W_Q.data[1, 13, 0] = 50.0  # the last position asks
    attn.W_K.data[1, 11, 0] = 50.0  # position 1 answers
    attn.W_V.data[1, :10] = torch.eye(10)
    attn.W_O.data[1, :, 14:] = torch.eye(10)  # written to the last ten dimensions, which are the logits
    model.unembed.W_U.data[14:] = torch.eye(10)
    return model


COPIED = mk.Pair.from_tokens([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 9, 0, 4], [5, 3, 2, 8]], [2, 6], [9, 3])


def follows_the_copying_circuit(model):
    """Whether patching says: token 1 enters at position 1, goes through v and z of head 1, and nowhere else."""
    found = mk.patch(
        model, COPIED, ["L0.resid_pre@*", "L0.H*.z@*", "L0.H*.v@*", "L0.H*.q", "L0.H*.pattern"], mk.logit_diff
    )
    full = {label for label, score in zip(found.labels, found.scores, strict=True) if torch.allclose(score, found.gap)}
    none = {label for label, score in zip(found.labels, found.scores, strict=True) if score.abs().max() < 1e-5}
    carriers = {"L0.resid_pre@1", "L0.H1.z@3", "L0.H1.v@1"}
    return full == carriers and none == set(found.labels) - carriers


def test_a_known_circuit_is_found_again_and_a_random_model_does_not_pass(build):
    assert follows_the_copying_circuit(copying_model(build))
    assert not follows_the_copying_circuit(build(n_layers=1, n_ctx=4, d_vocab=10, attn_only=True))


def test_the_addition_model_reads_the_second_number_where_it_stands(addition):
    pair = mk.tasks.addition(8, seed=0)  # clean and corrupt differ in the second number
    found = mk.patch(addition, pair, "L*.resid_pre@*", mk.logit_diff)
    grid = found.grid("layer", "pos").values
    gap = float(found.gap.mean())
    assert gap > 5
    assert abs(grid[0, 2] - gap) < 1e-3 * gap
    assert abs(grid[0, [0, 1, 3]]).max() < 1e-3 * gap
    assert found.where(layer=1).top(1).sites[0].pos == 3  # by then most of it is at the equals sign
    last = mk.patch(addition, pair, "L1.resid_post@-1", mk.logit_diff)
    torch.testing.assert_close(last.scores[0], last.gap, atol=1e-3, rtol=1e-4)  # logits of some tens


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_hooks_read_whole_and_cut_give_the_values_read_one_by_one(model, monkeypatch, mode):
    sites = [*ONE_PLACE, *ALL_PLACES, "L*.H*.result@s", "L0.resid_pre@1:3"]
    few = mk.patch(model, PAIR, sites, mk.logit_diff, mode=mode)
    monkeypatch.setattr("mechkit.patching.values._FEW", 0)
    torch.testing.assert_close(mk.patch(model, PAIR, sites, mk.logit_diff, mode=mode).scores, few.scores, **CLOSE)
