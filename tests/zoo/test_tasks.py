"""Task builders give pairs whose answers the bundled model knows."""

import pytest
import torch

import mechkit as mk
from mechkit.zoo.addition import unseen_sums


def test_addition_pairs_are_answered_by_the_model(addition):
    pair = mk.tasks.addition(200, seed=3)
    for side, answers in ((pair.clean, pair.clean.answers), (pair.corrupt, pair.clean.wrong)):
        with torch.no_grad():
            likeliest = addition(side.tokens)[:, -1].argmax(-1)
        assert float((likeliest == answers[:, 0]).float().mean()) > 0.99


def test_addition_pairs_differ_in_the_second_operand_alone():
    pair = mk.tasks.addition(100, seed=1)
    differ = pair.clean.tokens != pair.corrupt.tokens
    assert differ[:, 2].all()
    assert not differ[:, [0, 1, 3]].any()


def test_the_same_seed_gives_the_same_pairs_and_they_are_unseen():
    first, again, other = (mk.tasks.addition(20, seed) for seed in (5, 5, 6))
    assert torch.equal(first.clean.tokens, again.clean.tokens)
    assert not torch.equal(first.clean.tokens, other.clean.tokens)
    numbers = {(int(a), int(b)) for a, _, b, _ in first.clean.tokens.tolist()}
    assert numbers <= set(unseen_sums())


def test_more_sums_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="5000 sums were asked for"):
        mk.tasks.addition(5000)
