"""What a sweep does with bad input, with accidents half-way, and with what changes between two calls."""

from copy import deepcopy

import pytest
import torch

import mechkit as mk
from mechkit.core.interventions import Intervention
from mechkit.core.loop import loop
from mechkit.core.progress import showing
from tests.core.architectures import make
from tests.core.runs import EVEN, RAGGED
from tests.test_contract import assert_same, state

D = torch.linspace(-1, 1, 16)
RUNS = [
    [],
    [mk.Add("L0.resid_pre@1", D)],
    [mk.Zero("L1.H0.z@-1")],
    [mk.Scale("L2.mlp_post@-1", 2.0), mk.Noise("embed@0", 1.0)],
    [mk.Scale("L1.pattern@-1<-0", 0.5)],
    [mk.ProjectOut("L2.resid_pre", D)],
]
CLOSE = 1e-5
"""Relative to the largest logit, as float32 sums in another order."""


@pytest.fixture
def model(build):
    return deepcopy(build(n_layers=3))


def assert_is_the_loop(model, prompts=EVEN, runs=RUNS, metric=mk.logit_diff):
    wanted = loop(model, prompts, runs, [metric], [], [])[0][..., 0]
    found = mk.sweep(model, prompts, runs, metric).scores
    scale = max(1.0, model(prompts.tokens).abs().max().item())
    torch.testing.assert_close(found, wanted, rtol=0, atol=CLOSE * scale, equal_nan=True)
    return found


# Bad input


def test_a_pair_of_unequal_lengths_or_equal_answers_is_an_error():
    with pytest.raises(ValueError, match="clean has 3 tokens, corrupt has 2; patching matches positions"):
        mk.Pair.from_tokens([[1, 2, 3]], [[1, 2]], [4], [5])
    with pytest.raises(ValueError, match=r"answer and wrong answer are the same on prompts \[1\]"):
        mk.Pair.from_tokens([[1, 2], [3, 4]], [[2, 2], [3, 3]], [4, 6], [5, 6])


@pytest.mark.parametrize("answers", [([[1, 2], [3]], [4, 5]), ([1, 2], [4, [5, 6]])])
def test_an_answer_of_two_tokens_is_an_error_of_logit_diff(model, answers):
    prompts = EVEN.with_answers(*answers)
    before = state(model, prompts)
    with pytest.raises(ValueError, match=r"answer \d \((answers|wrong)\) is 2 tokens; the metric needs exactly one"):
        mk.sweep(model, prompts, RUNS, mk.logit_diff)
    assert_same(before, state(model, prompts))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("L3.z", r"no site 'L3\.z': the model has layers 0 to 2"),
        ("L0.H2.z", r"no site 'L0\.H2\.z': .* heads 0 to 1"),
        ("L0.mlp_pre_linear", r"no site 'L0\.mlp_pre_linear'"),
        ("L0.resid_pre#16", r"no site 'L0\.resid_pre#16'"),
        ("L0.resid_pre@5", r"position @5 is outside a prompt of 5 tokens"),
        ("L0.resid_pre@-6", r"position @-6 is outside a prompt of 5 tokens"),
        ("L0.pattern@-1<-9", r"position @9 is outside a prompt of 5 tokens"),
        ("L0.resid_pre@t", r"no span 't'"),
    ],
)
def test_a_place_the_model_or_a_prompt_lacks_is_an_error_wherever_it_stands(model, site, message):
    before = state(model, EVEN)
    for runs, options in (
        ([*RUNS, [mk.Scale(site, 1.0)]], {}),
        (RUNS, {"base": [mk.Zero(site)]}),
        (RUNS, {"read": [site]}),
    ):
        with pytest.raises(ValueError, match=message):
            mk.sweep(model, EVEN, runs, mk.logit_diff, **options)
    assert_same(before, state(model, EVEN))


@pytest.mark.parametrize("site", ["L0.mlp_in", "L1.q_input@-1", "L2.H0.attn_in"])
def test_a_site_that_never_fires_is_an_error_even_of_an_edit_that_would_do_nothing(model, site):
    for runs, options in (
        ([[mk.Zero("L0.z"), mk.Scale(site, 1.0)]], {}),
        ([*RUNS, [mk.Zero(site)]], {}),
        ([[]], {"base": [mk.Zero(site)]}),
        ([[]], {"read": site}),
    ):
        with pytest.raises(ValueError, match=rf"'{site}' was never reached"):
            mk.sweep(model, EVEN, runs, mk.logit_diff, **options)


@pytest.mark.parametrize(
    ("metric", "gave"),
    [
        (lambda logits: logits[:, -1], r"\[2, 30\]"),
        (lambda logits: logits.sum(), r"\[\]"),
        (lambda logits: logits[:1, -1, 0], r"\[1\]"),
        (lambda logits: logits[:, -1, 0].tolist(), "list"),
        (lambda logits: None, "NoneType"),
    ],
)
def test_a_metric_of_the_wrong_shape_is_an_error_that_says_what_it_gave(model, metric, gave):
    for runs in (RUNS, RUNS[1:2]):
        with pytest.raises(ValueError, match=rf"gave {gave} for 2 prompts; it must give one number per prompt"):
            mk.sweep(model, EVEN, runs, metric)


