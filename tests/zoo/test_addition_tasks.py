"""The tasks of the addition model: right answers, and a split that is never trained on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechkit.zoo.addition import tasks
from mechkit.zoo.addition.fourier import peaks, spectrum
from mechkit.zoo.tokenizer import WordTokenizer, word_tokenizer

TOKENIZER = WordTokenizer(word_tokenizer(tasks.TOKENS), name="the addition model", knows="numbers")


def expected(text: str) -> str:
    """The answer to a prompt, worked out from its text."""
    if "+" in text:
        a, b = text[:-1].split("+")
        return str(int(a) + int(b))
    if "<" in text:
        a, b = text[:-1].split("<")
        return "yes" if int(a) < int(b) else "no"
    word = text.rstrip("=0123456789")
    number = int(text[len(word) : -1])
    return {
        "last": str(number % 10),
        "tens": str(number // 10),
        "next": str(number + 1),
        "even": "yes" if number % 2 == 0 else "no",
    }[word]


@pytest.mark.parametrize("task", tasks.MIX)
def test_every_answer_is_right(task):
    prompts, answers = tasks.sample(task, 300, torch.Generator().manual_seed(0))
    assert len(set(answers.tolist())) > 1
    for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True):
        assert tasks.TOKENS[answer] == expected(TOKENIZER.decode(prompt))


def test_no_unseen_sum_is_ever_drawn():
    generator = torch.Generator().manual_seed(0)
    drawn = set()
    for _ in range(20):
        prompts, _ = tasks.sample("sum", 10_000, generator)
        drawn |= set(map(tuple, prompts[:, [0, 2]].tolist()))
    assert not drawn & set(tasks.unseen_sums())
    assert drawn == set(tasks.seen_sums())


def test_no_batch_holds_an_unseen_sum():
    generator = torch.Generator().manual_seed(0)
    held_out = set(tasks.unseen_sums())
    for _ in range(50):
        tokens, _, _ = tasks.sample_batch(1000, generator)
        sums = tokens[tokens[:, 1] == tasks.ID["+"]]
        assert len(sums) > 100
        assert not held_out & set(map(tuple, sums[:, [0, 2]].tolist()))


def test_the_split_is_a_thousand_pairs_in_both_orders():
    unseen = set(tasks.unseen_sums())
    assert len({(min(pair), max(pair)) for pair in unseen}) == 1000
    assert {(b, a) for a, b in unseen} == unseen
    assert {(35, 59), (59, 35)} <= unseen
    assert len(unseen) + len(tasks.seen_sums()) == 10_000
    assert not unseen & set(tasks.seen_sums())


def test_the_saved_split_is_the_one_drawn_from_its_seed():
    assert {(min(p), max(p)) for p in tasks.unseen_sums()} == set(tasks.draw_split(seed=0))


def test_a_batch_is_padded_and_says_where_to_answer():
    tokens, answers, last = tasks.sample_batch(1000, torch.Generator().manual_seed(0))
    assert tokens.shape == (1000, 4)
    assert answers.shape == last.shape == (1000,)
    assert (tokens[torch.arange(1000), last] == tasks.ID["="]).all()
    after = torch.arange(4) > last[:, None]
    assert (tokens[after] == tasks.ID["<pad>"]).all()
    assert not (tokens[~after] == tasks.ID["<pad>"]).any()


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=5))
def test_text_and_tokens_of_sums_agree(sums):
    text = tasks.sums_text(sums)
    assert tasks.sums_tokens(sums).tolist() == [TOKENIZER.encode(prompt) for prompt in text]
    assert tasks.sums_answers(sums).tolist() == [a + b for a, b in sums]


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="no task 'product'; the tasks are sum, last"):
        tasks.sample("product", 1, torch.Generator())


def test_the_spectrum_finds_planted_periods_and_their_shares():
    number = torch.arange(100)[:, None] * 2 * torch.pi
    waves = [3 * torch.cos(number / 10), 3 * torch.sin(number / 10), torch.cos(number / 2) + 5, torch.zeros(100, 1)]
    shares = spectrum(torch.cat(waves, 1))
    assert sum(shares.values()) == pytest.approx(1)
    # A wave of amplitude 3 in quadrature has variance 9; the alternating one has variance 1.
    assert shares[10.0] == pytest.approx(0.9)
    assert shares[2.0] == pytest.approx(0.1)
    assert peaks(shares)[:2] == [10.0, 2.0]
