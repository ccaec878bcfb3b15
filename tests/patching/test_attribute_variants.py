"""GradDrop, RelP, agreement with patching on a trained model, costs and wrong input of `attribute`."""

import pytest
import torch

import mechkit as mk
from mechkit.core.metrics import as_metric
from mechkit.patching.attribution import check_options
from tests.conftest import tiny_model
from tests.patching.estimates import CLEAN, CLOSE, CORRUPT, OPTIONS, PAIR, by_definition, spearman


def cancelling_model():
    """Layer 0's MLP writes coordinate 0; layer 1's MLP reads it and writes its negative: the two paths cancel."""
    model = tiny_model(normalization_type=None, n_heads=1)
    for name, parameter in model.named_parameters():
        if name != "embed.W_E":
            parameter.data.zero_()
    mlps = [block.mlp for block in model.blocks]
    mlps[0].W_in.data[1, 0] = mlps[0].W_out.data[0, 0] = mlps[1].W_in.data[0, 0] = 1.0
    mlps[1].W_out.data[0, 0] = -1.0
    for mlp in mlps:
        mlp.b_in.data[0] = 100.0
    model.unembed.W_U.data[0, [7, 8, 9]] = 1.0
    return model


def test_grad_drop_sees_a_component_whose_paths_cancel():
    """Its own layer left out: 0. The other left out: the direct path alone, counted whole, as 1 / (L - 1) is 1."""
    model = cancelling_model()
    plain = mk.attribute(model, PAIR, "L0.mlp_out@-1", mk.logit_diff).scores
    dropped = mk.attribute(model, PAIR, "L0.mlp_out@-1", mk.logit_diff, grad_drop=True).scores
    alone = mk.attribute(model, PAIR, "L0.mlp_out@-1", mk.logit_diff, method="direct").scores
    corrupt = mk.attribute(model, PAIR.corrupt, "L0.mlp_out@-1", mk.logit_diff, method="direct").scores
    assert plain.abs().max() < 1e-5
    torch.testing.assert_close(dropped, (alone - corrupt).abs(), rtol=1e-4, atol=1e-4)
    assert dropped.max() > 0.1


def test_grad_drop_is_the_mean_size_over_layers_times_l_over_l_minus_1():
    model, sites = tiny_model(n_layers=3), ["L*.H*.z@*", "L*.mlp_out@*", "L*.resid_pre@2"]
    found = mk.attribute(model, PAIR, sites, mk.logit_diff, grad_drop=True)
    total = 0
    for layer in range(3):
        cut = model_without_gradient(model, layer)
        total = total + by_definition(cut, found.sites).abs()
        cut.reset_hooks()
    torch.testing.assert_close(found.scores, total / 3 * (3 / 2), **CLOSE)


def model_without_gradient(model, layer):
    """Nothing flows back from what this layer adds; a hook of the test keeps its own gradient, which is then 0."""

    def cut(x, hook):
        x.register_hook(torch.zeros_like) if x.requires_grad else None

    for name in ("attn_out", "mlp_out"):
        model.add_hook(f"blocks.{layer}.hook_{name}", cut)
    return model


def test_relp_is_change_times_its_coefficient():
    """Against coefficients from copies of the norms and activation functions, frozen by hand."""
    model = tiny_model(act_fn="gelu")
    sites = ["L*.resid_pre@*", "L*.mlp_post#*", "L*.H*.z@*", "L*.H*.v@*", "L*.H*.q@*"]
    found = mk.attribute(model, PAIR, sites, mk.logit_diff, method="relp")
    frozen = [name for name in model.hook_dict if name.endswith(("hook_pattern", "hook_scale"))]
    for name in frozen:
        model.add_hook(name, lambda x, hook: x.detach())
    functions = [block.mlp.act_fn for block in model.blocks]
    for block in model.blocks:
        block.mlp.act_fn = lambda x, f=block.mlp.act_fn: x * (f(x) / x).detach()
    try:
        torch.testing.assert_close(found.scores, by_definition(model, found.sites), **CLOSE)
    finally:
        model.reset_hooks()
        for block, function in zip(model.blocks, functions, strict=True):
            block.mlp.act_fn = function
    assert found.scores.abs().max() > 0.01
    assert not found.where(name="q").scores.any()


