"""What estimates of patching are held against: their definitions, one hooked pass at a time."""

import torch

import mechkit as mk
from mechkit.core.interventions import Replace
from mechkit.core.places import cut, places

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


OPTIONS = [
    {},
    {"qk_fix": True, "grad_drop": True},
    {"method": "integrated", "steps": 3},
    {"method": "integrated", "steps": 3, "path": "activations"},
    {"method": "relp"},
    {"method": "direct"},
    {"method": "direct", "norm": "live"},
]
