"""Every behaviour's score on what training held out, each by one function, as labelled rows.

    for score in measure(model):
        print(score)

A score is over the whole vocabulary: an answer is right if no other token is likelier. Where only two or three words
are in question (a verb's number, a pronoun's sex), it says so.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.core.prompts import Pair, Prompts, by_length
from mechkit.zoo.tinyworld import (
    agreement,
    analogies,
    calendar,
    facts,
    false_belief,
    greater_than,
    in_context,
    induction,
    ioi,
    pronouns,
    sums,
)
from mechkit.zoo.tinyworld.text import encode, ids
from mechkit.zoo.tinyworld.words import FEMALE

N = 500
"""Prompts of each score, unless there are fewer."""
SEED = 1000
"""Of the prompts drawn for scores."""
CHUNK = 128
"""Prompts in one forward pass."""


@dataclass(frozen=True)
class Score:
    """One measured number."""

    behaviour: str
    """A module of `mechkit.zoo.tinyworld`, and which part of it."""
    value: float
    """A share from 0 to 1, but for losses (nats) and differences of probability (-1 to 1)."""
    n: int
    """How many prompts it is over."""
    what: str
    """What was counted, and what of it training had not seen."""
    least: float | None = None
    """What it must reach; None where it is the best that could be done."""

    @property
    def holds(self) -> bool:
        """Whether it reaches `least`."""
        return self.least is None or self.value >= self.least

    def __str__(self) -> str:
        wanted = "" if self.least is None else f" (at least {self.least:g}: {'yes' if self.holds else 'NO'})"
        return f"{self.behaviour:<26} {self.value:7.3f}  of {self.n:<5} {self.what}{wanted}"


def measure(model) -> list[Score]:
    """All scores in the order of the card. Cost: about 12,000 short prompts, some 20 seconds on a CPU."""
    return [score for some in SCORES for score in some(model)]


def score_facts(model) -> Iterable[Score]:
    """Recall in sentences unseen for that subject, over all facts and by relation; of founders both names."""
    right = {relation: _recalled(model, relation) for relation in facts.TEMPLATES}
    every = torch.cat(list(right.values()))
    yield Score("facts", _mean(every), len(every), "answer first, in sentences unseen for that subject", 0.95)
    for relation, some in right.items():
        yield Score(f"facts: {relation}", _mean(some), len(some), "the same for one relation")


def _recalled(model, relation: str) -> Float[Tensor, "prompt"]:
    """1 where every token of the answer is the likeliest after those before it."""
    chosen = [(fact, number) for fact, number in facts.cases() if fact.relation == relation]
    texts, answers = [fact.text(number) for fact, number in chosen], [encode(fact.answer) for fact, _ in chosen]
    right = torch.ones(len(texts))
    for place in range(len(answers[0])):
        rows = [[ids()["<bos>"], *encode(text), *answer[:place]] for text, answer in zip(texts, answers, strict=True)]
        guessed = last_logits(model, Prompts.from_tokens(rows)).argmax(-1)
        right *= guessed == torch.tensor([answer[place] for answer in answers])
    return right


def score_ioi(model) -> Iterable[Score]:
    """The indirect object named first, for pairs of names that never met."""
    pair = ioi.ioi(N, SEED)
    yield Score("ioi", top(model, pair), N, "indirect object first, names that never met", 0.95)
    drop = difference(model, pair.clean, pair) - difference(model, pair.corrupt, pair)
    yield Score("ioi: difference", float(drop.mean()), N, "logit difference lost by naming three others")


def score_induction(model) -> Iterable[Score]:
    """Losses of random words the first and the second time, and the best head's prefix-matching score."""
    tokens = induction.repeated(64, SEED)
    first, second = induction.copy_losses(model, tokens)
    yield Score("induction: first", first, len(tokens), "nats per random word, the first time")
    yield Score("induction: second", second, len(tokens), "nats per random word, the second time")
    best = float(induction.prefix_matching(model, tokens).max())
    yield Score("induction: head", best, len(tokens), "prefix-matching score of the best head", 0.5)


def score_greater_than(model) -> Iterable[Score]:
    """Probability of later years less that of others, for nouns that never had years."""
    pair = greater_than.greater_than(N, SEED)
    value = greater_than.probability_difference(last_logits(model, pair.clean), greater_than.starts(pair.clean))
    yield Score("greater_than", _mean(value), N, "probability of later years less the others', unseen nouns", 0.9)


def score_in_context(model) -> Iterable[Score]:
    """The right answer first, for words that never stood in a list of that task, after five examples and after two."""
    by_task = {task: top(model, in_context.in_context(200, SEED, task=task)) for task in in_context.TASKS}
    mean = sum(by_task.values()) / len(by_task)
    yield Score("in_context", mean, 200 * len(by_task), f"mean of {len(by_task)} tasks, words unseen in them", 0.8)
    for task, value in by_task.items():
        yield Score(f"in_context: {task}", value, 200, "five examples")
    two = [top(model, in_context.in_context(100, SEED, task=task, n_examples=2)) for task in in_context.TASKS]
    yield Score("in_context: two examples", sum(two) / len(two), 100 * len(two), "mean of all tasks")


