"""Laws of the measures of weights, against the definitions written out with loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechkit.superposition import (
    dimensionality,
    dimensions_per_feature,
    effective_rank,
    feature_interference,
    feature_norms,
    features_per_neuron,
    frame_potential,
    interference,
    least_frame_potential,
    participation_ratio,
    random_overlap,
    singular_values,
    stable_rank,
    unit_rows,
    welch_bound,
)
from mechkit.superposition.bounds import johnson_lindenstrauss_capacity, johnson_lindenstrauss_overlap

ENTRIES = st.floats(-100, 100).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 5))
WEIGHTS = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=ENTRIES)).map(torch.from_numpy)


def polygon(n):
    turn = 2 * math.pi * torch.arange(n, dtype=torch.double) / n
    return torch.stack([turn.cos(), turn.sin()], dim=1)


def cube():
    """The corners of a cube: a tight frame of 8 in 3 dimensions."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.double)] * 3)


TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
ANTIPRISM = torch.cat(
    [torch.cat([polygon(4), torch.full((4, 1), 0.6, dtype=torch.double)], 1),
     torch.cat([polygon(8)[1::2], torch.full((4, 1), -0.6, dtype=torch.double)], 1)]
)  # fmt: skip


def brute_dimensionality(W):
    found = []
    for row in W:
        length = float(row.norm())
        felt = sum(float(row @ other) ** 2 for other in W) / length**2 if length else 0.0
        found.append(length**2 / felt if length else 0.0)
    return torch.tensor(found, dtype=torch.double)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_dimensionality_and_interference_are_their_definitions(W):
    torch.testing.assert_close(dimensionality(W), brute_dimensionality(W), rtol=1e-9, atol=1e-12)
    unit = torch.stack([row / row.norm() if row.norm() else row for row in W])
    others = ((unit @ W.T) ** 2).fill_diagonal_(0).sum(1)
    torch.testing.assert_close(feature_interference(W), others, rtol=1e-9, atol=1e-9 * float((W**2).sum()))
    torch.testing.assert_close(interference(W), W @ W.T)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_dimensionality_lies_between_0_and_1_and_sums_to_at_most_the_rank(W):
    found = dimensionality(W)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert torch.equal(found > 0, (W != 0).any(1))
    assert float(found.sum()) <= np.linalg.matrix_rank(W.numpy()) + 1e-9


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(0, 2**31 - 1), st.floats(1e-6, 1e6))
def test_rotation_and_scale_change_neither_dimensionality_nor_overlap(W, seed, scale):
    noise = torch.randn(W.shape[1], W.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    turned = scale * W @ torch.linalg.qr(noise).Q
    torch.testing.assert_close(dimensionality(turned), dimensionality(W), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(frame_potential(turned), frame_potential(W), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(feature_norms(turned), scale * feature_norms(W), rtol=1e-9, atol=1e-12)


SHAPES_KNOWN = {
    "pentagon": (polygon(5), 2 / 5),
    "antipodal pair": (torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), 1 / 2),
    "triangle": (polygon(3), 2 / 3),
    "tetrahedron": (TETRAHEDRON, 3 / 4),
    "a dimension of its own": (torch.eye(4), 1.0),
}


@pytest.mark.parametrize(("W", "expected"), SHAPES_KNOWN.values(), ids=SHAPES_KNOWN)
def test_regular_shapes_have_their_published_dimensionality(W, expected):
    torch.testing.assert_close(dimensionality(W), torch.full((len(W),), expected, dtype=torch.double))


def test_a_square_antiprism_has_three_eighths_when_its_frame_is_tight():
    tall = ANTIPRISM * torch.tensor([1.0, 1.0, math.sqrt(0.5) / 0.6], dtype=torch.double)
    torch.testing.assert_close(dimensionality(tall), torch.full((8,), 3 / 8, dtype=torch.double))
    assert not torch.allclose(dimensionality(ANTIPRISM), torch.tensor(3 / 8, dtype=torch.double))


def test_the_sum_over_a_tall_matrix_goes_by_its_triangular_factor_and_keeps_small_features():
    W = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    torch.testing.assert_close(dimensionality(W), brute_dimensionality(W))
    alone = torch.cat([W * torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([[0.0, 0.0, 0.0, 1e-9]])])
    assert float(dimensionality(alone)[-1]) == pytest.approx(1.0)


def test_rounding_takes_no_dimensionality_above_1():
    noise = torch.randn(100, 9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    orthogonal = torch.linalg.qr(noise).Q
    rounded = orthogonal.square().sum(-1) / (orthogonal @ orthogonal.mT).square().sum(-1)
    assert float(rounded.max()) > 1  # as the formula alone has it
    assert float(dimensionality(orthogonal).max()) == 1.0


def test_instances_are_measured_each_alone():
    W = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(1))
    for measure in (dimensionality, feature_interference, frame_potential, dimensions_per_feature, singular_values,
                    features_per_neuron, feature_norms, unit_rows, interference):  # fmt: skip
        together = measure(W)
        alone = torch.stack([torch.stack([measure(one) for one in row]) for row in W])
        torch.testing.assert_close(together, alone, msg=measure.__name__)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS.filter(lambda W: bool((W != 0).any(1).all())))
def test_no_frame_goes_below_the_bounds(W):
    n, m = W.shape
    assert float(frame_potential(W)) >= least_frame_potential(n, m) * (1 - 1e-9)
    cos = (unit_rows(W) @ unit_rows(W).T).fill_diagonal_(0).abs()
    assert float(cos.max()) >= welch_bound(n, m) - 1e-9


@pytest.mark.parametrize("W", [polygon(5), polygon(7), cube(), TETRAHEDRON, torch.eye(3), torch.eye(5)[:3]])
def test_a_tight_frame_meets_the_bound(W):
    assert float(frame_potential(W)) == pytest.approx(least_frame_potential(*W.shape))


def test_an_equiangular_frame_meets_the_welch_bound():
    cos = (unit_rows(TETRAHEDRON) @ unit_rows(TETRAHEDRON).T).fill_diagonal_(0).abs()
    assert float(cos.max()) == pytest.approx(welch_bound(4, 3))
    assert welch_bound(3, 5) == 0.0


def test_the_overlap_of_random_directions_is_as_drawn():
    for m in (1, 2, 3, 50):
        units = unit_rows(torch.randn(40_000, m, generator=torch.Generator().manual_seed(m)))
        drawn = units[:, 0].abs()  # any fixed direction will do
        assert random_overlap(m) == pytest.approx(float(drawn.mean()), abs=5 * float(drawn.std()) / 200 + 1e-12)


def test_random_directions_keep_within_the_johnson_lindenstrauss_overlap():
    n, m = 200, 400
    eps = johnson_lindenstrauss_overlap(n, m)
    units = unit_rows(torch.randn(n, m, generator=torch.Generator().manual_seed(3)))
    assert float((units @ units.T).fill_diagonal_(0).abs().max()) < eps < 0.5
    assert johnson_lindenstrauss_capacity(m, eps) == pytest.approx(math.log(n))
    assert johnson_lindenstrauss_overlap(10**6, 3) == 1.0


@settings(max_examples=30, deadline=None)
@given(WEIGHTS.filter(lambda W: bool((W != 0).any())))
def test_spectral_measures_are_those_of_numpys_singular_values(W):
    values = singular_values(W)
    expected = np.linalg.svd(W.numpy(), compute_uv=False)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-9 * expected[0])
    shares = expected[expected > 0] / expected.sum()
    assert float(effective_rank(values)) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert float(participation_ratio(values**2)) == pytest.approx((expected**2).sum() ** 2 / (expected**4).sum())
    assert float(stable_rank(values)) == pytest.approx((W**2).sum() / expected[0] ** 2)


