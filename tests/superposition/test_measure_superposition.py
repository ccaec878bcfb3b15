"""`measure_superposition` and what it is made of, against loops over pairs and samples."""

import itertools
import math

import numpy as np
import pytest
import torch

import mechkit as mk
from mechkit.superposition import (
    max_cosines,
    mean_max_cosine,
    measure_activity,
    measured,
    overlaps,
    recovered,
    unit_rows,
)
from mechkit.superposition.conclusions import WEIGHTS_ALONE
from mechkit.superposition.overlaps import overlaps as overlaps_of


def noise(n, m, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def sparse(samples, n, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, n, generator=generator) * (torch.rand(samples, n, generator=generator) < density)


PAIRS = torch.cat([torch.eye(6), -torch.eye(6)])


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_overlaps_are_sums_over_all_pairs_whatever_the_block(rows, monkeypatch):
    monkeypatch.setattr(overlaps, "BLOCK_BYTES", rows * 11 * 8)
    W = noise(11, 4)
    found = overlaps_of(unit_rows(W))
    cos = np.array([float(torch.cosine_similarity(W[i], W[j], 0)) for i, j in itertools.combinations(range(11), 2)])
    assert float(found.mean) == pytest.approx(np.abs(cos).mean())
    assert float(found.mean_square) == pytest.approx((cos**2).mean())
    assert float(found.max) == pytest.approx(np.abs(cos).max())
    assert float(found.kurtosis) == pytest.approx(((cos - cos.mean()) ** 4).mean() / cos.var() ** 2 - 3)
    largest = [max(abs(float(torch.cosine_similarity(W[i], W[j], 0))) for j in range(11) if j != i) for i in range(11)]
    assert found.largest.tolist() == pytest.approx(largest)


def test_the_report_holds_every_measure_of_the_weights():
    W = noise(9, 4)
    W[2] = 0
    report = mk.measure_superposition(W, draws=9)
    lengths = W.norm(dim=1)
    torch.testing.assert_close(report.norms, lengths)
    torch.testing.assert_close(report.interference, W @ W.T)
    torch.testing.assert_close(report.interference_of([4, 1]), (W @ W.T)[[4, 1]])
    kept = [i for i in range(9) if i != 2]
    cos = (W[kept] @ W[kept].T) / lengths[kept, None] / lengths[kept]
    pairs = cos.fill_diagonal_(0).abs()
    assert report.mean_cosine == pytest.approx(float(pairs.sum()) / 56)
    assert report.max_cosine == pytest.approx(float(pairs.max()))
    assert report.frame_potential == pytest.approx(float((pairs**2).sum()) + 8)
    assert report.frame_ratio == pytest.approx(8 * 8 / 4 / report.frame_potential)
    assert (report.n_features, report.n_directed, report.n_dimensions, report.rank) == (9, 8, 4, 4)
    assert report.dimensions_per_feature == pytest.approx(4 / float((lengths**2).sum()))
    assert float(report.dimensionality[2]) == 0.0
    assert report.largest_cosines.isnan().tolist() == [i == 2 for i in range(9)]
    torch.testing.assert_close(report.largest_cosines[kept], pairs.max(1).values)
    nearest, cosine = report.nearest(0, 1)[0]
    assert nearest == kept[int(pairs[0].argmax())]
    assert abs(cosine) == pytest.approx(float(report.largest_cosines[0]))
    assert list(report.tests) == ["random directions", "same covariance"]
    assert report.frame()["dimensionality"].tolist() == report.dimensionality.tolist()


def test_it_says_what_the_weights_alone_can_and_cannot_show():
    said = str(mk.measure_superposition(PAIRS, draws=59))
    assert "12 features in 6 dimensions" in said
    assert "less than random directions" in said  # a tight frame
    assert "closer to their nearest neighbours than their covariance alone" in said  # of antipodal pairs
    assert WEIGHTS_ALONE in said
    random = str(mk.measure_superposition(noise(40, 6, 3), draws=59))
    assert "as random directions do" in random
    assert "Their covariance alone (anisotropy) explains" in random


def test_sparse_activations_show_storage_and_dense_ones_do_not():
    few = mk.measure_superposition(PAIRS, sparse(2000, 12, 0.05), nulls=())
    assert "held in superposition" in str(few)
    assert WEIGHTS_ALONE not in str(few)
    assert few.tests == {}
    many = mk.measure_superposition(PAIRS, sparse(500, 12, 0.95), nulls=())
    assert "not sparse enough" in str(many)
    unused = sparse(2000, 12, 0.05)
    unused[:, 6:] = 0
    assert "nothing need be superposed" in str(mk.measure_superposition(PAIRS, unused, nulls=()))
    assert set(few.frame()) > {"density", "noise_to_signal"}


def brute_activity(W, x):
    """Pairs active together, and what each feature hears of the others, one sample and pair at a time."""
    unit = [row / row.norm() if row.norm() else row for row in W]
    felt, pairs, heard, own = 0.0, 0, torch.zeros(len(W)), torch.zeros(len(W))
    for sample in x:
        on = [i for i in range(len(W)) if sample[i] != 0]
        for i in on:
            others = sum((sample[j] * W[j] @ unit[i] for j in range(len(W)) if j != i), torch.tensor(0.0))
            heard[i] += float(others) ** 2
            own[i] += float(sample[i] * W[i].norm()) ** 2
        for i, j in itertools.permutations([i for i in on if W[i].norm()], 2):
            felt, pairs = felt + float(unit[i] @ unit[j]) ** 2, pairs + 1
    return felt, pairs, heard / own


def test_activity_is_what_a_loop_over_samples_and_pairs_gives():
    W, x = noise(8, 3).float(), sparse(60, 8, 0.4)
    W[5], x[:, 7] = 0, 0
    seen = measure_activity(W, x)
    felt, pairs, ratio = brute_activity(W, x)
    directed = [i for i in range(8) if i != 5]
    assert seen.coactive_square == pytest.approx(felt / pairs, rel=1e-5)
    cos = {(i, j): float(torch.cosine_similarity(W[i], W[j], 0)) ** 2 for i, j in itertools.permutations(directed, 2)}
    assert seen.realised == pytest.approx(felt / 60 / sum(cos.values()), rel=1e-5)
    p = (x != 0).double().mean(0)
    together = sum(float(p[i] * p[j]) * square for (i, j), square in cos.items())
    assert seen.independent_square == pytest.approx(together / sum(float(p[i] * p[j]) for i, j in cos), rel=1e-5)
    usable = [i for i in directed if i != 7]
    torch.testing.assert_close(seen.noise_to_signal[usable].float(), ratio[usable], rtol=1e-4, atol=1e-5)
    assert seen.noise_to_signal[7].isnan()
    assert (seen.n_active, seen.l0) == (7, pytest.approx(float(p.sum())))


def test_overlapping_features_that_avoid_each_other_have_a_lift_below_one():
    x = sparse(4000, 12, 0.3)
    exclusive = x.clone()
    exclusive[:, 6:] *= exclusive[:, :6] == 0  # never with its opposite
    free, apart = (measure_activity(PAIRS, one) for one in (x, exclusive))
    assert abs(free.lift - 1) < 4 * free.lift_error < 0.3
    assert apart.lift == 0.0
    assert apart.realised == 0.0 < free.realised
    assert float(apart.noise_to_signal.max()) == 0.0 < float(free.noise_to_signal.min())


def test_mean_max_cosine_and_recovered_features_of_a_turned_dictionary():
    truth = unit_rows(noise(30, 12))
    learned = torch.cat([3 * truth[:20] + 0.01 * noise(20, 12, 1), noise(15, 12, 2), torch.zeros(1, 12)])
    cos = [[float(torch.cosine_similarity(a, b, 0)) for b in truth] for a in learned]
    assert mean_max_cosine(learned, truth) == pytest.approx(float(np.max(cos, 1).mean()))
    assert recovered(learned, truth) == pytest.approx(float((np.max(cos, 0) > 0.9).mean()))
    assert 20 / 30 <= recovered(learned, truth) < 22 / 30
    assert mean_max_cosine(truth, truth) == pytest.approx(1.0)
    assert mean_max_cosine(-truth[:1], truth[:1]) == pytest.approx(-1.0)  # sign counts
    assert float(max_cosines(learned, truth)[-1]) == 0.0


def test_one_feature_has_no_pairs_and_says_so():
    report = mk.measure_superposition(torch.tensor([[3.0, 4.0]]))
    assert report.dimensionality.tolist() == [1.0]
    assert math.isnan(report.mean_cosine)
    assert report.tests == {}
    assert "no pair can overlap" in str(report)
    empty = mk.measure_superposition(torch.zeros(3, 2))
    assert empty.dimensionality.tolist() == [0.0] * 3
    assert "0 of 3 features" in str(empty)


def test_dimensions_without_any_feature_change_nothing_but_m():
    W = noise(7, 3)
    padded = torch.cat([W, torch.zeros(7, 2, dtype=torch.double)], 1)
    plain, wide = (mk.measure_superposition(one, draws=9) for one in (W, padded))
    torch.testing.assert_close(wide.dimensionality, plain.dimensionality)
    assert wide.features_per_neuron[3:].tolist() == [0.0, 0.0]
    assert (wide.rank, wide.mean_cosine) == (3, pytest.approx(plain.mean_cosine))


def test_the_rank_of_half_precision_is_not_that_of_its_rounding():
    thin = (noise(60, 3) @ noise(3, 40, 1)).float()
    assert mk.measure_superposition(thin.half(), nulls=()).rank == 3
    assert mk.measure_superposition(thin, nulls=()).rank == 3
    assert mk.measure_superposition(noise(60, 40).half(), nulls=()).rank == 40


def test_an_interference_matrix_too_big_for_memory_is_refused_with_what_to_do(monkeypatch):
    report = mk.measure_superposition(noise(20, 3), nulls=())
    assert report.interference.shape == (20, 20)
    monkeypatch.setattr(measured, "INTERFERENCE_BYTES", 20 * 20 * 8 - 1)
    with pytest.raises(ValueError, match=r"20 features takes .*interference_of\(features\).*nearest\(feature\)"):
        _ = report.interference
    with pytest.raises(ValueError, match="no feature 20; there are features 0 to 19"):
        report.nearest(20)


BAD = {
    "integers": ((torch.eye(3, dtype=torch.long),), TypeError, "int64"),
    "a NaN": ((torch.tensor([[1.0, math.nan], [1.0, 0.0]]),), ValueError, r"1 of 2 rows \(0\)"),
    "three axes": ((torch.ones(2, 3, 4),), ValueError, "one .feature, hidden. at a time"),
    "activations of other features": ((torch.eye(3), torch.ones(5, 4)), ValueError, r"\[3, 3\].*\[5, 4\]"),
    "activations that are NaN": ((torch.eye(3), torch.full((5, 3), math.nan)), ValueError, "activations has NaN"),
    "activations that count": ((torch.eye(3), torch.ones(5, 3, dtype=torch.long)), TypeError, "activations"),
}


@pytest.mark.parametrize(("given", "error", "named"), BAD.values(), ids=BAD)
def test_bad_input_is_an_error_that_names_it(given, error, named):
    with pytest.raises(error, match=named):
        mk.measure_superposition(*given)


def test_dictionaries_of_other_sizes_cannot_be_compared():
    with pytest.raises(ValueError, match=r"\[3, 2\] and G \[3, 4\]"):
        mean_max_cosine(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match="threshold"):
        recovered(torch.eye(2), torch.eye(2), threshold=1.5)


def test_what_is_given_is_left_as_it_was():
    W = torch.nn.Parameter(noise(10, 4).float())
    W.sum().backward()
    before, grad, state = W.detach().clone(), W.grad.clone(), torch.get_rng_state()
    with torch.enable_grad():
        report = mk.measure_superposition(W, sparse(20, 10, 0.3), draws=9)
    assert torch.equal(W, before)
    assert torch.equal(W.grad, grad)
    assert torch.equal(torch.get_rng_state(), state)
    assert not report.dimensionality.requires_grad


def test_the_histogram_marks_the_regular_shapes():
    figure = mk.measure_superposition(PAIRS, nulls=()).plot()
    assert list(figure.data[0].x) == [0.5] * 12
    assert {note.text for note in figure.layout.annotations} == {
        "tetrahedron", "triangle", "pair", "pentagon", "antiprism"
    }  # fmt: skip