def score_agreement(model) -> Iterable[Score]:
    """The verb in the subject's number likelier than in the attractor's."""
    yield _preferred(model, "agreement", agreement.agreement(N, SEED), "right number likelier, pairs of nouns unseen")


def score_pronouns(model) -> Iterable[Score]:
    """The right pronoun likelier than that of the other sex."""
    yield _preferred(model, "pronouns", pronouns.pronouns(N, SEED), "right sex likelier, names no pronoun followed")


def score_analogies(model) -> Iterable[Score]:
    """The fourth word first, for couples that never met; and nearest to its embedding's sum and difference."""
    for kind in analogies.TABLES:
        value = top(model, analogies.analogies(N, SEED, kind=kind))
        yield Score(f"analogies: {kind}", value, N, "fourth word first, couples that never met")
    value, n = embedded(model)
    yield Score("analogies: embeddings", value, n, "queen is nearest to king - man + woman, the three left out")


@torch.no_grad()
def embedded(model) -> tuple[float, int]:
    """How often b - a + c has d for its nearest neighbour by cosine, over all pairs of sexes' couples, and how many."""
    table = torch.nn.functional.normalize(model.W_E.detach().float(), dim=-1).cpu()
    men = torch.tensor([encode(word)[0] for word in FEMALE])
    women = torch.tensor([encode(word)[0] for word in FEMALE.values()])
    i, j = (~torch.eye(len(men), dtype=torch.bool)).nonzero(as_tuple=True)
    a, b, c, d = men[i], men[j], women[i], women[j]
    near = (table[b] - table[a] + table[c]) @ table.T
    for given in (a, b, c):
        near[torch.arange(len(near)), given] = -torch.inf
    return float((near.argmax(-1) == d).float().mean()), len(near)


def score_calendar(model) -> Iterable[Score]:
    """The right day or month first, for questions never answered."""
    yield Score("calendar", top(model, calendar.calendar(N, SEED)), N, "right day or month first, questions unseen")


def score_false_belief(model) -> Iterable[Score]:
    """The right place first: where she looks, where the other looks, where it is."""
    for question in false_belief.QUESTIONS:
        pair = false_belief.false_belief(N, SEED, question=question)
        yield Score(f"false_belief: {question}", top(model, pair), N, "right place first, things and places unseen")
    pair = false_belief.false_belief(N, SEED)
    seen = float((last_logits(model, pair.corrupt).argmax(-1) == _only(pair.clean.wrong)).float().mean())
    yield Score("false_belief: she saw it", seen, N, "where she looks if she was there, things and places unseen")


def score_sums(model) -> Iterable[Score]:
    """The right number first, for problems never answered."""
    yield Score("sums", top(model, sums.sums(N, SEED)), N, "right number first, problems unseen")


SCORES: tuple[Callable[..., Iterable[Score]], ...] = (
    score_facts,
    score_ioi,
    score_induction,
    score_greater_than,
    score_in_context,
    score_agreement,
    score_pronouns,
    score_analogies,
    score_calendar,
    score_false_belief,
    score_sums,
)
"""One function a behaviour."""


@torch.no_grad()
def last_logits(model, prompts: Prompts) -> Float[Tensor, "prompt d_vocab"]:
    """Logits after each prompt, on the CPU. Cost: one forward pass per `CHUNK` prompts of one length."""
    device, logits = next(model.parameters()).device, torch.empty(len(prompts), model.cfg.d_vocab_out)
    for rows in by_length(prompts):
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            logits[part] = model(prompts[part].tokens.to(device))[:, -1].float().cpu()
    return logits


def top(model, pair: Pair) -> float:
    """Share of the clean prompts whose answer is the likeliest token of all."""
    answers = _only(pair.clean.answers)
    return _mean(last_logits(model, pair.clean).argmax(-1) == answers)


def difference(model, prompts: Prompts, pair: Pair) -> Float[Tensor, "prompt"]:
    """Logit of the pair's answer less that of its wrong answer, after `prompts`."""
    logits = last_logits(model, prompts)
    right, wrong = (logits.gather(1, _only(ids)[:, None])[:, 0] for ids in (pair.clean.answers, pair.clean.wrong))
    return right - wrong


def _preferred(model, name: str, pair: Pair, what: str) -> Score:
    return Score(name, _mean(difference(model, pair.clean, pair) > 0), len(pair), what)


def _only(answers: Int[Tensor, "prompt answer"] | None) -> Int[Tensor, "prompt"]:
    """The one token of each answer."""
    if answers is None:
        raise ValueError("the prompts have no answers to score")
    return answers[:, 0]


def _mean(values: Tensor) -> float:
    return float(values.float().mean())
