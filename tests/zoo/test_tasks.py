"""Task builders give pairs whose answers the bundled model knows."""

from copy import copy
from dataclasses import replace

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


@pytest.mark.parametrize("name", mk.tasks.TINYWORLD)
def test_every_task_of_tinyworld_needs_no_model_and_is_fixed_by_its_seed(name):
    build = getattr(mk.tasks, name)
    first, again, other = (build(12, seed) for seed in (1, 1, 2))
    assert len(first) == 12
    assert torch.equal(first.clean.tokens, again.clean.tokens)
    assert torch.equal(first.corrupt.tokens, again.corrupt.tokens)
    assert first.clean.tokens.shape != other.clean.tokens.shape or (first.clean.tokens != other.clean.tokens).any()
    assert (first.clean.answers[:, 0] != first.clean.wrong[:, 0]).all()
    assert "end" in first.clean.spans


def named(model, name):
    """The same model under another name."""
    found = copy(model)
    found.cfg = replace(model.cfg, model_name=name)
    return found


def test_the_model_decides_whose_prompts_are_built(gpt2_like):
    world = named(gpt2_like, "tinyworld")
    for name, options in (("ioi", {}), ("greater_than", {}), ("induction", {"length": 9})):
        build = getattr(mk.tasks, name)
        of_world, of_gpt2 = build(5, 1, model=world, **options), build(5, 1, model=gpt2_like, **options)
        assert torch.equal(of_world.clean.tokens, build(5, 1, **options).clean.tokens)
        assert of_gpt2.clean.tokens.max() > 2000  # tinyworld has no such token
    assert mk.tasks.years(world) == mk.tasks.years() != mk.tasks.years(gpt2_like)


def test_a_task_of_tinyworld_is_none_of_another_model(gpt2_like):
    with pytest.raises(ValueError, match="'facts' is a task of tinyworld's words, and this model is 'custom'"):
        mk.tasks.facts(3, model=gpt2_like)


def test_the_years_of_tinyworld_are_in_order_and_its_answers_are_the_first_right_ones():
    pair, order = mk.tasks.greater_than(50, seed=2), mk.tasks.years()
    starts = [order.index(int(pair.clean.tokens[i, at])) for i, at in enumerate(pair.clean.positions("start[0]"))]
    assert [order.index(token) for token in pair.clean.answers[:, 0].tolist()] == [start + 1 for start in starts]
    certain = torch.full((50, pair.clean.tokens.shape[1], max(order) + 1), -40.0)
    for i, start in enumerate(starts):
        certain[i, pair.clean.lengths[i] - 1, order[start + 1 + i % 2]] = 40.0  # a right year, or the one after
    assert torch.allclose(mk.prob_diff(order)(certain, pair.clean), torch.ones(50))


def test_the_copies_of_tinyworlds_sequences_are_copies():
    pair = mk.tasks.induction(4, length=8)
    for i in range(4):
        first, second = (
            pair.clean.tokens[i, slice(*pair.clean.spans[name][i])] for name in ("first_copy", "second_copy")
        )
        assert torch.equal(first[:-1], second)
        assert first[-1] == pair.clean.answers[i, 0]