@pytest.fixture(scope="module")
def sums(addition):
    """Sums, sites of the addition model and their exact scores; the control is a random model's exact scores."""
    pair = mk.tasks.addition(20, seed=0)
    sites = ["L*.resid_pre@*", "L*.attn_out@*", "L*.mlp_out@*", "L*.H*.z@*"]
    return addition, pair, sites, mk.patch(addition, pair, sites, mk.logit_diff).scores


def test_on_the_addition_model_integrated_gradients_agree_with_patching_where_gradients_do_less(sums):
    """Spearman over sites and prompts. Random scores agree with nothing."""
    model, pair, sites, exact = sums
    runs = {
        "AtP": {},
        "RelP": {"method": "relp"},
        "inputs": {"method": "integrated", "steps": 10},
        "activations": {"method": "integrated", "steps": 10, "path": "activations"},
    }
    agree = {
        name: spearman(mk.attribute(model, pair, sites, mk.logit_diff, **options).scores, exact)
        for name, options in runs.items()
    }
    control = spearman(torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)), exact)
    assert agree["activations"] > 0.85, agree
    assert agree["inputs"] > 0.8, agree
    assert agree["RelP"] > 0.7, agree
    assert agree["activations"] > agree["inputs"] > agree["AtP"] > 0.45, agree
    assert agree["RelP"] > agree["AtP"], agree
    assert abs(control) < 0.1


def test_gradients_of_another_model_do_not_agree_with_this_ones_patching(sums):
    from copy import deepcopy

    model, pair, sites, exact = sums
    other = deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        shuffled = torch.randperm(parameter.numel(), generator=generator)
        parameter.data = parameter.data.flatten()[shuffled].reshape(parameter.shape)
    options = {"method": "integrated", "steps": 10, "path": "activations"}
    assert spearman(mk.attribute(other, pair, sites, mk.logit_diff, **options).scores, exact) < 0.5


COSTS = [
    ({}, 2, 1),
    ({"qk_fix": True}, 2, 1),
    ({"grad_drop": True}, 2, 2),
    ({"method": "relp"}, 2, 1),
    ({"method": "integrated", "steps": 5}, 2 + 1, 1),
    ({"method": "integrated", "steps": 5, "batch_size": 3}, 2 + 5, 5),
    ({"method": "direct"}, 1, 1),
    ({"method": "direct", "norm": "live"}, 1, 0),
]


@pytest.mark.parametrize(("options", "forwards", "backwards"), COSTS, ids=str)
def test_passes_are_those_documented(options, forwards, backwards):
    model, passed = tiny_model(), {"forward": 0, "backward": 0}

    def count(x, hook):
        passed["forward"] += 1

    def count_back(x, hook):
        def back(gradient):
            passed["backward"] += 1

        x.register_hook(back) if x.requires_grad else None

    model.add_hook("hook_embed", count)
    model.add_hook("ln_final.hook_normalized", count_back)
    sites = ["L*.H*.z@*", *([] if options.get("method") == "direct" else ["L*.H*.q@*"])]
    mk.attribute(model, PAIR, sites, mk.logit_diff, **options)
    assert passed == {"forward": forwards, "backward": backwards}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_get_no_gradients(options):
    model = tiny_model()
    mk.attribute(model, PAIR, ["L*.H*.z@*", "L0.mlp_out"], mk.logit_diff, **options)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("metric", [mk.logprob, mk.loss, mk.prob, lambda logits: logits[:, -1, 3] - logits[:, 1, 4]])
