"""One contract for all analyses: what every verb leaves as it was, on any model, whatever happens half-way.

A verb joins by one line in `VERBS`: a function of the model and the inputs that returns its numbers and their unit.
"""

import tempfile
from copy import deepcopy

import pytest
import torch

import mechkit as mk
from tests.features.tiny import tiny_sae

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def sweep(model, prompts):
    runs = [[mk.Noise("embed@1", 1.0), mk.Zero("L1.H0.z@-1")], [mk.ProjectOut("L1.resid_pre", torch.ones(1, 16))]]
    found = mk.sweep(model, prompts, runs, mk.logit_diff, read="L1.resid_pre@-1")
    return torch.cat([found.scores.flatten(), *[values.flatten() for values in found.read.values()]]), found.unit


def activations(model, prompts):
    found = mk.activations(model, prompts, "L*.H*.z@*")
    return torch.cat([values.flatten() for values in found.values()]), "activation"


def likeliest(model, prompts):
    from mechkit.core.prompts import likeliest

    return likeliest(model, prompts), "token id"


def trace(model, prompts):
    graph = mk.trace(model, prompts[0])
    return torch.as_tensor(graph.matrix()).flatten(), "pre-activation"


def trace_many(model, prompts):
    graphs = mk.trace_many(model, prompts.tokens, by=["a", "b"])
    return torch.tensor(graphs.edges()["weight"].tolist()), "pre-activation"


def patch(model, prompts):
    corrupt = mk.Prompts.from_tokens(TOKENS.flip(0), [7, 8], [9, 10], spans=dict(prompts.spans))
    pairs = mk.Pair(prompts, corrupt), mk.Pair.from_edits(prompts, [mk.Noise("embed@s", 1.0)])
    sites = ["L*.H*.z@-1", "L0.H0.result@s", ["L0.mlp_out@1", "L1.pattern"]]
    found = [mk.patch(model, pair, sites, [mk.logit_diff, mk.logprob]) for pair in pairs]
    found += [mk.patch(model, pairs[0], sites, mk.logit_diff, ablate=kind) for kind in ("zero", "mean", "resample")]
    return torch.cat([one.scores.flatten() for one in found]), found[0].unit


def compat(model, prompts):
    from mechkit.core.places import expand
    from mechkit.patching.compat import get_act_patch_block_every

    hooks = [site.hook for site in expand(model, ["L*.resid_pre", "L*.attn_out", "L*.mlp_out"])]
    cache = {hook: torch.linspace(-1, 1, 160).reshape(2, 5, 16) for hook in hooks}
    scores = get_act_patch_block_every(model, TOKENS.flip(0), cache, lambda logits: logits[:, -1, 3].mean())
    return scores.flatten(), "metric"


def attribute(model, prompts):
    corrupt = mk.Prompts.from_tokens(TOKENS.flip(0), [7, 8], [9, 10], spans=dict(prompts.spans))
    sites = ["L*.H*.z@-1", "L0.H0.result@s#2", "L0.mlp_out@1", "L1.H*.q@s"]
    options = [
        {"qk_fix": True, "grad_drop": True},
        {"method": "integrated", "steps": 2},
        {"method": "integrated", "steps": 2, "path": "activations"},
        {"method": "relp"},
    ]
    pair = mk.Pair(prompts, corrupt)
    found = [mk.attribute(model, pair, sites, mk.logit_diff, **more) for more in options]
    found += [
        mk.attribute(model, prompts, None, mk.logit_diff, method="direct", norm=norm) for norm in ("frozen", "live")
    ]
    return torch.cat([one.scores.flatten() for one in found]), found[0].unit


def path_patch(model, prompts):
    pair = mk.Pair(prompts, mk.Prompts.from_tokens(TOKENS.flip(0), [7, 8], [9, 10], spans=dict(prompts.spans)))
    found = mk.path_patch(model, pair, ["L0.H*.z", "L0.mlp_out@1", "embed@s"], ["L1.H0.q", "L1.k@s"], mk.logit_diff)
    direct = mk.path_patch(model, pair, "L*.H*.z", "logits", mk.logit_diff, freeze="all")
    return torch.cat([found.scores, direct.scores]).flatten(), found.unit


def feature_effect(model, prompts):
    from mechkit.features import effect

    found = [effect(model, sae_of_a_stream(), [3, 7], prompts, mk.logit_diff, **how) for how in FEATURE_EDITS]
    return torch.cat([one.scores.flatten() for one in found]), found[0].unit


def sae_quality(model, prompts):
    found = mk.sae_quality(model, sae_of_a_stream(), TOKENS)
    return torch.tensor([found.loss, found.loss_rebuilt, found.loss_mean, found.l0, found.explained_variance]), "nats"


