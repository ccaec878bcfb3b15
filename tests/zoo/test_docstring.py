"""Prompts of docstring completion, on GPT-2's own tokenizer."""

import re

import pytest
import torch

import mechkit as mk
from mechkit.zoo.docstring import ARGUMENTS, WORDS
from mechkit.zoo.words import single_tokens

PROMPT = re.compile(
    r'def (\w+)\(self, (.*)\):\n    """\w+ \w+ \w+\n\n    :param (\w+): \w+ \w+\n    :param (\w+): \w+ \w+\n    :param'
)


@pytest.fixture(scope="module")
def long(build, gpt2_like):
    model = build(n_layers=1, d_vocab=50257, n_ctx=80)
    model.tokenizer, model.cfg.tokenizer_prepends_bos = gpt2_like.tokenizer, False
    return model


@pytest.fixture(scope="module")
def pair(long):
    return mk.tasks.docstring(30, seed=5, model=long)


def parts(text):
    name, defined, a, b = PROMPT.fullmatch(text).groups()
    return name, defined.split(", "), a, b


def test_the_answer_is_the_argument_after_those_documented(pair, long):
    for i, text in enumerate(pair.clean.text):
        _, defined, a, b = parts(text)
        right, wrong = (long.to_string(ids[i]).strip() for ids in (pair.clean.answers, pair.clean.wrong))
        assert defined[2:] == [a, b, right, wrong]
        assert len(set(defined)) == 6


def test_the_corrupt_prompt_tells_nothing(pair, long):
    for clean, corrupt in zip(pair.clean.text, pair.corrupt.text, strict=True):
        (name, defined, *_), (same, other, a, b) = parts(clean), parts(corrupt)
        assert name == same
        assert len({*defined, *other, a, b}) == 14  # none twice: the docstring's are of neither definition
        assert re.sub(r"(self, .*\)|param \w+)", "", clean) == re.sub(r"(self, .*\)|param \w+)", "", corrupt)
    assert pair.clean.lengths == pair.corrupt.lengths


def test_spans_name_the_arguments_where_they_stand(pair, long):
    for i, text in enumerate(pair.clean.text):
        _, defined, a, b = parts(text)
        told = {name: pair.clean.tokens[i, start:stop] for name, spans in pair.clean.spans.items()
                for start, stop in [spans[i]]}  # fmt: skip
        said = {name: long.to_string(ids) for name, ids in told.items()}
        assert said == {
            "A_def": f" {a}", "B_def": f" {b}", "C_def": f" {defined[4]}", "A_doc": f" {a}", "B_doc": f" {b}",
            "arguments": " " + ", ".join(defined), "end": "param",
        }  # fmt: skip
        assert pair.clean.spans["A_def"][i] < pair.clean.spans["A_doc"][i] < pair.clean.spans["B_doc"][i]
    assert pair.clean.spans == pair.corrupt.spans


def test_rivals_are_the_other_arguments(pair, long):
    rivals = mk.tasks.rivals(pair)
    assert rivals.shape == (30, 5)
    for row, text, answer in zip(rivals, pair.clean.text, pair.clean.answers, strict=True):
        names = {long.to_string(int(token)).strip() for token in row}
        assert names == set(parts(text)[1]) - {long.to_string(answer).strip()}
    with pytest.raises(ValueError, match="the pair names no 'arguments'"):
        mk.tasks.rivals(mk.tasks.induction(2, model=long, length=3))


def test_every_word_is_one_token_of_gpt2(long):
    for words in (ARGUMENTS.split(), WORDS.split()):
        assert list(single_tokens(long, words)) == words
        assert len(set(words)) == len(words)
    assert not set(ARGUMENTS.split()) & set(WORDS.split())


def test_the_same_seed_gives_the_same_prompts(long, pair):
    assert mk.tasks.docstring(30, seed=5, model=long).corrupt.text == pair.corrupt.text
    assert mk.tasks.docstring(30, seed=6, model=long).clean.text != pair.clean.text


def test_patching_all_of_the_clean_prompt_in_gives_the_whole_margin(pair, long):
    metric = mk.logit_margin(mk.tasks.rivals(pair))
    both = mk.patch(long, pair, ["L0.resid_pre"], metric)
    assert torch.allclose(both.scores[0], both.gap, atol=1e-5)  # float32 logits of size 10


def test_a_model_without_the_words_is_an_error(model, gpt2_like, addition):
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        mk.tasks.docstring(3, model=model)
    with pytest.raises(ValueError, match="unknown token 'action'"):
        mk.tasks.docstring(3, model=addition)
    with pytest.raises(ValueError, match="does not fit; the model's context is 32"):
        mk.tasks.docstring(3, model=gpt2_like)