@pytest.mark.parametrize("edit", [mk.Add("L1.z@-1", torch.ones(15)), mk.Replace("L1.z", torch.ones(2, 5, 2, 7))])
def test_a_value_that_does_not_fit_is_an_error_that_gives_both_shapes(model, edit):
    with pytest.raises(ValueError, match=r"value of shape \[.*\] does not fit "):
        mk.sweep(model, EVEN, [*RUNS, [edit]], mk.logit_diff)


WEIGHTS = {
    "embed.W_E": r"before any edit|embed",
    "blocks.1.mlp.W_out": r"before any edit|layer 1|L1\.|blocks\.1",
    "blocks.2.attn.W_V": r"before any edit|layer 2|L2\.|blocks\.2",
    "ln_final.w": r"before any edit|ln_final",
    "unembed.b_U": r"before any edit|unembed|logits",
}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_nan_in_the_models_weights_is_an_error_that_names_it(model, weight):
    dict(model.named_parameters())[weight].data[...] = torch.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for runs in (RUNS, [[]], RUNS[1:2]):
        with pytest.raises(ValueError, match=rf"NaN.*({WEIGHTS[weight]})|({WEIGHTS[weight]}).*NaN"):
            mk.sweep(model, EVEN, runs, mk.logit_diff)
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in model.state_dict().items())


def test_nan_that_no_prompt_meets_is_no_error(model):
    model.embed.W_E.data[29] = torch.nan
    assert assert_is_the_loop(model).isfinite().all()


@pytest.mark.parametrize("site", ["embed@-1", "L1.H0.z", "L1.v@0"])
def test_nan_that_an_edit_puts_in_stays_in_its_run(model, site):
    runs = [*RUNS[:3], [mk.Scale(site, float("nan"))], *RUNS[3:], [mk.Scale(site, float("inf"))]]
    scores = assert_is_the_loop(model, runs=runs)
    assert scores[3].isnan().all()
    assert scores[[0, 1, 2, 4, 5, 6]].isfinite().all()


# What one run or metric does is no other's business


def spoil(logits, prompts):
    values = logits[:, -1, 3].clone()
    logits.zero_()
    return values


@pytest.mark.parametrize("prompts", [EVEN, RAGGED], ids=["even", "ragged"])
def test_a_metric_that_writes_into_its_logits_spoils_no_other_run(model, prompts):
    own = mk.Metric("own", "logits", "all", lambda logits, prompts: logits[:, 0, 3] + logits[:, 1, 4])
    runs = [[], *RUNS[1:3], [], [mk.Scale("embed", 1.0)], *RUNS[3:]]
    wanted = mk.sweep(model, prompts, runs, own).scores
    spoiling = mk.Metric("spoil", "logits", "all", lambda logits, prompts: (own(logits, prompts), logits.zero_())[0])
    assert torch.equal(mk.sweep(model, prompts, runs, spoiling).scores, wanted)
    if prompts is EVEN:
        assert_is_the_loop(model, runs=runs, metric=mk.Metric("spoil", "logits", "all", spoil))
        plain = mk.sweep(model, prompts, runs, lambda logits: spoil(logits, prompts)).scores
        assert torch.allclose(plain, mk.sweep(model, prompts, runs, lambda logits: logits[:, -1, 3]).scores, atol=1e-5)


class InPlace(Intervention):
    """Writes into the slice that it is given, which it should not."""

    def edit(self, x, prompts, place):
        return x.mul_(3.0)


@pytest.mark.parametrize("site", ["embed", "L1.resid_pre@1", "L1.pattern", "L2.mlp_post@-1"])
def test_an_edit_that_writes_into_its_slice_spoils_no_other_run(model, site):
    edits = [[InPlace(site)], [InPlace(site), mk.Scale(site, -1.0)]]
    assert_is_the_loop(model, runs=[[], edits[0], [], edits[1], *RUNS[1:4]])


def test_scores_do_not_depend_on_the_other_runs_or_their_order(model):
    many = [*RUNS, *([mk.Scale(f"L{layer}.resid_pre@{pos}", 0.5)] for layer in range(3) for pos in range(5))] * 3
    scores = mk.sweep(model, EVEN, many, mk.logit_diff).scores
    backwards = mk.sweep(model, EVEN, many[::-1], mk.logit_diff).scores
    assert torch.allclose(scores, backwards.flip(0), atol=1e-5)
    assert torch.allclose(scores[:21], scores[21:42], atol=1e-5)
    for i in (1, 2, 8, 20):
        assert torch.allclose(mk.sweep(model, EVEN, [many[i]], mk.logit_diff).scores[0], scores[i], atol=1e-5)


# Accidents half-way


class Failing(Intervention):
    """Raises what it is told to."""

    error = RuntimeError("edit failed")

    def edit(self, x, prompts, place):
        raise self.error


class CtrlC(Failing):
    error = KeyboardInterrupt()