def test_any_differentiable_metric_will_do(metric):
    model = tiny_model()
    found = mk.attribute(model, PAIR, "L*.resid_pre@*", metric)
    torch.testing.assert_close(found.scores, by_definition(model, found.sites, as_metric(metric)), **CLOSE)


def test_kl_to_the_clean_logits_can_be_taken_in_batches():
    model = tiny_model()
    metric = mk.kl(model(CLEAN).detach())
    found = mk.attribute(model, PAIR, "L*.resid_pre@*", metric, batch_size=1)
    torch.testing.assert_close(found.scores, by_definition(model, found.sites, metric), **CLOSE)
    torch.testing.assert_close(found.gap, -metric(model(CORRUPT).detach(), PAIR.corrupt))


BAD = [
    ({"method": "integrated", "steps": 0}, "steps is 0"),
    ({"method": "relp", "qk_fix": True}, "belong to method='gradient'"),
    ({"method": "integrated", "grad_drop": True}, "belong to method='gradient'"),
    ({"batch_size": 0}, "batch_size is 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_options_that_make_no_sense_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        mk.attribute(tiny_model(), PAIR, "L*.H*.z@*", mk.logit_diff, **options)


@pytest.mark.parametrize("option", ["method", "mode", "path", "norm"])
def test_unknown_choices_are_errors_that_list_the_known(option):
    """Asked of the check itself: in the tests, types are refused before it."""
    choices = {"method": "gradient", "mode": "noise", "path": "inputs", "norm": "live"}
    rest = {"steps": 1, "batch_size": 1, "qk_fix": False, "grad_drop": False}
    check_options(tiny_model(), **choices, **rest)
    with pytest.raises(ValueError, match=f"{option} is one of") as error:
        check_options(tiny_model(), **choices | {option: "warm"}, **rest)
    assert choices[option] in str(error.value)
    assert "'warm'" in str(error.value)


def test_questions_that_cannot_be_asked_are_clear_errors():
    model = tiny_model()
    with pytest.raises(TypeError, match="needs a Pair"):
        mk.attribute(model, PAIR.clean, "L*.H*.z", mk.logit_diff)
    with pytest.raises(ValueError, match="needs sites"):
        mk.attribute(model, PAIR, None, mk.logit_diff)
    with pytest.raises(ValueError, match=r"no site 'L7.H0.z'"):
        mk.attribute(model, PAIR, "L7.H0.z", mk.logit_diff)
    with pytest.raises(ValueError, match=r"'L0.mlp_in' was never reached"):
        mk.attribute(model, PAIR, "L0.mlp_in", mk.logit_diff)
    with pytest.raises(ValueError, match="the metric has no gradient"):
        mk.attribute(model, PAIR, "L*.H*.z", mk.accuracy)
    with pytest.raises(ValueError, match="needs two or more"):
        mk.attribute(tiny_model(n_layers=1), PAIR, "L*.H*.z", mk.logit_diff, grad_drop=True)
    with pytest.raises(ValueError, match=r"edited at 'L1.z'"):
        mk.attribute(
            model, mk.Pair.from_edits(PAIR.clean, [mk.Noise("L1.z", 1.0)]), "L1.z", mk.logit_diff, method="integrated"
        )
    olmo = tiny_model(original_architecture="Olmo2ForCausalLM", normalization_type="RMS")
    with pytest.raises(ValueError, match="over all heads together"):
        mk.attribute(olmo, PAIR, "L*.H*.q", mk.logit_diff, qk_fix=True)


def test_a_result_says_how_it_was_made_and_its_sites_feed_patch(tmp_path):
    found = mk.attribute(tiny_model(), PAIR, "L*.H*.q@*", mk.logit_diff, qk_fix=True)
    assert found.meta["verb"] == "attribute"
    assert found.meta["qk_fix"] is True
    again = mk.Result.load(found.save(tmp_path / "found.parquet"))
    assert torch.equal(again.scores, found.scores)
    assert len(mk.patch(tiny_model(), PAIR, found.top(2).sites, mk.logit_diff)) == 2