def test_neurons_of_one_feature_and_of_many_are_told_apart():
    W = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert features_per_neuron(W).tolist() == [1.0, 3.0, 0.0]
    weighted = features_per_neuron(W, power=torch.tensor([1.0, 0.0, 1.0]))
    assert weighted.tolist() == [1.0, 2.0, 0.0]


def test_d_star_counts_features_of_length_one():
    assert float(dimensions_per_feature(torch.eye(5)[:4])) == pytest.approx(5 / 4)
    assert float(dimensions_per_feature(torch.cat([torch.eye(3), -torch.eye(3)]))) == pytest.approx(1 / 2)
    assert float(dimensions_per_feature(torch.zeros(2, 3))) == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_measured_in_double(dtype):
    found = dimensionality(TETRAHEDRON.to(dtype))
    assert found.dtype == torch.double
    torch.testing.assert_close(found, torch.full((4,), 0.75, dtype=torch.double))


BAD = {
    "integers": (torch.ones(3, 2, dtype=torch.long), TypeError, r"int64.*W\.float\(\)"),
    "a NaN": (torch.tensor([[1.0, 0.0], [math.nan, 1.0]]), ValueError, r"1 of 2 rows \(1\)"),
    "an infinity": (torch.tensor([[1.0, 0.0], [math.inf, 1.0]]), ValueError, r"\(1\)"),
    "one axis": (torch.ones(3), ValueError, r"\[feature, hidden\]"),
    "no features": (torch.ones(0, 3), ValueError, r"at least one of each"),
}


@pytest.mark.parametrize(("W", "error", "named"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("measure", [dimensionality, feature_norms, frame_potential, singular_values, interference])
def test_what_is_no_set_of_features_is_an_error_that_names_it(measure, W, error, named):
    with pytest.raises(error, match=named):
        measure(W)


@pytest.mark.parametrize("n", [(0, 3), (3, 0)])
@pytest.mark.parametrize("bound", [welch_bound, least_frame_potential, johnson_lindenstrauss_overlap])
def test_bounds_need_features_and_dimensions(bound, n):
    with pytest.raises(ValueError, match="at least 1"):
        bound(*n)
