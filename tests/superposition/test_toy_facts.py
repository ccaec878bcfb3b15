"""Facts as ANDs of names, how many fit, and what is memorised of a finite data set."""

import math

import pytest
import torch

from mechkit.superposition.toy import (
    Lookup,
    and_table,
    capacity,
    excess,
    false_readings,
    hand_set,
    memorise,
    sparse_samples,
)  # fmt: skip
from mechkit.superposition.toy.storage import Capacity

MICHAEL, MIKE, JORDAN, TYSON, BASKETBALL, BOXING = torch.eye(6)


def table(mlp, first=MICHAEL, last=JORDAN, attribute=BASKETBALL):
    return list(and_table(mlp, first, last, attribute).values())


def test_a_neuron_for_each_fact_answers_to_both_names_alone():
    mlp = hand_set(torch.stack([MICHAEL, MIKE]), torch.stack([JORDAN, TYSON]), torch.stack([BASKETBALL, BOXING]))
    assert table(mlp) == table(mlp, MIKE, TYSON, BOXING) == [0, 0, 0, 1]
    assert table(mlp, MICHAEL, TYSON) == table(mlp, MICHAEL, TYSON, BOXING) == [0, 0, 0, 0]
    hasty = hand_set(MICHAEL[None], JORDAN[None], BASKETBALL[None], bias=-0.5)
    assert table(hasty) == [0, 0.5, 0.5, 1.5]  # any Michael is half a basketball player
    smooth = hand_set(MICHAEL[None], JORDAN[None], BASKETBALL[None], activation="gelu")
    assert table(smooth)[3] == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))))
    with pytest.raises(ValueError, match="activation is one of"):
        hand_set(MICHAEL[None], JORDAN[None], BASKETBALL[None], activation="tanh")


def test_the_non_linear_excess_is_one_for_and_minus_one_for_or_and_zero_for_a_sum():
    names, out = (MICHAEL + JORDAN)[None], BASKETBALL[None]
    linear = Lookup(names, torch.tensor([5.0]), out)  # never silent
    either = Lookup(names.repeat(2, 1), torch.tensor([0.0, -1.0]), torch.stack([BASKETBALL, -BASKETBALL]))
    tables = [
        and_table(mlp, MICHAEL, JORDAN, BASKETBALL) for mlp in (hand_set(names / 2, names / 2, out), either, linear)
    ]
    assert list(tables[1].values()) == [0, 1, 1, 1]
    assert [excess(one) for one in tables] == [1, -1, 0]


def test_names_that_are_nearly_orthogonal_confuse_less_the_more_dimensions_there_are():
    found = [false_readings(100, d, seed=1) for d in (20, 60, 180, 300)]
    noise = [one.noise for one in found]
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] < 1e-6  # 300 directions fit into 300 dimensions
    assert found[0].accuracy < found[2].accuracy == 1
    assert found[-1].right == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="at least 2 facts"):
        false_readings(1, 5)


@pytest.fixture(scope="module")
def trained():
    return capacity([2, 6], [4, 16, 64], n_names=12, n_attributes=4, n_seeds=2, n_steps=400, learning_rate=0.03)


def test_more_neurons_hold_more_facts_and_more_than_one_each(trained):
    accuracy = trained.accuracy.mean(2)
    assert (accuracy[1] >= accuracy[0]).all()
    assert accuracy[1, 1] > 0.9  # sixteen facts in six neurons
    assert accuracy[0, 2] < 0.7
    assert (trained.silence > 0.6).all()
    assert trained.held()[0] > 2
    assert len(trained.frame()) == 6


def test_facts_held_is_where_accuracy_crosses_a_half():
    accuracy = torch.tensor([[[1.0], [0.75], [0.25]], [[1.0], [1.0], [0.9]], [[0.4], [0.2], [0.1]]])
    found = Capacity((1, 2, 3), (10, 20, 80), accuracy, accuracy, accuracy).held()
    assert found[0] == pytest.approx(40)
    assert found[1] == math.inf
    assert found[2].isnan()


def test_an_mlp_without_room_for_noise_names_learns_them_too():
    state = torch.get_rng_state()
    found = capacity([8], [8], n_names=12, d_model=10, n_seeds=1, n_steps=300, activation="gelu")
    assert float(found.accuracy) > 0.7
    assert torch.equal(state, torch.get_rng_state())
    for wrong in ({"facts": [144]}, {"neurons": []}, {"activation": "tanh"}):
        with pytest.raises(ValueError, match=r"leave none|at least 1|is one of"):
            capacity(**{"neurons": [2], "facts": [2], "n_names": 12} | wrong)


def test_sparse_samples_have_length_one_and_the_density_asked_for():
    x = sparse_samples(2000, 500, 0.02, seed=3)
    length = x.norm(dim=1)
    torch.testing.assert_close(length, (x > 0).any(1).float())
    assert (length == 0).sum() < 5  # about 2000 / e^10
    assert float((x > 0).float().mean()) == pytest.approx(0.02, abs=0.001)
    assert not torch.equal(x, sparse_samples(2000, 500, 0.02, seed=4))


@pytest.fixture(scope="module")
def memorised():
    return memorise([3, 300], n_features=60, probability=0.1, n_seeds=3, n_steps=1500, n_test=500)


def test_few_samples_are_memorised_and_many_are_not(memorised):
    few, many = memorised.best(3), memorised.best(300)
    shares = memorised.sample_dimensionality()
    assert float(shares[0][few].mean()) == pytest.approx(2 / 3, abs=0.03)  # three samples share two dimensions
    assert float(shares[1][many].mean()) < 0.05
    gap = memorised.test_loss - memorised.train_loss
    assert gap[0, few] > 3 * gap[1, many]
    assert memorised.train_loss[0, few] < 0.01
    frame = memorised.frame()
    assert frame["size"].tolist() == [3, 300]
    assert frame["train_loss"][0] < frame["train_loss"][1]
    with pytest.raises(ValueError, match="at least one sample"):
        memorise([0])