def after(n_calls: int, error: BaseException):
    """A function that passes `n_calls` times and then raises."""
    calls = []

    def fail(*args, **options):
        calls.append(1)
        if len(calls) > n_calls:
            raise error

    return fail


def broken_hook(model, error):
    fail = after(1, error)
    model.add_hook("blocks.1.attn.hook_z", lambda x, hook: fail(), is_permanent=True)
    return RUNS, mk.logit_diff


def broken_module(model, error):
    fail = after(1, error)
    model.ln_final.register_forward_hook(lambda module, inputs, out: fail())
    return RUNS, mk.logit_diff


def broken_metric(model, error):
    fail = after(1, error)
    return RUNS, lambda logits: logits[:, -1, 0] if fail() is None else None


def broken_edit(model, error):
    kind = CtrlC if isinstance(error, KeyboardInterrupt) else Failing
    return [*RUNS, [mk.Zero("L0.z"), kind("L2.resid_pre@-1")]], mk.logit_diff


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt()], ids=["an error", "Ctrl-C"])
@pytest.mark.parametrize("accident", [broken_hook, broken_module, broken_metric, broken_edit])
def test_an_accident_half_way_leaves_everything_as_it_was(model, accident, error):
    model.train()
    model.blocks[0].mlp.W_in.requires_grad_(False)
    model(EVEN.tokens).sum().backward()
    runs, metric = accident(model, error)
    before = state(model, EVEN)
    with pytest.raises(type(error)):
        mk.sweep(model, EVEN, runs, metric, base=[mk.Scale("L0.z", 2.0)], read="L2.resid_post@-1")
    assert_same(before, state(model, EVEN))


def test_ctrl_c_between_two_batches_of_runs_leaves_everything_as_it_was(model):
    def bar(items, label, total):
        for i, item in enumerate(items):
            if i == 1:
                raise KeyboardInterrupt
            yield item
        raise KeyboardInterrupt

    before = state(model, EVEN)
    with pytest.raises(KeyboardInterrupt), showing(bar):
        mk.sweep(model, EVEN, RUNS, mk.logit_diff)
    assert_same(before, state(model, EVEN))
    assert_is_the_loop(model)


# Modes, and what changes between two calls


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_gradient_mode_gives_the_same_scores_without_a_graph(model, mode):
    plain = mk.sweep(model, EVEN, RUNS, mk.logit_diff, read="L1.resid_pre@-1")
    with mode():
        scores = mk.sweep(model, EVEN, RUNS, mk.logit_diff, read="L1.resid_pre@-1")
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
        mk.sweep(model, EVEN, [[mk.Add("L0.resid_pre@1", D.clone())]], mk.logit_diff)
    assert torch.equal(scores.scores, plain.scores)
    for found, wanted in zip(scores.read.values(), plain.read.values(), strict=True):
        assert torch.equal(found, wanted)
        assert not found.requires_grad
    assert not scores.scores.requires_grad


def test_a_value_that_needs_a_gradient_gives_scores_without_one(model):
    value = D.clone().requires_grad_()
    found = mk.sweep(model, EVEN, [[mk.Add("L0.resid_pre@1", value)]], mk.logit_diff)
    assert not found.scores.requires_grad
    assert torch.equal(found.scores, mk.sweep(model, EVEN, [RUNS[1]], mk.logit_diff).scores)
    assert value.grad is None


@pytest.mark.parametrize("name", ["LayerNorm", "folded Llama", "Gemma 2", "mixture of experts"])
def test_the_same_call_twice_gives_the_same_numbers(build, name):
    model = make(build, name)
    runs = [run for run in RUNS if "mlp_post" not in str(run)]
    first, second = (mk.sweep(model, RAGGED, runs, mk.loss, read="L1.z@-1") for _ in range(2))
    assert torch.equal(first.scores, second.scores)
    for one, other in zip(first.read.values(), second.read.values(), strict=True):
        assert torch.equal(one, other)


def change_weight(name: str):
    def change(model) -> None:
        dict(model.named_parameters())[name].data.mul_(-1.5).add_(0.1)

    return change


def set_cap(model) -> None:
    model.cfg.output_logits_soft_cap = 1.0


def add_hook(model) -> None:
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook: -x, is_permanent=True)


CHANGES = {
    **{
        name: change_weight(name)
        for name in (
            "embed.W_E", "pos_embed.W_pos", "blocks.0.ln1.w", "blocks.0.attn.W_Q", "blocks.1.attn.b_V",
            "blocks.1.attn.W_O", "blocks.2.ln2.b", "blocks.2.mlp.W_in", "blocks.2.mlp.b_out", "unembed.b_U",
        )
    },
    "a cap": set_cap, "a hook": add_hook, "the dtype": lambda model: model.to(torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_a_model_between_two_calls_is_seen(model, change):
    before = assert_is_the_loop(model, runs=RUNS[:4])
    CHANGES[change](model)
    after = assert_is_the_loop(model, runs=RUNS[:4])
    assert (after - before).abs().max() > 1e-3 or change == "the dtype"
    assert after.dtype == (torch.float64 if change == "the dtype" else torch.float32)
