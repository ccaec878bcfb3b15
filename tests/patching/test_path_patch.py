"""Path patching equals its three passes, hook by hook, on every kind of model, and finds a path that was put there."""

import pytest
import torch

import mechkit as mk
from mechkit.core.places import cut, paste, places
from mechkit.patching import path_patch, protocol

PAIR = mk.Pair.from_tokens(
    [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [[3, 1, 7, 1, 2], [9, 4, 6, 5, 8]], [7, 8], [9, 10],
    spans={"s": [(1, 3), (2, 4)]},
)  # fmt: skip
CLOSE = {"atol": 2e-5, "rtol": 0}
"""Float32 sums in another order, on logits of size about 5."""
VARIANTS = {
    "plain": {"n_layers": 3},
    "attention only": {"n_layers": 3, "attn_only": True},
    "no norm, one head": {"n_heads": 1, "d_head": 16, "normalization_type": None},
    "grouped rotary gated": {
        "n_heads": 4, "d_head": 4, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4,
        "gated_mlp": True, "normalization_type": "RMS",
    },
    "parallel": {"parallel_attn_mlp": True, "n_layers": 3},
    "bidirectional": {"attention_dir": "bidirectional"},
    "alibi, soft-caps": {
        "positional_embedding_type": "alibi", "attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0,
    },
    "an activation with weights": {"act_fn": "solu_ln"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "post-norms": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
}  # fmt: skip
BY_PASSES = {"shortformer", "post-norms"}


def put(x, values, site, prompts, source=None):
    """`x` with the site's slices of `values`, which may come from other prompts."""
    parts = []
    for j, (here, there) in enumerate(zip(places(site, prompts), places(site, source or prompts), strict=True)):
        parts.append(paste(x[j : j + 1], site, here, cut(values[j : j + 1], site, there)))
    return torch.cat(parts)


@torch.no_grad()
def three_passes(model, pair, senders, receivers, metric, freeze="attention"):
    """The definition, one sender at a time, by TransformerLens's own hooks."""
    clean, scores = pair.clean, []
    logits, orig = model.run_with_cache(clean.tokens)
    _, new = model.run_with_cache(pair.corrupt.tokens)
    held = [name for name in orig if name.endswith("hook_z") or (freeze == "all" and name.endswith("mlp_out"))]
    hold = [(name, lambda x, hook: orig[hook.name]) for name in held]
    for site in senders:
        second = {}
        send = (site.hook, lambda x, hook, site=site: put(x, new[hook.name], site, clean, pair.corrupt))
        record = [(read.hook, lambda x, hook, second=second: second.update({hook.name: x})) for read in receivers]
        model.run_with_hooks(clean.tokens, fwd_hooks=[*hold, send, *record])
        patch = [
            (read.hook, lambda x, hook, read=read, second=second: put(x, second[hook.name], read, clean))
            for read in receivers
        ]
        out = model.run_with_hooks(clean.tokens, fwd_hooks=patch)
        scores.append(metric(out, clean) - metric(logits, clean))
    return torch.stack(scores)


def questions(model):
    """Senders, receivers and what is held, of every kind the model has."""
    last, heads = model.cfg.n_layers - 1, "L*.H*.z"
    yield heads, "logits", "attention"
    yield [heads, "L0.H0.z@*"], [f"L{last}.H0.q", f"L{last}.k@s", f"L{last}.H0.v@-1"], "attention"
    yield ["embed@2", "L0.resid_pre@s", "L1.attn_out@-1", "L0.z#3"], [f"L{last}.q@-1", f"L{last}.H0.k#2"], "all"
    yield ["L0.H0.z@*", "L1.z", "L1.resid_pre"], "L1.H0.k", "attention"
    yield ["L0.H0.z@*"], [f"L{last}.resid_pre@s[-1]", f"L{last - 1}.resid_post@2:4#1"], "attention"
    if not model.cfg.attn_only:
        yield [heads, "L*.mlp_out@-1", "L0.resid_pre@-1"], [f"L{last}.mlp_out@-1", "L1.v"], "attention"
    if f"blocks.{last}.hook_resid_mid" in model.hook_dict:
        yield ["L*.resid_mid", "L1.H0.z"], f"L{last}.resid_mid@2:5", "all"


def sites(found):
    return [edge.sender for edge in found.edges], [mk.Site.parse(text) for text in found.meta["receivers"]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_the_three_passes(build, variant):
    model = build(**VARIANTS[variant])
    for senders, receivers, freeze in questions(model):
        found = path_patch(model, PAIR, senders, receivers, mk.logit_diff, freeze=freeze)
        wanted = three_passes(model, PAIR, *sites(found), mk.logit_diff, freeze)
        assert torch.allclose(found.scores, wanted, **CLOSE), (senders, receivers, freeze)
        assert wanted.abs().max() > 1e-3
        if variant not in BY_PASSES:
            assert found.meta["path"] == "deltas"
        elif any(site.name == "z" for site in sites(found)[0]):
            assert found.meta["path"].startswith("two passes per sender")


def test_in_double_precision_the_three_passes_are_met_to_ten_digits(build):
    model = build(n_layers=3, dtype=torch.float64)
    found = path_patch(model, PAIR, "L*.H*.z", "L2.H1.q", mk.logit_diff)
    assert torch.allclose(found.scores, three_passes(model, PAIR, *sites(found), mk.logit_diff).double(), atol=1e-6)
    by_hand = one_path(model, PAIR, mk.Site.parse("L0.H1.z"), mk.Site.parse("L2.H1.q"))
    assert torch.allclose(found.scores[1], by_hand, atol=1e-12)


@torch.no_grad()
def one_path(model, pair, sender, receiver):
    """One score of the definition, in the model's own precision."""
    return three_passes(model, pair, [sender], [receiver], mk.logit_diff)[0]


@pytest.mark.parametrize("metric", [mk.logprob, lambda logits: logits.square().mean((1, 2))], ids=["ours", "plain"])
def test_any_metric_is_read_after_the_third_pass(model, metric):
    found = path_patch(model, PAIR, "L0.H*.z", "logits", metric)
    as_metric = mk.core.metrics.as_metric(metric)
    whole = [mk.Site.parse("L1.resid_post")]
    assert torch.allclose(found.scores, three_passes(model, PAIR, sites(found)[0], whole, as_metric), **CLOSE)
    ends = [as_metric(model(side.tokens), side) for side in (PAIR.clean, PAIR.corrupt)]
    assert torch.allclose(found.gap, ends[1] - ends[0], **CLOSE)
    assert found.unit == as_metric.unit


@pytest.mark.parametrize("receiver", ["L1.H0.pattern@-1", "L1.mlp_post@-1#3", "L1.ln2.normalized@-1"])
def test_other_hooks_receive_by_passes_of_their_own(model, receiver):
    found = path_patch(model, PAIR, ["L0.H*.z", "L0.mlp_out"], receiver, mk.logit_diff)
    assert torch.allclose(found.scores, three_passes(model, PAIR, *sites(found), mk.logit_diff), **CLOSE)
    assert found.meta["path"].startswith(f"two passes per sender: deltas do not compute '{receiver}'")
    assert found.scores.abs().max() > 1e-4


def test_a_ragged_batch_is_its_prompts_one_by_one(model):
    clean, corrupt = [[3, 1, 4, 1], [5, 9], [2, 6, 5, 3]], [[3, 2, 4, 1], [5, 8], [7, 6, 1, 3]]
    pair = mk.Pair.from_tokens(clean, corrupt, [1, 2, 3], [5, 6, 7])
    for receivers in ("logits", ["L1.H0.q", "L1.v"], "L1.resid_pre@1", ["L1.H1.pattern"]):
        found = path_patch(model, pair, ["L*.H*.z", "L0.mlp_out@1"], receivers, mk.logit_diff)
        alone = [path_patch(model, pair[i], ["L*.H*.z", "L0.mlp_out@1"], receivers, mk.logit_diff) for i in range(3)]
        assert torch.allclose(found.scores, torch.cat([one.scores for one in alone], 1), **CLOSE)
        assert torch.allclose(found.gap, torch.cat([one.gap for one in alone]), **CLOSE)


def test_spans_take_their_values_from_where_they_lie_in_the_corrupt_prompt(model):
    sides = [mk.Prompts.from_tokens([row], [7], [9], spans={"s": [at]}) for row, at in (
        ([3, 1, 4, 1, 5], (1, 3)), ([3, 8, 1, 7, 1, 2], (2, 4)),
    )]  # fmt: skip
    pair = mk.Pair(*sides)
    found = path_patch(model, pair, ["L0.H0.z@s", "L0.mlp_out@s[-1]"], ["L1.q@-1", "L1.k@s"], mk.logit_diff)
    assert torch.allclose(found.scores, three_passes(model, pair, *sites(found), mk.logit_diff), **CLOSE)
    assert found.scores.abs().min() > 1e-4
    with pytest.raises(ValueError, match=r"sender 'L0\.H0\.z' is \[5, 8\] in the clean prompts and \[6, 8\]"):
        path_patch(model, pair, "L0.H0.z", "logits", mk.logit_diff)


def test_a_pair_corrupted_by_edits_sends_what_they_make(model):
    pair = mk.Pair.from_edits(PAIR.clean, [mk.Noise("embed@s", 1.0, seed=3)])
    found = path_patch(model, pair, "L*.H*.z", "logits", mk.logit_diff)
    noisy = mk.sweep(model, PAIR.clean, [[]], mk.logit_diff, base=pair.edits, read="L1.H0.z")
    last = mk.sweep(
        model, PAIR.clean, [[], [mk.Replace("L1.H0.z", noisy.read[mk.Site.parse("L1.H0.z")][0])]], mk.logit_diff
    )
    assert torch.allclose(found.scores[2], last.scores[1] - last.scores[0], **CLOSE)
    assert torch.allclose(found.gap, noisy.scores[0] - last.scores[0], **CLOSE)


def test_users_hooks_are_part_of_the_model(build):
    model = build(n_layers=3)
    plain = path_patch(model, PAIR, "L*.H*.z", "L2.q", mk.logit_diff)
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook: x * 0.5, is_permanent=True)
    found = path_patch(model, PAIR, "L*.H*.z", "L2.q", mk.logit_diff)
    assert found.meta["path"] == "two passes per sender: the model has a hook on 'blocks.1.hook_mlp_out'"
    assert torch.allclose(found.scores, three_passes(model, PAIR, *sites(found), mk.logit_diff), **CLOSE)
    assert not torch.allclose(found.scores, plain.scores, atol=1e-3)


def test_heads_that_read_something_else_are_noticed(build):
    model = build(n_layers=3)
    attn = model.blocks[2].attn
    project = attn.calculate_qkv_matrices
    attn.calculate_qkv_matrices = lambda q, k, v: project(q.roll(1, -1), k, v)
    with pytest.warns(UserWarning, match="lean layers differ from this model"):
        found = path_patch(model, PAIR, "L*.H*.z", "L2.q", mk.logit_diff)
    assert found.meta["path"].endswith("a row that changes nothing does not arrive as in the clean run")
    assert torch.allclose(found.scores, three_passes(model, PAIR, *sites(found), mk.logit_diff), **CLOSE)


def test_the_last_heads_act_on_the_logits_directly(model):
    """Nothing lies between them but their own block's MLP, so path patching is activation patching."""
    found = path_patch(model, PAIR, "L1.H*.z", "logits", mk.logit_diff)
    new = mk.activations(model, PAIR.corrupt, "L1.H*.z")
    patched = mk.sweep(
        model, PAIR.clean, [[], *([mk.Replace(site, x)] for site, x in new.items())], mk.logit_diff
    ).scores
    assert torch.allclose(found.scores, patched[1:] - patched[0], **CLOSE)


def test_what_has_no_path_to_the_receivers_scores_nothing(model):
    found = path_patch(model, PAIR, ["L1.H*.z", "L1.mlp_out", "L1.resid_mid"], "L1.H0.q", mk.logit_diff)
    assert torch.equal(found.scores, torch.zeros(4, 2))
    same = mk.Pair(PAIR.clean, PAIR.clean)
    assert torch.equal(path_patch(model, same, "L0.H*.z", "logits", mk.logit_diff).scores, torch.zeros(2, 2))


def test_an_mlp_that_sends_to_itself_is_read_as_it_sends(model):
    found = path_patch(model, PAIR, ["L1.mlp_out", "L0.H0.z"], "L1.mlp_out", mk.logit_diff)
    assert found.meta["path"] == "deltas"
    assert torch.allclose(found.scores, three_passes(model, PAIR, *sites(found), mk.logit_diff), **CLOSE)


def test_chunks_of_senders_give_the_same_scores(model, monkeypatch):
    whole = path_patch(model, PAIR, "L*.H*.z@*", "L1.H0.q", mk.logit_diff)
    sizes = []
    real = protocol.measure

    def counting(question, memory):
        sizes.append(len(question.runs))
        return real(question, memory)

    monkeypatch.setattr(protocol, "measure", counting)
    monkeypatch.setattr(protocol, "_BYTES", 40_000)
    chunked = path_patch(model, PAIR, "L*.H*.z@*", "L1.H0.q", mk.logit_diff)
    assert torch.allclose(chunked.scores, whole.scores, **CLOSE)
    assert len(sizes) > 3
    assert max(sizes) < 21
    with pytest.raises(ValueError, match="memory"):
        path_patch(model, PAIR, "L*.H*.z", "L1.H0.q", mk.logit_diff, memory=-1)


def test_when_memory_runs_out_half_the_senders_go_at_a_time(model, monkeypatch):
    whole = path_patch(model, PAIR, "L*.H*.z", "L1.H0.q", mk.logit_diff)
    real = protocol.measure

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no memory is left")

    def narrow(question, memory):
        return out_of_memory() if len(question.runs) > 2 else real(question, memory)

    monkeypatch.setattr(protocol, "measure", narrow)
    found = path_patch(model, PAIR, "L*.H*.z", "L1.H0.q", mk.logit_diff)
    assert torch.allclose(found.scores, whole.scores, **CLOSE)
    monkeypatch.setattr(protocol.Protocol, "_received", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        path_patch(model, PAIR, "L*.H*.z", "L1.H0.q", mk.logit_diff)


def test_rows_are_edges_with_unit_and_gap(model):
    found = path_patch(model, PAIR, "L0.H*.z", "L1.H0.q@-1", mk.logit_diff)
    assert [str(edge) for edge in found.edges] == ["L0.H0.z -> L1.H0.q@-1", "L0.H1.z -> L1.H0.q@-1"]
    assert found.unit == "logits"
    several = path_patch(model, PAIR, "L0.H0.z", "L1.H*.q", mk.logit_diff)
    assert (str(several.edges[0]), several.meta["receivers"]) == ("L0.H0.z -> receivers", ["L1.H0.q", "L1.H1.q"])
    direct = path_patch(model, PAIR, "L0.H0.z", "logits", mk.logit_diff)
    assert str(direct.edges[0]) == "L0.H0.z -> L1.resid_post@-1"


@pytest.mark.parametrize(
    ("senders", "receivers", "options", "message"),
    [
        ("L0.H0.q", "logits", {}, r"'L0\.H0\.q' cannot send: a sender is one of embed, .*z"),
        ("L0.H0.z", "L1.H0.z", {}, r"'L1\.H0\.z' cannot receive: it is held .* freeze='attention'; take what it reads"),
        ("L0.H0.z", "L1.mlp_out", {"freeze": "all"}, r"'L1\.mlp_out' cannot receive: it is held .* freeze='all'"),
        ("L0.H0.z", "logits", {"freeze": "mlps"}, "freeze is 'attention' or 'all', not 'mlps'"),
        ("L7.H0.z", "logits", {}, r"no site 'L7\.H0\.z'"),
        ([], "logits", {}, "0 senders and 1 receivers are given"),
        ("L0.H0.z", [], {}, "1 senders and 0 receivers are given"),
    ],
)
def test_what_cannot_be_asked_is_an_error(model, senders, receivers, options, message):
    with pytest.raises(ValueError, match=message):
        path_patch(model, PAIR, senders, receivers, mk.logit_diff, **options)


def induction(build):
    """Two layers of attention: L0.H1 tells each token its predecessor, by which L1.H0 finds what came next."""
    n, n_ctx = 6, 8
    model = build(
        attn_only=True, normalization_type=None, d_vocab=n, n_ctx=n_ctx, d_model=2 * n + n_ctx, d_head=n_ctx, n_heads=2
    )
    for parameter in model.parameters():
        parameter.data *= 0.02
    token, before, place = (slice(0, n), slice(n, 2 * n), slice(2 * n, None))
    one, sharp = torch.eye(n_ctx), 60.0
    model.embed.W_E.data[:, token] += torch.eye(n)
    model.pos_embed.W_pos.data[:, place] += one
    first, second = model.blocks[0].attn, model.blocks[1].attn
    first.W_Q.data[1, place] += sharp * one
    first.W_K.data[1, place] += one.roll(1, 1)  # the key of position j is that of the query at j + 1
    first.W_V.data[1, token] += one[:n]
    first.W_O.data[1, :n, before] += torch.eye(n)
    second.W_Q.data[0, token] += sharp * one[:n]
    second.W_K.data[0, before] += one[:n]
    second.W_V.data[0, token] += one[:n]
    second.W_O.data[0, :n, token] += 5 * torch.eye(n)
    model.unembed.W_U.data[token] += torch.eye(n)
    return model


def shares(model, receivers):
    """Of what corrupting everything does, the share along each head's path to `receivers`, on A B C A and D B C A."""
    pair = mk.Pair.from_tokens([[0, 1, 2, 0], [4, 2, 5, 4]], [[3, 1, 2, 0], [1, 2, 5, 4]], [1, 2], [2, 5])
    found = path_patch(model, pair, "L*.H*.z", receivers, mk.logit_diff)
    return dict(
        zip([str(edge.sender) for edge in found.edges], (found.scores / found.gap).mean(1).tolist(), strict=True)
    )


def has_induction_path(model):
    keys, other = shares(model, "L1.H0.k"), shares(model, ["L1.H0.q", "L1.H0.v"])
    direct = shares(model, "logits")
    alone = all(abs(share) < 0.1 for name, share in keys.items() if name != "L0.H1.z")
    nothing = all(abs(share) < 0.1 for share in other.values())
    return keys["L0.H1.z"] > 0.9 and alone and nothing and direct["L1.H0.z"] > 0.9 and abs(direct["L0.H1.z"]) < 0.1


def test_the_path_of_an_induction_circuit_is_found_and_in_random_models_none(build):
    assert has_induction_path(induction(build))
    assert not has_induction_path(build(attn_only=True, normalization_type=None, d_vocab=6))
