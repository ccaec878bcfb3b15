"""The two nulls: calibrated where they hold, powerful where they do not, in both directions."""

import pytest
import torch

from mechkit.superposition import compare, unit_rows
from mechkit.superposition.conclusions import verdict
from mechkit.superposition.nulls import NULLS, STATISTICS, _statistics, haar_frames, random_directions, same_covariance

RANDOM, COVARIANCE = NULLS
DRAWS, MATRICES = 59, 200
OVERLAPS = STATISTICS[:-1]


def noise(n, m, seed):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def anisotropic(seed):
    """Gaussian rows with a mean and a covariance far from round."""
    mix = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0, 0.3], dtype=torch.double))
    return noise(16, 5, seed) @ mix @ torch.linalg.qr(noise(5, 5, 1)).Q + torch.tensor([3.0, 0, 1, 0, 0])


def lengthened(seed):
    """Random directions of very unequal lengths."""
    return unit_rows(noise(16, 5, seed)) * noise(16, 1, seed + 7).exp()


def p_values(make, null, first=10_000):
    """p of every statistic for 200 matrices. A p is one of DRAWS + 1 over 2 steps: spread evenly within its step."""
    steps = torch.stack([compare(make(first + i), null, draws=DRAWS, seed=i).p for i in range(MATRICES)])
    within = torch.rand(steps.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    return steps - within * 2 / (DRAWS + 1)


def distance_from_uniform(p):
    """Kolmogorov and Smirnov's: the largest gap between the distribution of p and the diagonal."""
    ordered = p.sort().values
    rank = torch.arange(1, len(p) + 1, dtype=torch.double) / len(p)
    return float(torch.maximum((rank - ordered).abs(), (ordered - rank + 1 / len(p)).abs()).max())


LIMIT = 1.95 / MATRICES**0.5
"""Kolmogorov and Smirnov's distance that a uniform p exceeds once in a thousand."""


@pytest.mark.parametrize(("make", "null"), [(lengthened, RANDOM), (anisotropic, COVARIANCE)])
def test_p_is_uniform_over_200_matrices_of_the_null(make, null):
    p = p_values(make, null)
    for i, statistic in enumerate(OVERLAPS):
        assert distance_from_uniform(p[:, i]) < LIMIT, statistic
    if null == COVARIANCE:
        assert distance_from_uniform(p[:, STATISTICS.index("spread of lengths")]) < LIMIT


def test_anisotropy_is_seen_by_random_directions_and_explained_by_the_covariance():
    p = {null: torch.stack([compare(anisotropic(i), null, draws=DRAWS, seed=i).p for i in range(40)]) for null in NULLS}
    i = STATISTICS.index("mean cos^2")
    assert float((p[RANDOM][:, i] < 0.05).double().mean()) == 1.0
    assert float((p[COVARIANCE][:, i] < 0.05).double().mean()) < 0.2


def test_a_gaussian_fitted_to_the_covariance_would_be_no_test():
    """What the conditional draws are for: the plug-in null gives p that bunch where nothing is ever rejected."""
    i, p = STATISTICS.index("mean cos^2"), []
    for seed in range(2 * MATRICES):
        W = anisotropic(30_000 + seed)
        root = torch.linalg.cholesky(torch.cov(W.T))
        generator = torch.Generator().manual_seed(seed)
        drawn = W.mean(0) + torch.randn(DRAWS, 16, 5, generator=generator, dtype=torch.double) @ root.T
        more = int((_statistics(drawn)[:, i] >= _statistics(W)[i]).sum()) + 1
        p.append(2 * min(more, DRAWS + 2 - more) / (DRAWS + 1))
    assert distance_from_uniform(torch.tensor(p, dtype=torch.double)) > LIMIT / 2**0.5


def antipodal(seed):
    """Superposition as a toy learns it: pairs on the axes, a little noise, turned at random."""
    axes = torch.linalg.qr(noise(6, 6, seed)).Q
    return torch.cat([axes, -axes]) + 0.02 * noise(12, 6, seed + 1)


@pytest.mark.parametrize("null", NULLS)
def test_antipodal_pairs_are_told_from_chance(null):
    tests = [compare(antipodal(10 * i), null, draws=DRAWS, seed=i) for i in range(40)]
    near = [test.of("mean largest |cos|") for test in tests]
    assert sum(p < 0.05 and seen > expected for seen, expected, p in near) >= 36  # power 0.9: closer than chance
    spread = [test.of("mean cos^2") for test in tests]
    assert sum(p < 0.05 and seen < expected for seen, expected, p in spread) >= 36  # a tight frame: less than chance


@pytest.fixture(scope="module")
def toys():
    """20 toy models of 20 features in 5 dimensions, trained on the spot: x' = ReLU(W W^T x + b), one in 20 active."""
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.Parameter(torch.randn(20, 20, 5, generator=generator) / 5**0.5)
    b = torch.nn.Parameter(torch.zeros(20, 1, 20))
    optimiser = torch.optim.Adam([W, b], lr=0.02)
    for _ in range(500):
        x = torch.rand(20, 256, 20, generator=generator) * (torch.rand(20, 256, 20, generator=generator) < 0.05)
        loss = (x - torch.relu(x @ W @ W.mT + b)).square().sum((1, 2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return list(W.detach())


@pytest.mark.parametrize("null", NULLS)
def test_toys_in_superposition_are_told_from_chance_with_power_of_nine_in_ten(null, toys):
    """Their frames are tight: they interfere less than chance, which only a two-sided test sees."""
    tests = [compare(W, null, draws=DRAWS, seed=i) for i, W in enumerate(toys)]
    assert sum(verdict(test) == "less" for test in tests) >= 18


def test_draws_keep_what_the_null_keeps_and_no_more():
    W = anisotropic(3)
    generator = torch.Generator().manual_seed(0)
    drawn = same_covariance(W)(20, generator)
    torch.testing.assert_close(drawn.mean(1), W.mean(0).expand(20, -1))
    torch.testing.assert_close(drawn.mT @ drawn, (W.T @ W).expand(20, -1, -1))
    assert float((drawn - W).abs().mean()) > 0.1
    turned = random_directions(W)(20, generator)
    torch.testing.assert_close(turned.norm(dim=2), W.norm(dim=1).expand(20, -1))
    assert float((turned - W).abs().mean()) > 0.1


def test_blocks_turn_as_wholes():
    W = noise(12, 7, 2)
    drawn = random_directions(W, block=3)(5, torch.Generator().manual_seed(0))
    own, other = slice(3, 6), slice(6, 9)
    for one in drawn:
        torch.testing.assert_close(one[own] @ one[own].T, W[own] @ W[own].T)
        assert float((one[own] @ one[other].T - W[own] @ W[other].T).abs().mean()) > 0.1
    orthogonal = torch.linalg.qr(noise(7, 3, 3)).Q.T.repeat(4, 1)  # every block spans the same: far from chance
    assert compare(orthogonal, RANDOM, block=3).of("mean cos^2")[2] < 0.05


@pytest.mark.parametrize("shape", [(40, 4), (12, 10), (6, 6), (9, 1)])
def test_frames_are_uniform(shape):
    """Of both kinds of factorisation: orthonormal, mean zero, every entry of variance 1 / rows."""
    frames = haar_frames(torch.randn(4000, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.double))
    identity = torch.eye(shape[1], dtype=torch.double).expand(4000, -1, -1)
    torch.testing.assert_close(frames.mT @ frames, identity, atol=1e-9, rtol=0)
    assert float(frames.mean(0).abs().max()) < 5 / (4000 * shape[0]) ** 0.5
    assert float((frames.square().mean(0) * shape[0] - 1).abs().max()) < 0.2


def test_the_same_seed_gives_the_same_p_and_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    first, second = (compare(anisotropic(0), COVARIANCE, draws=9, seed=4) for _ in range(2))
    assert torch.equal(first.drawn, second.drawn)
    assert not torch.equal(first.drawn, compare(anisotropic(0), COVARIANCE, draws=9, seed=5).drawn)
    assert torch.equal(before, torch.get_rng_state())


def test_more_features_than_the_sample_are_represented_by_some():
    test = compare(noise(300, 4, 0), RANDOM, draws=9, sample=50)
    assert test.n_features == 50
    assert compare(noise(300, 4, 0), RANDOM, draws=9, sample=None).n_features == 300
    assert compare(noise(300, 4, 0), RANDOM, draws=9, sample=50, block=20).n_features == 40


def test_ties_count_on_both_sides():
    """Two features of one dimension: |cos| is 1 in every draw."""
    test = compare(torch.tensor([[2.0], [-1.0], [1.0]]), RANDOM, draws=19)
    assert test.of("mean |cos|") == (1.0, 1.0, 1.0)
    assert test.frame().loc["max |cos|", "p"] == 1.0


def test_scale_and_zero_rows_change_nothing():
    W = anisotropic(5)
    padded = torch.cat([W, torch.zeros(3, 5, dtype=torch.double)])
    for null in NULLS:
        torch.testing.assert_close(compare(1e-30 * padded, null, draws=9).p, compare(W, null, draws=9).p)


BAD = {
    "one feature": ((torch.ones(1, 3), RANDOM), {}, "1 of 1 features"),
    "all zero": ((torch.zeros(4, 3), RANDOM), {}, "0 of 4 features"),
    "no such null": ((torch.eye(3), "shuffled"), {}, "random directions, same covariance"),
    "no draws": ((torch.eye(3), RANDOM), {"draws": 0}, "draws is 0"),
    "half a block": ((torch.eye(3), RANDOM), {"block": 2}, "blocks of 2"),
    "blocks of one covariance": ((torch.eye(4), COVARIANCE), {"block": 2}, "random directions only"),
    "a sample of one": ((torch.eye(4), RANDOM), {"sample": 1}, "at least 2"),
}


@pytest.mark.parametrize(("given", "options", "named"), BAD.values(), ids=BAD)
def test_what_cannot_be_compared_is_an_error(given, options, named):
    with pytest.raises(ValueError, match=named):
        compare(*given, **options)
