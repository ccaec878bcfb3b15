"""Whatever a metric reads, of whichever positions, a sweep gives it what the loop would."""

import pytest
import torch

import mechkit as mk
from mechkit.core.loop import Loop, loop
from mechkit.core.metrics import Metric, as_metric
from tests.core.runs import EVEN, RAGGED, mixed_runs, restored, shapes

ONE = mk.Prompts.from_tokens([[3, 1, 4, 1, 5]], [7], [9], spans={"s": [(1, 3)]})


@pytest.fixture(scope="module")
def model(build):
    return build(n_layers=3)


def runs(model, prompts):
    """Runs that change the first, a middle and the last position, and none."""
    found = loop(model, prompts, [[]], [mk.logit_diff], [], restored(model))[1]
    slices = {str(site): values[0] for site, values in found.items()}
    mixed = mixed_runs(shapes(model, prompts), prompts, slices)
    at = [[mk.Scale(f"L{layer}.resid_pre@{pos}", -2.0)] for layer, pos in ((0, 0), (1, 1), (2, -1), (2, 1))]
    return [[], *at, mixed[1], mixed[4], mixed[10]]


def assert_is_the_loop(model, prompts, metric):
    metrics = [as_metric(one) for one in (metric if isinstance(metric, list) else [metric])]
    listed = runs(model, prompts)
    wanted = loop(model, prompts, listed, metrics, [], [])[0]
    found = mk.sweep(model, prompts, listed, metric)
    size = max(model(prompts.tokens).abs().max().item(), 1.0)
    scores = found.scores if isinstance(metric, list) else found.scores[..., None]
    assert scores.dtype == wanted.dtype
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5 * size)
    assert found.unit == ", ".join(one.unit for one in metrics)
    assert (wanted != wanted[0]).any()


def reads_last(logits):
    return logits[:, -1, 3] - logits[:, -1, 4]


def reads_first_and_last(logits):
    return logits[:, 0, 3] * logits[:, -1, 4]


def reads_one_in_the_middle(logits):
    return logits[:, 1].amax(-1)


def reads_all(logits):
    return logits.log_softmax(-1)[..., 2].sum(1)


def reads_prompts(logits, prompts):
    return logits.gather(-1, prompts.tokens[:, 1:, None].clamp(max=29))[..., 0].mean(1)


def takes_nan_for_zero(logits):
    return logits.nan_to_num().sum((1, 2)) / 30


def takes_nan_and_bounds_for_zero(logits):
    """What it reads shows at no probe with NaN, nor with values beyond any logit."""
    seen = torch.where(logits.abs() < 100, logits, torch.zeros_like(logits)).nan_to_num()
    return seen.sum((1, 2)) / 30


def skips_nan(logits):
    return logits.nanmean((1, 2))


def takes_the_largest(logits):
    return logits.amax((1, 2))


def finds_the_likeliest_position(logits):
    return logits[:, :, 3].argmax(1).float()


def ranks_the_last(logits):
    return (logits[:, -1] > logits[:, -1, 3:4]).float().sum(-1)


UNEDITED = torch.zeros(2)
"""The unedited run's own number, for metrics that depend on how far a run is from it; set by the test."""


def reads_an_excess_of_the_first(logits):
    """Blind to the first position where it is NaN or as low as in the unedited run."""
    return logits[:, -1, 4] + (logits[:, 0, 3] - UNEDITED).clamp(min=0).nan_to_num()


def reads_the_first_of_edited_runs(logits):
    return torch.where((logits[:, -1, 3] - UNEDITED).abs() > 1e-4, logits[:, 0, 4], logits[:, -1, 4])


def reads_the_first_of_some_edited_runs(logits):
    return torch.where(logits[:, -1, 3] > UNEDITED + 1e-3, logits[:, 0, 4], logits[:, -1, 4])


def compares_with_the_batch(logits):
    return logits[:, -1, 3] - logits[:, -1, 3].mean()


def is_one_number_for_the_batch(logits):
    return logits[:, -1, 3].max().expand(len(logits))


def is_in_float64(logits):
    return logits[:, -1, 3].double() ** 2


EVERY = [
    reads_last, reads_first_and_last, reads_one_in_the_middle, reads_all, reads_prompts, takes_nan_for_zero,
    takes_nan_and_bounds_for_zero, skips_nan, takes_the_largest, finds_the_likeliest_position, ranks_the_last,
    reads_an_excess_of_the_first, reads_the_first_of_edited_runs,
    reads_the_first_of_some_edited_runs, compares_with_the_batch, is_one_number_for_the_batch, is_in_float64,
]  # fmt: skip


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: metric.__name__)
def test_any_plain_function_is_given_what_it_reads(model, metric):
    position = 0 if metric is reads_an_excess_of_the_first else -1
    UNEDITED.copy_(model(EVEN.tokens)[:, position, 3].detach())
    assert_is_the_loop(model, EVEN, metric)


@pytest.mark.parametrize("prompts", [EVEN, RAGGED, ONE], ids=["even", "ragged", "one"])
def test_each_of_our_metrics_is_the_loops(model, prompts):
    reference = Loop(model, prompts, []).forward([])[0].detach()
    ours = [mk.logit_diff, mk.logprob, mk.prob, mk.accuracy, mk.loss, mk.kl(reference)]
    for one in (ours, ours[:4], [ours[5]], ours[4]):
        assert_is_the_loop(model, prompts, one)


@pytest.mark.parametrize("metric", [reads_prompts, reads_last, reads_all], ids=lambda metric: metric.__name__)
def test_ours_and_plain_functions_mix_in_one_list(model, metric):
    assert_is_the_loop(
        model, EVEN, [mk.logit_diff, metric, Metric("own", "bits", "last", lambda logits, prompts: logits[:, -1, 1])]
    )


def test_a_plain_function_of_ragged_prompts_sees_nan_in_padding_alone(model):
    seen = []

    def first_and_own_last(logits, prompts):
        seen.append(logits.isnan().any(-1).clone())
        rows = torch.arange(len(prompts))
        return logits[rows, torch.tensor(prompts.lengths) - 1, 3] + logits[:, 0, 2]

    assert_is_the_loop(model, RAGGED, first_and_own_last)
    assert all((nan >= ~RAGGED.mask).all() for nan in seen)


def test_a_number_for_a_single_prompt_is_a_score(model):
    assert_is_the_loop(model, ONE, lambda logits: logits[0, -1, 3] - logits[0, -1, 4])
    assert_is_the_loop(model, ONE, lambda logits: logits[0, 1].max())


def test_a_plain_function_sees_the_prompts_of_one_run_at_a_time(model):
    sizes = set()

    def counts(logits, prompts):
        sizes.add((len(logits), len(prompts), tuple(prompts.lengths)))
        return logits[:, -1, 0]

    assert_is_the_loop(model, EVEN, counts)
    assert sizes == {(2, 2, (5, 5))}


def test_prompts_of_one_token_are_the_loops(model):
    prompts = mk.Prompts.from_tokens([[3], [1, 4, 1], [5]], [7, 8, 9], [1, 2, 3])
    listed = [[], [mk.Scale("embed@0", 2.0)], [mk.Zero("L1.z@-1")], [mk.Zero("L2.H0.pattern@-1<-0")], [mk.Zero("L1.k")]]
    wanted = loop(model, prompts, listed, [mk.logit_diff], [], [])[0]
    assert torch.allclose(mk.sweep(model, prompts, listed, mk.logit_diff).scores, wanted[..., 0], atol=1e-5)
