"""Toys trained as a batch are what a plain loop gives; samples and quadrature are the distribution they stand for."""

import math
from itertools import pairwise

import pytest
import torch

from mechkit.superposition.toy import (
    Exact,
    Finite,
    Samples,
    Trained,
    Weights,
    expected_loss,
    instances,
    sampled_loss,
    train,
    training,
)  # fmt: skip
from mechkit.superposition.toy import (
    toys as spec,
)
from mechkit.superposition.toy.weights import Rows, losses_and_gradients

KINDS = tuple(spec.KINDS)


def uniform(shape, low, high, seed=0):
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def reference(kind, tensors, x):
    """The model, written from its formula, on rows of samples."""
    W, b, *rest = tensors
    h = x @ W.T
    h = h.relu() if kind in ("hidden", "absolute") else h
    out = h @ (rest[0].T if rest else W) + b
    return out if kind == "linear" else out.relu()


def plain_loop(toys, kind, which, n_steps, batch):
    """One instance, by autograd and torch's AdamW, on the samples its seed stands for."""
    one, seed = toys[[which]], int(toys.seed[which])
    tensors = [tensor[0].clone().requires_grad_() for tensor in Weights.initial(one)]
    adam = torch.optim.AdamW(tensors, lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(2 * seed + 1)
    p = one.probability[0]
    for _ in range(n_steps):
        value = (torch.rand(1, toys.n_features, batch, generator=generator)[0].T - (1 - p)) / p
        x = torch.where(value > 0, 2 * value - 1, 0.0) if kind == "absolute" else value.relu()
        error = reference(kind, tensors, x) - (x.abs() if kind == "absolute" else x)
        adam.zero_grad()
        (error.square() @ one.importance[0]).mean().backward()
        adam.step()
    return [tensor.detach() for tensor in tensors]


def mixed(kind="relu", **more):
    """Six instances that differ in everything an instance can differ in."""
    return instances(
        5, 3, kind=kind, probability=uniform((6, 5), 0.1, 1.0), importance=uniform((6, 5), 0.2, 2.0, 1),
        seed=[3, 0, 3, 8, 1, 0], **more,
    )  # fmt: skip


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_written_out_gradient_is_that_of_autograd(kind, weighted):
    toys = mixed(kind)
    weights = Weights.initial(toys)
    weights.b.copy_(uniform((6, 5), -0.3, 0.3, 2))
    x = Samples(64).stream(toys, torch.arange(6)).rows().x
    share = uniform((6, 64), 0, 1, 3).softmax(1) if weighted else None
    loss, gradients = losses_and_gradients(toys.kind, weights, Rows(x, share), toys.importance)
    for at in range(6):
        tensors = [tensor[at].clone().requires_grad_() for tensor in weights]
        rows = x[at].T
        error = reference(kind, tensors, rows) - (rows.abs() if kind == "absolute" else rows)
        wanted = (error.square() @ toys.importance[at]) @ (torch.full((64,), 1 / 64) if share is None else share[at])
        torch.testing.assert_close(loss[at], wanted, rtol=1e-5, atol=1e-6)  # sums in another order
        for got, true in zip(gradients, torch.autograd.grad(wanted, tensors), strict=True):
            torch.testing.assert_close(got[at], true, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_trains_every_instance_as_a_plain_loop_does(kind):
    toys = mixed(kind)
    found = train(toys, Samples(64), n_steps=60)
    start = Weights.initial(toys)
    for at in (0, 3, 5):
        wanted = plain_loop(toys, kind, at, 60, 64)
        for got, true, before in zip(found.weights, wanted, start, strict=True):
            torch.testing.assert_close(got[at], true, rtol=0, atol=1e-5)  # rounding, grown over 60 steps
            assert (before[at] - true).abs().max() > 0.02


@pytest.mark.parametrize("data", [Samples(64), Exact(2), Finite(uniform((6, 20, 5), 0, 1, 4))], ids=repr)
@pytest.mark.parametrize("chunks", ["together", "in chunks", "out of memory"])
def test_an_instance_does_not_depend_on_its_batch(data, chunks, monkeypatch):
    toys = mixed()
    memory = None if chunks != "in chunks" else 3 * spec_bytes(toys, data)
    sizes, most = set(), 2 if chunks == "out of memory" else 6
    monkeypatch.setattr(training, "losses_and_gradients", crowded(most, sizes))
    found = train(toys, data, n_steps=50, memory=memory)
    monkeypatch.undo()
    assert max(sizes) == {"together": 6, "in chunks": 3, "out of memory": 2}[chunks]
    for at in range(6):
        own = Finite(data.x[at : at + 1]) if isinstance(data, Finite) else data
        alone = train(toys[at : at + 1], own, n_steps=50)
        torch.testing.assert_close(found.W[at], alone.W[0], rtol=0, atol=1e-5)  # rounding
        torch.testing.assert_close(found.loss[at], alone.loss[0], rtol=1e-5, atol=1e-6)
    if not isinstance(data, Finite):  # of one seed, and yet not alike
        assert (found.W[0] - found.W[2]).abs().max() > 1e-3


def spec_bytes(toys, data):
    """What one instance takes, over the share of a limit that is planned for."""
    return int(training.instance_bytes(toys, data.n_rows(toys)) / 0.7) + 1


def crowded(most, sizes):
    """The gradient on a machine that holds `most` instances; notes in `sizes` how many it saw."""

    def step(kind, weights, rows, importance):
        if len(weights.b) > most:
            raise RuntimeError("out of memory")
        sizes.add(len(weights.b))
        return losses_and_gradients(kind, weights, rows, importance)

    return step


def test_the_same_call_twice_gives_the_same_and_global_noise_is_left_alone():
    state = torch.get_rng_state()
    first = train(mixed(), Samples(32), n_steps=20)
    torch.manual_seed(5)
    second = train(mixed(), Samples(32), n_steps=20)
    assert torch.equal(first.W, second.W)
    torch.manual_seed(0)
    torch.set_rng_state(state)
    train(mixed(), Samples(32), n_steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_training_learns_and_goes_on_from_given_weights():
    toys = mixed()
    half = train(toys, Exact(3), n_steps=100, learning_rate=0.03, window=10)
    assert (half.losses[-1] < 0.6 * half.losses[0]).all()
    more = train(toys, Exact(3), n_steps=100, learning_rate=0.01, start=half.weights)
    assert (more.loss < half.loss).all()
    assert torch.equal(half.W, train(toys, Exact(3), n_steps=100, learning_rate=0.03, window=10).W)  # not edited


@pytest.mark.parametrize("data", [Exact(4), Samples(256)], ids=repr)
def test_an_instance_that_stops_is_as_if_it_had_been_trained_that_long(data):
    toys = instances(2, 1, probability=torch.tensor([[0.5], [0.05]]), seed=[0, 1])
    options = {"learning_rate": 0.03, "weight_decay": 0.0, "window": 20}
    found = train(toys, data, n_steps=1000, stop=0.01, **options)
    assert (found.n_steps < 1000).all()
    assert found.n_steps[0] != found.n_steps[1]
    for at, steps in enumerate(found.n_steps.tolist()):
        alone = train(toys[at : at + 1], data, n_steps=steps, **options)
        torch.testing.assert_close(found.W[at], alone.W[0], rtol=0, atol=1e-5)
        assert found.loss[at] == pytest.approx(float(alone.loss[0]), rel=1e-4)
        assert found.losses[steps // 20 :, at].isnan().all()
        assert (found.losses[: steps // 20 - 1].diff(dim=0) < 0)[:, at].all()


def test_samples_have_the_distribution_asked_for():
    p = torch.tensor([[0.3, 0.05, 1.0, 0.2, 0.2, 0.4, 0.5]])
    toys = instances(7, 1, probability=p, correlated=[(3, 4)], anticorrelated=[(5, 6)])
    x = Samples(400_000).stream(toys, torch.arange(1)).rows().x[0]
    on = x > 0
    assert (on.float().mean(1) - p[0]).abs().max() < 0.004  # five standard deviations
    assert torch.equal(on[3], on[4])
    assert not (on[5] & on[6]).any()
    for values, here in zip(x, on, strict=True):
        quantiles = values[here].quantile(torch.tensor([0.1, 0.5, 0.9]))
        torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9]), rtol=0, atol=0.02)
    linked = torch.corrcoef(torch.stack([x[3, on[3]], x[4, on[3]], x[0, on[3]]]))
    assert (linked - torch.eye(3)).abs().max() < 0.03  # on together, by independent amounts
    signed = Samples(400_000).stream(instances(1, 1, kind="absolute", probability=0.3), torch.arange(1)).rows().x[0, 0]
    assert (signed != 0).float().mean() == pytest.approx(0.3, abs=0.004)
    assert signed[signed != 0].quantile(torch.tensor([0.1, 0.9])).tolist() == pytest.approx([-0.8, 0.8], abs=0.02)


GROUPS = {
    "alone": {},
    "correlated": {"correlated": [(0, 2)]},
    "anticorrelated": {"anticorrelated": [(2, 1)]},
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_quadrature_is_the_expected_loss(kind, groups):
    toys = instances(3, 2, kind=kind, probability=0.4, importance=torch.tensor([1.0, 0.5, 2.0]), seed=[0, 1], **groups)
    weights = Weights.initial(toys)
    weights.b.copy_(uniform((2, 3), -0.2, 0.2, 5))
    exact = expected_loss(toys, weights, 12)
    drawn = sampled_loss(toys, weights, 1 << 18, seed=1)
    torch.testing.assert_close(exact, drawn, rtol=1e-2, atol=0)  # four standard deviations of 2^18 samples
    kinked = (expected_loss(toys, weights, 2) - exact).abs().max()
    assert kinked < 1e-5 if kind == "linear" else kinked > 1e-5  # two nodes are enough for squares


def test_quadrature_converges_in_its_nodes():
    toys = instances(2, 1, probability=uniform((50, 1), 0.05, 1.0), seed=range(50))
    weights = Weights.initial(toys)
    weights.b.copy_(uniform((50, 2), -0.5, 0.2, 5))
    true = expected_loss(toys, weights, 160)
    errors = [float(((expected_loss(toys, weights, n) - true) / true).abs().mean()) for n in (5, 10, 20, 40)]
    assert errors[0] < 2e-3
    assert all(after < 0.5 * before for before, after in pairwise(errors))
    assert errors[-1] < 2e-5


def test_trained_toys_survive_a_file(tmp_path):
    toys = instances(4, 2, kind="absolute", probability=0.3, seed=[1, 2], correlated=[(0, 1)], anticorrelated=[(2, 3)])
    found = train(toys, Samples(16), n_steps=10)
    back = Trained.load(found.save(tmp_path / "toys.safetensors"))
    assert (back.toys.kind, back.toys.correlated, back.window) == (toys.kind, ((0, 1),), found.window)
    kept = [*back.weights, back.losses, back.toys.seed, back.toys.probability]
    for got, wanted in zip(kept, [*found.weights, found.losses, toys.seed, toys.probability], strict=True):
        assert torch.equal(got, wanted)
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(ValueError, match="holds no trained toys"):
        Trained.load(tmp_path / "other")


WRONG = {
    "kind is one of": lambda: instances(2, 1, kind="gelu"),
    "0 hidden dimensions": lambda: instances(2, 0),
    "above 0 and at most 1": lambda: instances(2, 1, probability=torch.tensor([0.5, math.nan])),
    "do not broadcast": lambda: instances(2, 1, probability=torch.ones(3), seed=[1, 2]),
    "must be finite and at least 0": lambda: instances(2, 1, importance=-1.0),
    "may be in one group": lambda: instances(3, 1, correlated=[(0, 1)], anticorrelated=[(1, 2)]),
    "must be equal": lambda: instances(2, 1, probability=torch.tensor([0.1, 0.2]), correlated=[(0, 1)]),
    "add up to 1.2": lambda: instances(2, 1, probability=0.6, anticorrelated=[(0, 1)]),
    "make 1073741824 rows": lambda: train(instances(30, 2), Exact(1)),
    "0 samples is none": lambda: Samples(0),
    "0 nodes are no": lambda: Exact(0),
    "for 2 features": lambda: train(instances(2, 1), Finite(torch.ones(4, 3))),
    "data for 2 instances": lambda: train(instances(3, 1, seed=range(5)), Finite(torch.ones(2, 4, 3))),
    "takes 65536 bytes": lambda: train(instances(2, 2), memory=1000),
    "must be at least 1": lambda: train(instances(2, 1), n_steps=0),
    "shape is one of": lambda: train(instances(2, 1), shape="step"),
    "stop is a share": lambda: train(instances(2, 1), stop=1.0),
    "weights of shapes": lambda: train(instances(2, 1), start=Weights.initial(instances(3, 1))),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_trained_is_an_error_that_says_why(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()
