import math

import pytest
import torch

import mechkit as mk
from mechkit.core.metrics import as_metric

LENGTHS = (3, 5, 2)
PROMPTS = mk.Prompts.from_tokens([[1, 2, 3], [4, 5, 6, 7, 8], [9, 1]], [3, 0, 5], [4, 6, 2])
CLOSE = 1e-5
"""Absolute, for float32 log-probabilities of size up to 10 (one rounding is 1e-6) against float64 by hand."""


def random_logits(seed=0):
    """Logits with NaN on padding, as a sweep hands them over."""
    logits = 3 * torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(seed))
    return logits.masked_fill(~PROMPTS.mask[:, :, None], torch.nan)


LOGITS = random_logits()


def by_hand(row, token):
    """Log-probability of `token`, from one row of logits."""
    return float(row[token]) - math.log(sum(math.exp(float(x)) for x in row))


FORMULAS = {
    "logit_diff": lambda i, last: float(last[PROMPTS.answers[i, 0]]) - float(last[PROMPTS.wrong[i, 0]]),
    "logprob": lambda i, last: by_hand(last, PROMPTS.answers[i, 0]),
    "prob": lambda i, last: math.exp(by_hand(last, PROMPTS.answers[i, 0])),
    "accuracy": lambda i, last: float(max(range(10), key=lambda token: last[token]) == PROMPTS.answers[i, 0]),
    "loss": lambda i, last: -sum(
        by_hand(LOGITS[i, pos], PROMPTS.tokens[i, pos + 1]) for pos in range(LENGTHS[i] - 1)
    ) / (LENGTHS[i] - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_each_metric_is_its_formula_at_each_prompts_own_last_token(name):
    wanted = [FORMULAS[name](i, LOGITS[i, length - 1]) for i, length in enumerate(LENGTHS)]
    assert getattr(mk, name)(LOGITS, PROMPTS).tolist() == pytest.approx(wanted, abs=CLOSE)


def test_accuracy_is_one_where_the_answer_is_likeliest():
    best = torch.tensor([int(LOGITS[i, length - 1].argmax()) for i, length in enumerate(LENGTHS)])
    assert mk.accuracy(LOGITS, PROMPTS.with_answers(best)).tolist() == [1, 1, 1]
    assert mk.accuracy(LOGITS, PROMPTS.with_answers((best + 1) % 10)).tolist() == [0, 0, 0]


def test_kl_is_its_formula():
    new = random_logits(1)
    for i, value in enumerate(mk.kl(LOGITS)(new, PROMPTS).tolist()):
        old_row, new_row = LOGITS[i, LENGTHS[i] - 1], new[i, LENGTHS[i] - 1]
        terms = [
            math.exp(by_hand(old_row, token)) * (by_hand(old_row, token) - by_hand(new_row, token))
            for token in range(10)
        ]
        assert value == pytest.approx(sum(terms), abs=CLOSE)


def test_kl_is_zero_on_its_reference_and_never_negative():
    assert mk.kl(LOGITS)(LOGITS, PROMPTS).tolist() == [0, 0, 0]
    for seed in range(20):
        near = LOGITS + 1e-4 * torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(seed))
        assert (mk.kl(LOGITS)(near, PROMPTS) >= 0).all()
        assert (mk.kl(LOGITS)(random_logits(seed + 1), PROMPTS) > 0.1).all()


def test_a_token_the_reference_rules_out_adds_nothing_to_kl():
    banned = LOGITS.clone()
    banned[..., 7] = -torch.inf
    assert mk.kl(banned)(banned, PROMPTS).tolist() == [0, 0, 0]


def test_half_precision_logits_are_measured_in_float32():
    for metric in (mk.logprob, mk.prob, mk.loss, mk.kl(LOGITS)):
        values = metric(LOGITS.bfloat16(), PROMPTS)
        assert values.dtype == torch.float32
        # The logits themselves were rounded, by up to 2^-9 of their size of at most 12.
        assert values.tolist() == pytest.approx(metric(LOGITS.bfloat16().double(), PROMPTS).tolist(), abs=CLOSE)


def test_kl_says_so_where_its_reference_is_of_other_prompts():
    with pytest.raises(ValueError, match="reference logits for 2 prompts, the run has 3"):
        mk.kl(LOGITS[:2])(LOGITS, PROMPTS)


@pytest.mark.parametrize("name", ["logit_diff", "logprob", "prob", "accuracy"])
def test_a_missing_answer_is_an_error(name):
    with pytest.raises(ValueError, match=r"the prompts carry no answers; give them \(answers=, wrong=\)"):
        getattr(mk, name)(LOGITS, mk.Prompts.from_tokens([[1, 2, 3], [4, 5, 6, 7, 8], [9, 1]]))


def test_a_missing_wrong_answer_is_an_error():
    with pytest.raises(ValueError, match="the prompts carry no wrong"):
        mk.logit_diff(LOGITS, PROMPTS.with_answers([1, 2, 3]))


def test_logit_diff_needs_single_tokens_and_says_which_has_more():
    with pytest.raises(ValueError, match=r"answer 1 \(answers\) is 2 tokens; the metric needs exactly one"):
        mk.logit_diff(LOGITS, PROMPTS.with_answers([[3], [0, 1], [5]], [4, 6, 2]))
    with pytest.raises(ValueError, match=r"answer 2 \(wrong\) is 3 tokens"):
        mk.logit_diff(LOGITS, PROMPTS.with_answers([3, 0, 5], [[4], [6], [2, 1, 1]]))


ORDER = [6, 0, 3, 5, 8]
"""Token ids in an order of their own; the answers of `PROMPTS` are among them."""


def test_prob_diff_is_what_stands_from_the_answer_on_minus_what_stands_before():
    for i, value in enumerate(mk.prob_diff(ORDER)(LOGITS, PROMPTS).tolist()):
        first = ORDER.index(int(PROMPTS.answers[i, 0]))
        shares = [math.exp(by_hand(LOGITS[i, LENGTHS[i] - 1], token)) for token in ORDER]
        assert value == pytest.approx(sum(shares[first:]) - sum(shares[:first]), abs=CLOSE)


def test_prob_diff_says_which_answer_is_not_in_the_order():
    with pytest.raises(ValueError, match="answer 0 of prompt 1 is not in the order given"):
        mk.prob_diff([3, 5])(LOGITS, PROMPTS)


def test_span_loss_is_the_loss_of_the_tokens_of_the_span():
    spans = {"told": [(1, 2), (2, 5), (1, 2)]}
    prompts = mk.Prompts.from_tokens([[1, 2, 3], [4, 5, 6, 7, 8], [9, 1]], spans=spans)
    for i, value in enumerate(mk.span_loss("told")(LOGITS, prompts).tolist()):
        start, stop = spans["told"][i]
        terms = [by_hand(LOGITS[i, pos - 1], prompts.tokens[i, pos]) for pos in range(start, stop)]
        assert value == pytest.approx(-sum(terms) / len(terms), abs=CLOSE)
    assert torch.equal(mk.span_loss("1:")(LOGITS, prompts), mk.loss(LOGITS, prompts))


def test_span_loss_of_a_first_token_or_an_unknown_span_is_an_error():
    prompts = mk.Prompts.from_tokens([[1, 2, 3], [4, 5, 6, 7, 8], [9, 1]], spans={"a": [(1, 2), (0, 2), (1, 2)]})
    with pytest.raises(ValueError, match="span 'a' of prompt 1 starts at the first token"):
        mk.span_loss("a")(LOGITS, prompts)
    with pytest.raises(ValueError, match="told"):
        mk.span_loss("told")(LOGITS, prompts)


def test_logit_margin_is_the_lead_over_the_best_rival():
    rivals = torch.tensor([[1, 2], [3, 9], [0, 8]])
    for i, value in enumerate(mk.logit_margin(rivals)(LOGITS, PROMPTS).tolist()):
        last = LOGITS[i, LENGTHS[i] - 1]
        assert value == float(last[PROMPTS.answers[i, 0]]) - max(float(last[token]) for token in rivals[i])
    with pytest.raises(ValueError, match="rivals for 2 prompts, the run has 3"):
        mk.logit_margin(rivals[:2])(LOGITS, PROMPTS)


def test_loss_needs_two_tokens():
    with pytest.raises(ValueError, match="at least two tokens"):
        mk.loss(torch.zeros(1, 1, 10), mk.Prompts.from_tokens([[1]]))


@pytest.mark.parametrize(
    "function", [lambda logits: logits[:, 0, 3], lambda logits, prompts: logits[range(len(prompts)), 0, 3]]
)
def test_a_plain_function_of_the_logits_is_a_metric(function):
    metric = as_metric(function)
    assert torch.equal(metric(LOGITS, PROMPTS), LOGITS[:, 0, 3])
    assert (metric.unit, metric.reads) == ("metric", "unknown")


def test_a_function_with_options_or_no_signature_is_a_metric():
    assert torch.equal(as_metric(lambda logits, token=2: logits[:, 0, token])(LOGITS, PROMPTS), LOGITS[:, 0, 2])
    assert as_metric(torch.sum)(LOGITS[:1, :3], PROMPTS[0]).shape == (1,)


def test_a_metric_passes_as_it_is():
    assert as_metric(mk.logit_diff) is mk.logit_diff


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        (lambda logits: logits[:, 0], r"\[3, 10\]"),
        (lambda logits: 1.0, "float"),
        (lambda logits: logits[0, 0, 0], r"\[\]"),
    ],
)
def test_a_metric_of_the_wrong_shape_is_an_error(function, seen):
    with pytest.raises(ValueError, match=f"gave {seen} for 3 prompts; it must give one number per prompt"):
        as_metric(function)(LOGITS, PROMPTS)


