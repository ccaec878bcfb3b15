"""On a trained language model (grouped queries, rotary, gated MLPs): estimates beside patching, direct effects."""

from pathlib import Path

import pytest
import torch

import mechkit as mk
from tests.patching.estimates import spearman

ROOT = Path(__file__).parents[2]
STORIES = next((f for f in (ROOT / "shared", ROOT.parent / "shared") if f.is_dir()), ROOT) / "data/stories260k"

pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="no shared/data/stories260k in or beside the checkout")


@pytest.fixture(scope="module")
def stories():
    model = mk.load(STORIES, device="cpu")
    texts = ["Lily had a dog. Lily", "Tom had a ball. Tom"], ["Lily had a cat. She", "Tom had a bike. He"]
    rows = [[model.to_tokens(text)[0].tolist() for text in side] for side in texts]
    n = [min(len(a), len(b)) for a, b in zip(*rows, strict=True)]
    clean, corrupt = ([row[-k:] for row, k in zip(side, n, strict=True)] for side in rows)
    return model, mk.Pair.from_tokens(clean, corrupt, [10, 11], [12, 13])


def test_components_sum_to_the_metric_of_a_trained_model(stories):
    model, pair = stories
    found = mk.attribute(model, pair, None, mk.logit_diff, method="direct")
    assert (found.scores.sum(0) - found.gap).abs().max() < 1e-5
    assert found.gap.abs().min() > 1


def test_estimates_rank_the_heads_of_a_trained_model_nearly_as_patching_does(stories):
    model, pair = stories
    sites = ["L*.H*.z", "L*.mlp_out@-1"]
    exact = mk.patch(model, pair, sites, mk.logit_diff).scores
    options = [{}, {"method": "integrated"}, {"method": "integrated", "path": "activations"}]
    agree = [spearman(mk.attribute(model, pair, sites, mk.logit_diff, **one).scores, exact) for one in options]
    assert agree[2] >= agree[0] > 0.5, agree
    control = spearman(torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)), exact)
    assert control < 0.4, control


def test_the_qk_fix_is_nearer_to_patching_a_query(stories):
    model, pair = stories
    sites = ["L*.H*.q@-1", "L*.H*.k@-2"]
    exact = mk.patch(model, pair, sites, mk.logit_diff).scores
    errors = [
        float((mk.attribute(model, pair, sites, mk.logit_diff, qk_fix=fix).scores - exact).abs().mean())
        for fix in (True, False)
    ]
    assert errors[0] < errors[1], errors
