"""Attributions on a TransformerBridge are those of the HookedTransformer with the same weights."""

import pytest
import torch

import mechkit as mk
from tests.core.test_engine_bridge import models  # noqa: F401

PAIR = mk.Pair.from_tokens([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [[3, 1, 7, 1, 5], [9, 2, 8, 5, 1]], [7, 8], [1, 2])
SITES = [
    "embed@*",
    "L*.resid_pre@*",
    "L*.attn_out",
    "L*.H*.z@*",
    "L*.H*.q@*",
    "L*.H*.k@-1",
    "L*.pattern",
    "L*.mlp_post#*",
]
WRITES = ["L*.H*.z@-1", "L0.H1.result#*", "L*.mlp_out", "L*.mlp_post#*", "embed", "L*.b_O", "b_U"]

OPTIONS = [
    (SITES, {"qk_fix": True, "grad_drop": True}),
    (SITES, {"method": "integrated", "steps": 2}),
    (SITES, {"method": "relp"}),
    (None, {"method": "direct"}),
    (WRITES, {"method": "direct", "norm": "live"}),
]


@pytest.mark.parametrize(("sites", "options"), OPTIONS, ids=str)
def test_attributions_on_a_bridge_are_those_of_its_twin(models, sites, options):  # noqa: F811
    bridge, twin = models
    found, wanted = (mk.attribute(model, PAIR, sites, mk.logit_diff, **options) for model in (bridge, twin))
    assert found.sites == wanted.sites
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-3, atol=1e-5)
    assert wanted.scores.abs().max() > 0.01


def test_a_resid_mid_that_only_the_mlp_reads_is_a_clear_error(models):  # noqa: F811
    with pytest.raises(ValueError, match="the MLP alone reads on a TransformerBridge"):
        mk.attribute(models[0], PAIR, "L*.resid_mid@*", mk.logit_diff)
