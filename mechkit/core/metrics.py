"""Metrics: logits in, one number per prompt out.

A metric knows which positions it reads, so that an engine need not compute the others, and its unit.
It is called as `metric(logits, prompts)`; where a metric is taken, a plain `f(logits)` is accepted too.

>>> logit_diff.unit, logit_diff.reads
('logits', 'last')
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.core.prompts import NO_TOKEN, Prompts

Logits = Float[Tensor, "*run prompt pos vocab"]
PerPrompt = Float[Tensor, "*run prompt"]


@dataclass(frozen=True)
class Metric:
    """One number per prompt, computed from the logits."""

    name: str
    """What it is called in tables."""
    unit: str
    """What its numbers are measured in."""
    reads: Literal["last", "all", "unknown"]
    """Positions it reads: each prompt's last real token, all of them, or what only a trial tells."""
    compute: Callable[[Tensor, Prompts], Tensor]
    """`(logits, prompts) -> numbers`."""
    batched: bool = False
    """Whether `compute` also takes the logits of many runs at once, `[run, prompt, pos, vocab]`."""

    def __call__(self, logits: Logits, prompts: Prompts) -> PerPrompt:
        """The metric on each prompt. Raises ValueError where it does not give one number per prompt."""
        values = self.compute(logits, prompts)
        if not isinstance(values, Tensor) or values.shape != (len(prompts),):
            shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"metric '{self.name}' gave {shape} for {len(prompts)} prompts; it must give one number per prompt"
            )
        return values

    def over(self, logits: Float[Tensor, "run prompt pos vocab"], prompts: Prompts) -> Float[Tensor, "run prompt"]:
        """The metric of every run on each prompt."""
        if self.batched:
            return self.compute(logits, prompts)
        return torch.stack([self(one, prompts) for one in logits])


def as_metric(metric: "Metric | Callable") -> Metric:
    """`metric` itself, or a plain `f(logits)` or `f(logits, prompts)`, of which no one knows what it reads."""
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise TypeError(f"a metric is a Metric or a function of the logits, not {type(metric).__name__}")
    name = getattr(metric, "__name__", type(metric).__name__)
    takes_prompts = _takes_prompts(metric)

    def compute(logits: Tensor, prompts: Prompts):
        values = _lifted(metric(logits, prompts) if takes_prompts else metric(logits), len(prompts))
        _require_no_padding_read(name, values, prompts)
        return values

    return Metric(name, "metric", "unknown", compute)


def _require_no_padding_read(name: str, values, prompts: Prompts) -> None:
    """Logits of padding are NaN; a function that takes the last row of a shorter prompt would read them."""
    if len(set(prompts.lengths)) > 1 and isinstance(values, Tensor) and bool(values.isnan().any()):
        raise ValueError(
            f"metric '{name}' gave NaN on prompts of {min(prompts.lengths)} to {max(prompts.lengths)} tokens, where "
            "the logits of padding are NaN; write f(logits, prompts) and read position prompts.lengths[i] - 1"
        )