def lookup(model, prompts):
    """A scan, a lookup by effect, a quality and a test of a label, which all run the model."""
    with tempfile.TemporaryDirectory() as folder:
        index = mk.scan(model, sae_of_a_stream(), TOKENS.repeat(20, 1), f"{folder}/index", top=2, sample=40)
        found = index.lookup(prompts[0], effect=mk.logit_diff)
        values = [found.rows["effect"].tolist(), found.rows["activation"].tolist(), [index.quality(50).loss_rebuilt]]
        values += [index.contrast(TOKENS.tolist(), TOKENS.flip(1).tolist()).rows["effect"].tolist()]
    return torch.tensor([value for some in values for value in some]), found.unit


FEATURE_EDITS = ({}, {"error": False, "pos": -1}, {"steer": 2.0, "pos": "s"})


def sae_of_a_stream():
    with torch.random.fork_rng(devices=[]):  # SAELens draws weights, which are then replaced
        return tiny_sae(hook="blocks.1.hook_resid_mid")


VERBS = {
    "feature_effect": feature_effect,
    "sae_quality": sae_quality,
    "lookup": lookup,
    "path_patch": path_patch,
    "attribute": attribute,
    "patch": patch,
    "compat": compat,
    "sweep": sweep,
    "activations": activations,
    "likeliest": likeliest,
    "trace": trace,
    "trace_many": trace_many,
}

ERRORS = {"an error": ValueError("half-way"), "Ctrl-C": KeyboardInterrupt()}


@pytest.fixture
def model(build):
    """A model a user has already worked with: training, part frozen, gradients, hooks of both kinds, a flag set."""
    model = deepcopy(build(use_hook_mlp_in=True)).train()
    model.embed.W_E.requires_grad_(False)
    model(TOKENS).sum().backward()
    model.fired = []
    model.add_hook("blocks.0.hook_resid_mid", lambda x, hook: model.fired.append("permanent"), is_permanent=True)
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: model.fired.append("ordinary"))
    return model


@pytest.fixture
def prompts():
    return mk.Prompts.from_tokens(TOKENS, [7, 8], [9, 10], spans={"s": [(0, 2), (1, 3)]})


def state(model, prompts):
    """Everything a verb must leave as it was."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "config": deepcopy(model.cfg.to_dict()),
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [list(point._forward_hooks), list(point._backward_hooks), len(point.fwd_hooks), len(point.bwd_hooks)]
            for name, point in model.hook_dict.items()
        },
        "modules": [name for name, _ in model.named_modules()],
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "rng": torch.get_rng_state(),
        "inputs": [prompts.tokens.clone(), prompts.mask.clone(), prompts.answers.clone(), prompts.wrong.clone()],
        "spans": dict(prompts.spans),
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for part in before:
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0, equal_nan=True) if _has_tensors(
            before[part]
        ) else _assert_equal(part, before[part], after[part])


def _has_tensors(value):
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    values = list(values)
    return bool(values) and all(isinstance(one, torch.Tensor) for one in values)


def _assert_equal(part, before, after):
    if part == "grads":
        assert before.keys() == after.keys()
        for name in before:
            assert (before[name] is None) == (after[name] is None), name
            assert before[name] is None or torch.equal(before[name], after[name]), name
    else:
        assert before == after, part


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_leaves_everything_as_it_was(verb, model, prompts):
    before = state(model, prompts)
    VERBS[verb](model, prompts)
    assert_same(before, state(model, prompts))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("verb", VERBS)
def test_grad_mode_is_as_it_was(verb, model, prompts, grad):
    with torch.set_grad_enabled(grad):
        VERBS[verb](model, prompts)
        assert torch.is_grad_enabled() is grad


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_cut_short_leaves_everything_as_it_was(verb, error, model, prompts):
    def fail(x, hook):
        raise ERRORS[error]

    model.add_hook("blocks.1.attn.hook_z", fail)
    before = state(model, prompts)
    with pytest.raises(type(ERRORS[error])):
        VERBS[verb](model, prompts)
    assert_same(before, state(model, prompts))


@pytest.mark.parametrize("verb", VERBS)
def test_the_users_own_hooks_stay_and_fire_in_every_pass(verb, model, prompts):
    model.fired.clear()
    VERBS[verb](model, prompts)
    assert model.fired
    assert model.fired.count("permanent") == model.fired.count("ordinary")
    model.fired.clear()
    model(TOKENS)
    assert model.fired == ["permanent", "ordinary"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_users_hook_that_edits_is_part_of_the_model(verb, model, prompts):
    plain, _ = VERBS[verb](model, prompts)
    model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x.roll(1, -1), is_permanent=True)
    if verb in ("trace", "trace_many"):  # a graph is of the model's own weights, and says where a hook comes between
        with pytest.raises(ValueError, match=r"layer 0 differs .* hooks and modules of your own"):
            VERBS[verb](model, prompts)
        return
    hooked, _ = VERBS[verb](model, prompts)
    assert plain.shape != hooked.shape or not torch.equal(plain, hooked)


@pytest.mark.parametrize("verb", VERBS)
def test_the_same_call_twice_gives_the_same_finite_numbers_with_a_unit(verb, model, prompts):
    first, unit = VERBS[verb](model, prompts)
    torch.manual_seed(123)
    second, _ = VERBS[verb](model, prompts)
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert unit