def test_a_plain_function_that_reads_padding_is_an_error():
    with pytest.raises(ValueError, match=r"gave NaN on prompts of 2 to 5 tokens.*prompts.lengths"):
        as_metric(lambda logits: logits[:, -1, 0])(LOGITS, PROMPTS)


MADE = {
    "kl": mk.kl(LOGITS), "prob_diff": mk.prob_diff(ORDER), "span_loss": mk.span_loss("-1:"),
    "logit_margin": mk.logit_margin(torch.tensor([[1, 2], [3, 9], [0, 8]])),
}  # fmt: skip
"""Metrics that are made from more than the prompts."""


@pytest.mark.parametrize("name", [*FORMULAS, *MADE])
def test_every_metric_has_a_unit_and_says_what_it_reads(name):
    metric = MADE.get(name) or getattr(mk, name)
    assert metric.unit
    assert metric.reads == ("all" if name.endswith("loss") else "last")
    if metric.reads == "last":  # nothing but the last row changes it
        changed = random_logits(5)
        for i, length in enumerate(LENGTHS):
            changed[i, length - 1] = LOGITS[i, length - 1]
        assert torch.equal(metric(changed, PROMPTS), metric(LOGITS, PROMPTS))


@pytest.mark.parametrize("name", [*FORMULAS, *MADE])
def test_many_runs_at_once_give_each_run_its_own_numbers(name):
    metric = MADE.get(name) or getattr(mk, name)
    runs = torch.stack([LOGITS, random_logits(7)])
    apart = torch.stack([metric(one, PROMPTS) for one in runs])
    # Sums of a batch may be taken in another order: one rounding of numbers up to 10.
    assert torch.allclose(metric.over(runs, PROMPTS), apart, atol=CLOSE)