def _takes_prompts(function: Callable) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # torch's own functions have no signature
        return False
    required = [p for p in parameters if p.default is p.empty]
    return len([p for p in required if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) >= 2


def _lifted(value, n_prompts: int):
    """A single number for a single prompt, as a batch of one."""
    return value.reshape(1) if n_prompts == 1 and isinstance(value, Tensor) and value.numel() == 1 else value


def last_logits(logits: Logits, prompts: Prompts) -> Float[Tensor, "*run prompt vocab"]:
    """Each prompt's logits after its own last token."""
    if len(set(prompts.lengths)) == 1:
        return logits[..., prompts.lengths[0] - 1, :]
    last = torch.tensor(prompts.lengths, device=logits.device) - 1
    return logits[..., torch.arange(len(prompts), device=logits.device), last, :]


def single_answers(prompts: Prompts, which: Literal["answers", "wrong"] = "answers") -> Int[Tensor, "prompt"]:
    """The one token of each answer. Raises ValueError where there is none or more than one."""
    ids = getattr(prompts, which)
    if ids is None:
        raise ValueError(f"the prompts carry no {which}; give them (answers=, wrong=) when making the prompts")
    lengths = (ids != NO_TOKEN).sum(1)
    if int(lengths.max()) > 1:
        i = int(lengths.argmax())
        raise ValueError(f"answer {i} ({which}) is {int(lengths[i])} tokens; the metric needs exactly one")
    return ids[:, 0]


def _at(values: Float[Tensor, "*run prompt vocab"], ids: Int[Tensor, "prompt"]) -> PerPrompt:
    chosen = ids[:, None].to(values.device).expand(*values.shape[:-1], 1)
    return values.gather(-1, chosen)[..., 0]


def _logprobs(logits: Tensor) -> Tensor:
    """Log-probabilities, in float32 at least: half precision holds three digits of them."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _logit_diff(logits: Tensor, prompts: Prompts) -> Tensor:
    last = last_logits(logits, prompts)
    return _at(last, single_answers(prompts)) - _at(last, single_answers(prompts, "wrong"))


def _logit(logits: Tensor, prompts: Prompts) -> Tensor:
    return _at(last_logits(logits, prompts), single_answers(prompts))


def _logprob(logits: Tensor, prompts: Prompts) -> Tensor:
    return _at(_logprobs(last_logits(logits, prompts)), single_answers(prompts))


def _accuracy(logits: Tensor, prompts: Prompts) -> Tensor:
    last = last_logits(logits, prompts)
    return (last.argmax(-1) == single_answers(prompts).to(last.device)).to(last.dtype)


def _loss(logits: Tensor, prompts: Prompts) -> Tensor:
    if min(prompts.lengths) < 2:
        raise ValueError("loss needs prompts of at least two tokens: it predicts each token from those before it")
    return _mean_loss(logits, prompts, prompts.mask[:, 1:])


def _mean_loss(logits: Tensor, prompts: Prompts, counted: Bool[Tensor, "prompt following"]) -> Tensor:
    """Mean cross-entropy of the tokens from the second on that are `counted`."""
    logprobs = _logprobs(logits[..., :-1, :])
    following = prompts.tokens[:, 1:, None].to(logits.device).expand(*logprobs.shape[:-1], 1)
    counted = counted.to(logits.device)
    return -logprobs.gather(-1, following)[..., 0].masked_fill(~counted, 0).sum(-1) / counted.sum(-1)


logit_diff = Metric("logit_diff", "logits", "last", _logit_diff, batched=True)
"""Logit of the answer minus logit of the wrong answer, at the last token. Positive: the answer is preferred."""

logit = Metric("logit", "logits", "last", _logit, batched=True)
"""Logit of the answer at the last token."""

logprob = Metric("logprob", "nats", "last", _logprob, batched=True)
"""Log-probability of the answer at the last token, at most 0."""

prob = Metric("prob", "probability", "last", lambda logits, prompts: _logprob(logits, prompts).exp(), batched=True)
"""Probability of the answer at the last token."""

accuracy = Metric("accuracy", "share right", "last", _accuracy, batched=True)
"""1 where the answer is the likeliest next token, else 0."""

loss = Metric("loss", "nats per token", "all", _loss, batched=True)
"""Mean cross-entropy of each prompt's own tokens from the second on."""


def kl(reference: Logits) -> Metric:
    """Divergence KL(reference || run) of the next-token distribution at the last token, in nats, at least 0.

    `reference` holds the logits to compare with, usually the unedited model's on the same prompts.
    """

    def compute(logits: Tensor, prompts: Prompts) -> Tensor:
        if reference.shape[0] != len(prompts):
            raise ValueError(f"kl has reference logits for {reference.shape[0]} prompts, the run has {len(prompts)}")
        old = _logprobs(last_logits(reference.to(logits.device), prompts))
        terms = old.exp() * (old - _logprobs(last_logits(logits, prompts)))
        # A token the reference rules out adds nothing; rounding can leave a sum of 0 just below it.
        return terms.masked_fill(old.exp() == 0, 0).sum(-1).clamp(min=0)

    return Metric("kl", "nats", "last", compute, batched=True)


def span_loss(span: str) -> Metric:
    """Mean cross-entropy of the tokens of a named span (or `-3:`), each predicted from all before it, nats per token.

    `span_loss("first_copy")` less `span_loss("second_copy")` of `mk.tasks.induction` is what induction saves. Raises
    ValueError for a span that no prompt names, or that starts at a first token, which nothing predicts.
    """

    def compute(logits: Tensor, prompts: Prompts) -> Tensor:
        counted = torch.zeros_like(prompts.mask)
        for i, places in enumerate(prompts.positions(span)):
            counted[i, places] = True
        if bool(counted[:, 0].any()):
            i = int(counted[:, 0].int().argmax())
            raise ValueError(f"span '{span}' of prompt {i} starts at the first token, which nothing predicts")
        return _mean_loss(logits, prompts, counted[:, 1:])

    return Metric(f"span_loss({span})", "nats per token", "all", compute, batched=True)


def prob_diff(order: Sequence[int]) -> Metric:
    """Probability of the tokens of `order` from the answer on, minus that of those before it, at the last token.

    `order` lists token ids, such as the years 00 to 99; between -1 and 1. Raises ValueError where an answer is not
    among them. Source: Hanna et al. 2023, section 2 (probability difference), the answer being the first right year.
    """
    ranked = torch.tensor(order)

    def compute(logits: Tensor, prompts: Prompts) -> Tensor:
        is_answer = ranked == single_answers(prompts).cpu()[:, None]
        if not bool(is_answer.any(1).all()):
            i = int((~is_answer.any(1)).int().argmax())
            raise ValueError(f"answer {int(single_answers(prompts)[i])} of prompt {i} is not in the order given")
        sign = 2.0 * is_answer.cumsum(1).clamp(max=1) - 1
        probabilities = _logprobs(last_logits(logits, prompts)).exp()[..., ranked.to(logits.device)]
        return (probabilities * sign.to(probabilities)).sum(-1)

    return Metric("prob_diff", "probability", "last", compute, batched=True)


def logit_margin(rivals: Int[Tensor, "prompt rival"]) -> Metric:
    """Logit of the answer minus the largest of those of each prompt's `rivals`, at the last token.

    Positive: the answer leads. Source: Heimersheim and Janiak 2023, where the rivals are the other arguments.
    """

    def compute(logits: Tensor, prompts: Prompts) -> Tensor:
        if len(rivals) != len(prompts):
            raise ValueError(f"logit_margin has rivals for {len(rivals)} prompts, the run has {len(prompts)}")
        last = last_logits(logits, prompts)
        chosen = rivals.to(last.device).expand(*last.shape[:-1], -1)
        return _at(last, single_answers(prompts)) - last.gather(-1, chosen).amax(-1)

    return Metric("logit_margin", "logits", "last", compute, batched=True)
