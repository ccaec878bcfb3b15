"""Repeated random tokens: what repeats, what does not, and a model that copies is right on them."""

import pytest
import torch

import mechkit as mk
from mechkit.zoo.induction import ordinary_tokens


@pytest.fixture(scope="module")
def pair(gpt2_like):
    return mk.tasks.induction(20, seed=4, model=gpt2_like, length=12)


def test_the_second_copy_repeats_the_first_and_the_answer_goes_on(pair):
    assert pair.clean.tokens.shape == (20, 1 + 12 + 11)
    assert set(pair.clean.tokens[:, 0].tolist()) == {50256}
    first, second = pair.clean.tokens[:, 1:13], pair.clean.tokens[:, 13:]
    assert torch.equal(first[:, :-1], second)
    assert torch.equal(first[:, -1], pair.clean.answers[:, 0])


def test_nothing_in_the_corrupt_prompt_tells_the_second_copy(pair):
    for clean, corrupt, wrong in zip(
        pair.clean.tokens.tolist(), pair.corrupt.tokens.tolist(), pair.clean.wrong[:, 0].tolist(), strict=True
    ):
        assert corrupt[13:] == clean[13:]
        assert not set(corrupt[1:13]) & set(clean[1:])
        assert len({*clean[1:], *corrupt[1:13]}) == 24
        assert corrupt[12] == wrong


def test_spans_are_the_copies_the_source_and_the_end(pair):
    assert pair.clean.spans == pair.corrupt.spans
    assert {name: set(spans) for name, spans in pair.clean.spans.items()} == {
        "first_copy": {(1, 13)}, "second_copy": {(13, 24)}, "source": {(12, 13)}, "end": {(23, 24)},
    }  # fmt: skip


def copies(tokens, vocabulary):
    """Logits of a machine that says what followed the last token when it came before, else nothing."""
    logits = torch.zeros(*tokens.shape, vocabulary)
    for i, row in enumerate(tokens.tolist()):
        for pos, token in enumerate(row):
            if token in row[:pos]:
                logits[i, pos, row[row.index(token) + 1]] = 20.0
    return logits


def test_a_machine_that_copies_is_right_on_clean_prompts_and_lost_on_corrupt_ones(pair):
    chance = torch.tensor(50257.0).log()
    clean, corrupt = (copies(side.tokens, 50257) for side in (pair.clean, pair.corrupt))
    assert mk.accuracy(clean, pair.clean).mean() == 1
    assert mk.accuracy(corrupt, pair.corrupt).mean() == 0
    # The first token of the second copy is not told by anything, the other ten are.
    assert mk.span_loss("second_copy")(clean, pair.clean).mean() < 0.1 * chance
    assert torch.allclose(mk.span_loss("second_copy")(corrupt, pair.corrupt), chance)
    assert torch.allclose(mk.span_loss("first_copy")(clean, pair.clean), chance)


def test_no_special_token_is_drawn_and_a_seed_fixes_all(gpt2_like):
    first, again, other = (mk.tasks.induction(9, seed, model=gpt2_like, length=12) for seed in (1, 1, 2))
    assert torch.equal(first.clean.tokens, again.clean.tokens)
    assert not torch.equal(first.clean.tokens, other.clean.tokens)
    assert ordinary_tokens(gpt2_like) == list(range(50256))


def test_a_model_without_a_tokenizer_has_no_bos(model):
    pair = mk.tasks.induction(5, model=model, length=6)
    assert pair.clean.tokens.shape == (5, 11)
    with pytest.raises(ValueError, match="has no BOS token"):
        mk.tasks.induction(5, model=model, length=3, prepend_bos=True)


def test_what_does_not_fit_is_an_error(model, gpt2_like):
    with pytest.raises(ValueError, match="a prompt of 50 tokens does not fit; the model's context is 32"):
        mk.tasks.induction(5, model=gpt2_like)
    with pytest.raises(ValueError, match="take at least 2"):
        mk.tasks.induction(5, model=model, length=1)
    with pytest.raises(ValueError, match="0 prompts were asked for"):
        mk.tasks.induction(0, model=model, length=3)


def test_a_vocabulary_too_small_for_both_copies_is_an_error(build):
    with pytest.raises(ValueError, match="9 tokens can be drawn and two sequences of 5 need 10"):
        mk.tasks.induction(2, model=build(d_vocab=9), length=5)
