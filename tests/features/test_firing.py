"""Firings are an SAE's activations that are not 0, however they are found; what fires together is counted exactly."""

import numpy as np
import pytest
import torch

from mechkit.features import best, firing, scan, scanning, selection, together
from tests.features.tiny import HOOK, assert_index_is, loop, tiny_sae, token_rows

KEPT = {"top": 3, "sample": 6, "window": (2, 1), "cofiring": 10_000}


def topk_sae(k=5, d_sae=24):
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=d_sae, k=k, metadata=SAEMetadata(hook_name=HOOK)))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return sae.eval()


def dense_of(found, n_tokens, n_features):
    dense = torch.zeros(n_tokens, n_features)
    dense[found.token, found.feature] = found.value
    return dense


def test_firings_are_the_activations_that_are_not_zero():
    active = torch.tensor([[0.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, torch.inf]])
    for one in (active, active.bfloat16(), active.double()):
        found = firing.nonzero(one)
        assert found.token.tolist() == [0, 0, 2, 2]
        assert found.feature.tolist() == [1, 2, 0, 2]
        assert found.value.tolist() == [-2, 0.5, 1, torch.inf]
        assert found.value.dtype == torch.float32


@pytest.mark.parametrize("make", [topk_sae, tiny_sae])
def test_firings_are_those_of_the_dense_encoding(make, monkeypatch):
    sae, x = make(), torch.randn(7, 9, 16, generator=torch.Generator().manual_seed(1))
    real = torch.arange(9) < torch.tensor([9, 3, 1, 9, 5, 2, 8])[:, None]
    wanted = sae.encode(x)[real].detach()
    for at_once in (1 << 21, 1):
        monkeypatch.setitem(firing.AT_ONCE, "cpu", at_once)
        found = firing.fired(sae, x, real)
        torch.testing.assert_close(dense_of(found, len(wanted), 24), wanted)  # fewer rows sum in another order
        assert len(found) == (wanted != 0).sum() > 0
        assert (found.token * 24 + found.feature).diff().min() > 0


def test_an_sae_of_the_k_largest_is_asked_for_these_alone_and_left_as_it_was(monkeypatch):
    sae, x, real = topk_sae(), torch.ones(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)
    seen, whole = [], sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: seen.append(whole(x)) or seen[-1])
    firing.fired(sae, x, real)
    assert [one.is_sparse for one in seen] == [True]
    assert not sae.encode(x).is_sparse
    monkeypatch.setattr(sae, "encode", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        firing.fired(sae, x, real)
    assert not sae.activation_fn.use_sparse_activations


def test_a_scan_of_an_sae_of_the_k_largest_is_that_of_a_plain_loop(model, tmp_path):
    sae, rows = topk_sae(), token_rows(20)
    index = scan(model, sae, rows, tmp_path / "index", **KEPT, batch=1)
    assert_index_is(index, loop(model, sae, rows, **KEPT))


def test_every_number_is_that_of_a_plain_loop_however_often_firings_are_looked_at(model, tmp_path, monkeypatch):
    sae, rows = tiny_sae(steps=2), token_rows()
    picked, kept = [], best.Best.kept
    monkeypatch.setattr(best.Best, "kept", lambda self: picked.append(0) or kept(self))
    monkeypatch.setattr(selection, "MANY", 1)
    monkeypatch.setattr(best, "FULL", 1)
    monkeypatch.setattr(scanning, "WHOLE", 1)
    monkeypatch.setitem(firing.AT_ONCE, "cpu", 48)
    index = scan(model, sae, rows, tmp_path / "index", **KEPT, batch=40, ignore=[3])
    assert len(picked) > 6  # two for the stretch and two when all is put together, without the limit
    assert_index_is(index, loop(model, sae, rows, **KEPT, ignore=(3,)))


def test_an_index_without_examples_has_its_counts(model, tmp_path):
    kept = {**KEPT, "top": 0, "sample": 0}
    index = scan(model, tiny_sae(), token_rows(20), tmp_path / "index", **kept, batch=1)
    assert_index_is(index, loop(model, tiny_sae(), token_rows(20), **kept))


@pytest.mark.parametrize(("n_features", "n_tokens"), [(5, 40), (24, 60), (300, 50)])
@pytest.mark.parametrize("pieces", [{}, {"CELLS": 1, "PAIRS": 3}, {"CELLS": 700, "PAIRS": 40}])
def test_what_fires_together_is_counted_and_ranked_as_by_sets(n_features, n_tokens, pieces, monkeypatch):
    for name, size in pieces.items():
        monkeypatch.setattr(together, name, size)
    draw = np.random.default_rng(0)
    on_tokens = [np.flatnonzero(draw.random(n_features) < 6 / (n_features + 6)) for _ in range(n_tokens)]
    on_tokens = [one[(one != 3) & (one != n_features - 1)] for one in on_tokens]
    on_tokens[7] = on_tokens[7][:0]
    n = np.array([len(one) for one in on_tokens])
    fired, other, shared = together.cofiring(n, np.concatenate(on_tokens), n_features, 10)
    tokens_of = [{i for i, one in enumerate(on_tokens) if f in one} for f in range(n_features)]
    assert fired.tolist() == [len(one) for one in tokens_of]
    for a in range(n_features):
        overlap = {
            b: len(tokens_of[a] & tokens_of[b]) / len(tokens_of[a] | tokens_of[b])
            for b in range(n_features)
            if b != a and tokens_of[a] & tokens_of[b]
        }
        wanted = sorted(overlap, key=lambda b: (-overlap[b], b))[:10]
        assert other[a].tolist() == wanted + [-1] * (10 - len(wanted))
        assert shared[a].tolist() == [len(tokens_of[a] & tokens_of[b]) for b in wanted] + [0] * (10 - len(wanted))


def test_nothing_fires_together_where_nothing_fires():
    fired, other, shared = together.cofiring(np.zeros(3, np.int32), np.zeros(0, np.int32), 4, 2)
    assert (fired.sum(), set(other.ravel().tolist()), shared.sum()) == (0, {-1}, 0)
