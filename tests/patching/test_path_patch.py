"""Path patching equals its three passes, hook by hook, on every kind of model, and finds a path that was put there."""

import pytest
import torch

import mechkit as mk
from mechkit.core.places import cut, paste, places
from mechkit.patching.paths import path_patch

PAIR = mk.Pair.from_tokens(
    [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [[3, 1, 7, 1, 2], [9, 4, 6, 5, 8]], [7, 8], [9, 10], spans={"s": [(1, 3), (2, 4)]}
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_the_three_passes(build, variant):
    model = build(**VARIANTS[variant])
    for senders, receivers, freeze in questions(model):
        found = path_patch(model, PAIR, senders, receivers, mk.logit_diff, freeze=freeze)
        sites = [edge.sender for edge in found.edges]
        wanted = three_passes(
            model, PAIR, sites, [mk.Site.parse(text) for text in found.meta["receivers"]], mk.logit_diff, freeze
        )
        assert torch.allclose(found.scores, wanted, **CLOSE), (senders, receivers, freeze)
        assert wanted.abs().max() > 1e-3
        if variant not in BY_PASSES:
            assert found.meta["path"] == "deltas"
        elif any(site.name == "z" for site in sites):
            assert found.meta["path"].startswith("two passes per sender")
