"""Prompts of greater-than years, on GPT-2's own tokenizer."""

import re

import pytest
import torch

import mechkit as mk
from mechkit.zoo.greater_than import NOUNS, YEARS, readable_years
from mechkit.zoo.words import single_tokens

PROMPT = re.compile(r"The (\w+) lasted from the year (\d\d)(\d\d) to the year (\d\d)")


@pytest.fixture(scope="module")
def pair(gpt2_like):
    return mk.tasks.greater_than(200, seed=3, model=gpt2_like)


def test_answers_are_the_years_around_the_one_named(pair, gpt2_like):
    for i, text in enumerate(pair.clean.text):
        _, century, year, again = PROMPT.fullmatch(text).groups()
        right, wrong = (int(gpt2_like.to_string(ids[i])) for ids in (pair.clean.answers, pair.clean.wrong))
        assert (century, int(year) + 1, int(year) - 1) == (again, right, wrong)
        assert 11 <= int(century) <= 17
        assert int(year) in YEARS


def test_corrupt_prompts_differ_in_the_year_alone_which_is_01(pair, gpt2_like):
    years = pair.clean.positions("start[0]")
    differ = (pair.clean.tokens != pair.corrupt.tokens).nonzero().tolist()
    assert differ == [[i, at] for i, at in enumerate(years)]
    assert {gpt2_like.to_string(int(pair.corrupt.tokens[i, at])) for i, at in enumerate(years)} == {"01"}
    assert torch.equal(pair.clean.answers, pair.corrupt.answers)


def test_spans_name_what_they_say(pair, gpt2_like):
    for i, text in enumerate(pair.clean.text):
        noun, century, year, _ = PROMPT.fullmatch(text).groups()
        said = {
            name: gpt2_like.to_string(int(pair.clean.tokens[i, pair.clean.spans[name][i][0]]))
            for name in pair.clean.spans
        }
        assert said == {"noun": f" {noun}", "century": f" {century}", "start": year, "end": f" {century}"}
        assert pair.clean.spans["end"][i] == (pair.clean.lengths[i] - 1, pair.clean.lengths[i])


def test_every_noun_is_one_token_and_every_year_two(gpt2_like):
    assert list(single_tokens(gpt2_like, NOUNS.split())) == NOUNS.split()
    assert len(set(NOUNS.split())) == len(NOUNS.split()) >= 120
    known = readable_years(gpt2_like)
    assert {century for century, _ in known} == set(range(11, 18))
    # " 1580" is one token in all, so it is left out; " 1580" as two would not be what GPT-2 ever saw.
    lengths = {len(gpt2_like.to_tokens(f" {c}{y:02d}", prepend_bos=False)[0]) for c, y in known}
    assert lengths == {2}


def test_the_probability_difference_counts_the_right_years_against_the_others(pair, gpt2_like):
    logits = torch.randn(len(pair), pair.clean.tokens.shape[1], 50257, generator=torch.Generator().manual_seed(0))
    shares = logits[:, -1].softmax(-1)
    got = mk.prob_diff(mk.tasks.years(gpt2_like))(logits, pair.clean)
    for i, text in enumerate(pair.clean.text):
        named = int(PROMPT.fullmatch(text)[3])
        each = [float(shares[i, gpt2_like.to_single_token(f"{year:02d}")]) for year in range(100)]
        assert float(got[i]) == pytest.approx(sum(each[named + 1 :]) - sum(each[: named + 1]), abs=1e-6)


def test_the_same_seed_gives_the_same_prompts_and_a_bos_moves_every_span(gpt2_like):
    first, again, other = (mk.tasks.greater_than(9, seed, model=gpt2_like) for seed in (1, 1, 2))
    assert first.clean.text == again.clean.text != other.clean.text
    begun = mk.tasks.greater_than(9, 1, model=gpt2_like, prepend_bos=True)
    assert [at + 1 for at in first.clean.positions("start[0]")] == begun.clean.positions("start[0]")


def test_a_model_that_cannot_read_years_is_an_error(model, gpt2_like, addition, monkeypatch):
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        mk.tasks.greater_than(3, model=model)
    with pytest.raises(ValueError, match="unknown token 'alliance'"):
        mk.tasks.greater_than(3, model=addition)
    digits = lambda text, prepend_bos: torch.tensor([[ord(letter) for letter in text]])  # noqa: E731
    monkeypatch.setattr(gpt2_like, "to_tokens", digits)
    with pytest.raises(ValueError, match="0 of the years 00 to 99 as single tokens and the task needs 100"):
        mk.tasks.greater_than(3, model=gpt2_like)
