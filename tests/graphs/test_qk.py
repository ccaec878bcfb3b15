"""Pairs of sources sum to the model's attention scores, and a pair is what ablating both sides at once says."""

import pytest
import torch

from tests.core.architectures import make
from tests.graphs.frozen_runs import across, traced, transcoders

OF_ATTENTION = (
    "LayerNorm", "no norm", "rotary, adjacent pairs", "rotary, some dimensions", "rotary, stretched with the prompt",
    "queries scaled by log n", "shortformer", "ALiBi", "Llama", "folded parallel", "attention only",
    "grouped queries, ungrouped", "soft-capped scores", "scores divided by the layer", "clipped q, k, v", "Gemma 2",
    "OLMo 2", "QK-norm", "attention sinks", "split query, key and value inputs",
)  # fmt: skip
"""Variants that make scores in a way of their own."""


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_pairs_and_remainder_sum_to_the_models_score(build, name):
    model = make(build, name)
    for parameter in [p for n, p in model.named_parameters() if n.endswith("_norm.w")]:
        parameter.data = 1 + 0.3 * torch.sin(torch.arange(len(parameter), dtype=parameter.dtype))
    graph = traced(model, None if model.cfg.attn_only else transcoders(model))
    seen = {}
    hook = [("blocks.1.attn.hook_attn_scores", lambda x, hook: seen.update(scores=x.detach()))]
    model.run_with_hooks(graph.attribution.frozen.prompts.tokens, fwd_hooks=hook)
    for head, query, key in ((0, 4, 1), (1, 3, 3)):
        found = graph.qk_attribution(f"L1.H{head}.attn_scores@{query}<-{key}", 6)
        cap = model.cfg.attn_scores_soft_cap
        inner = found.bilinear if not cap or cap < 0 else cap * torch.tanh(torch.tensor(found.bilinear) / cap)
        true = float(seen["scores"][0, head, query, key])
        size = sum(abs(value) for _, value in found.by_query)
        assert abs(float(inner) + found.position_bias - true) < 1e-5 * max(size, 1)  # required: 1e-4
        assert abs(sum(value for *_, value in found.pairs) + found.remainder - found.bilinear) < 1e-5 * max(size, 1)
        assert sum(value for _, value in found.by_key) == pytest.approx(found.bilinear, abs=1e-4 * max(size, 1))
        sizes = [abs(value) for *_, value in found.pairs]
        assert len(sizes) == 6
        assert sizes == sorted(sizes, reverse=True)


def test_a_pair_is_what_taking_both_away_together_adds(build):
    """q.k is bilinear: the change by both, less the changes by each alone, is the pair's part."""
    model = make(build, "LayerNorm")
    graph = traced(model, across(model))
    site, layer, head, query, key = "L2.H1.attn_scores@4<-2", 2, 1, 4, 2
    found = graph.qk_attribution(site, 40)
    frozen, engine = graph.attribution.frozen, graph.attribution
    base = [hook for edit in frozen.freeze(mlps=True) for hook in edit.hooks(model, frozen.prompts)]

    def score(q_nodes, k_nodes):
        """The score with nodes' writes taken out of the query's, and of the key's, side."""
        sides = {}
        for side, nodes in (("q", q_nodes), ("k", k_nodes)):
            from mechkit.graphs.truth.exact import suppression

            edits = [hook for e in suppression(graph, *nodes) for hook in e.hooks(model, frozen.prompts)]
            name = f"blocks.{layer}.attn.hook_{side}"
            hooks = [*base, *edits, (name, lambda x, hook, side=side: sides.__setitem__(side, x))]
            with torch.no_grad():
                model.run_with_hooks(frozen.prompts.tokens, fwd_hooks=hooks)
        q, k = sides["q"][0, query, head], sides["k"][0, key, head]
        return float(q @ k / model.blocks[layer].attn.attn_scale)

    pairs = [pair for pair in found.pairs if pair[0].kind == pair[1].kind == "feature"][:4]
    assert len(pairs) == 4
    assert engine.bases[0].reaches == range(0, 3)
    for s, t, value in pairs:
        together = score([], []) - score([s], []) - score([], [t]) + score([s], [t])
        assert together == pytest.approx(value, abs=2e-5)  # float32 differences of scores near 1


@pytest.mark.parametrize(
    ("site", "complaint"),
    [
        ("L1.H0.attn_scores@1<-3", "hidden by the attention mask"),
        ("L1.H0.attn_scores@1", "not one attention score"),
        ("L1.H0.z@1", "not one attention score"),
        ("L9.H0.attn_scores@1<-0", "layers 0 to 2 and heads 0 to 1"),
        ("L1.H0.attn_scores@9<-0", "positions 0 to 4"),
    ],
)
def test_what_is_no_score_is_refused(build, site, complaint):
    graph = traced(make(build, "LayerNorm"), None)
    with pytest.raises(ValueError, match=complaint):
        graph.qk_attribution(site)
