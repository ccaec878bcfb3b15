"""A scan gives the numbers of plain loops over rows, tokens and features, whatever the batches and stretches."""

import numpy as np
import pytest
import torch

from mechkit.features import scan
from mechkit.features.selection import bin_edges, bins_of, firing_hash, position_hash
from tests.features.tiny import assert_index_is, contents, hashed, loop, tiny_sae, token_rows

KEPT = {"top": 3, "sample": 6, "window": (2, 1), "cofiring": 10_000}


SIZES = [{"batch": 40, "shard": 90}, {"batch": 1000, "shard": 10_000}, {"batch": 1, "shard": 1}]


@pytest.mark.parametrize("sizes", SIZES)
def test_every_number_is_that_of_a_plain_loop(model, tmp_path, sizes):
    sae, rows = tiny_sae(steps=2), token_rows()
    index = scan(model, sae, rows, tmp_path / "index", **KEPT, **sizes)
    assert_index_is(index, loop(model, sae, rows, **KEPT))


def test_every_number_is_that_of_a_plain_loop_to_the_bit_where_rows_run_alone(model, tmp_path):
    sae, rows = tiny_sae(), token_rows()
    index = scan(model, sae, rows, tmp_path / "index", **KEPT, batch=1)
    assert_index_is(index, loop(model, sae, rows, **KEPT))


def test_ties_are_many_in_the_corpus_that_shows_how_they_break(model):
    found = loop(model, tiny_sae(steps=2), token_rows(), **KEPT)
    kept = [value for feature in found["top"] for _, value in feature]
    assert len(kept) > 60
    assert len(set(kept)) < 20


def test_tokens_that_are_ignored_count_for_nothing(model, tmp_path):
    sae, rows = tiny_sae(steps=4), token_rows()
    index = scan(model, sae, rows, tmp_path / "index", **KEPT, batch=64, ignore=[3, 7])
    found = loop(model, sae, rows, **KEPT, ignore=(3, 7))
    assert found["n_counted"] < sum(map(len, rows))
    assert_index_is(index, found)


def test_co_firing_is_counted_on_about_as_many_tokens_as_asked(model, tmp_path):
    sae, rows = tiny_sae(steps=4), token_rows()
    kept = {**KEPT, "cofiring": 100}
    index = scan(model, sae, rows, tmp_path / "index", **kept, batch=64)
    found = loop(model, sae, rows, **kept)
    assert 70 < found["n_together"] < 140
    assert_index_is(index, found)


def test_several_saes_in_one_pass_are_as_each_alone(model, tmp_path):
    rows, one, other = token_rows(), tiny_sae(steps=4), tiny_sae(20, "blocks.0.mlp.hook_post", 1, 24, steps=4)
    scan(model, {"one": one, "other": other}, rows, tmp_path / "both", **KEPT, batch=64)
    for name, sae in (("one", one), ("other", other)):
        from mechkit.features import FeatureIndex

        assert_index_is(FeatureIndex.open(tmp_path / "both", sae=name), loop(model, sae, rows, **KEPT))


@pytest.mark.parametrize("n_heads_apart", [True, False])
def test_an_sae_of_all_heads_outputs_reads_them_side_by_side(model, tmp_path, n_heads_apart):
    sae, rows = tiny_sae(hook="blocks.0.attn.hook_z", steps=4), token_rows(20)
    if n_heads_apart:
        sae.cfg.reshape_activations = "hook_z"
        sae.turn_on_forward_pass_hook_z_reshaping()
    index = scan(model, sae, rows, tmp_path / "index", **KEPT)
    assert_index_is(index, loop(model, sae, rows, **KEPT))


def test_a_row_of_a_bidirectional_model_is_read_without_padding(build, tmp_path):
    model, sae, rows = build(attention_dir="bidirectional"), tiny_sae(steps=4), token_rows(30)
    index = scan(model, sae, rows, tmp_path / "index", **KEPT, batch=200)
    assert_index_is(index, loop(model, sae, rows, **KEPT))


def test_all_activations_are_kept_by_token_and_by_feature(model, tmp_path):
    sae, rows = tiny_sae(steps=4), token_rows()
    index = scan(model, sae, rows, tmp_path / "index", keep="all", **KEPT, batch=64, shard=100)
    found = loop(model, sae, rows, **KEPT)
    assert_index_is(index, found)
    for feature in range(24):
        own = sorted([(-v, p) for f, p, _, v in found["firings"] if f == feature])
        frame = index.firings(feature).rows
        assert list(zip(-frame["activation"], frame["position"], strict=True)) == own
    for position in range(0, index.text.rows.n_tokens, 7):
        own = sorted([(-v, f) for f, p, _, v in found["firings"] if p == position])
        frame = index.at(position).rows
        assert list(zip(-frame["activation"], frame["feature"], strict=True)) == own


def test_a_tensor_of_token_ids_is_read_as_it_is(model, tmp_path):
    sae, rows = tiny_sae(steps=4), torch.tensor([row[:5] for row in token_rows() if len(row) >= 5])
    index = scan(model, sae, rows, tmp_path / "index", **KEPT)
    assert_index_is(index, loop(model, sae, rows.tolist(), **KEPT))


def test_the_same_scan_twice_gives_the_same_bytes(model, tmp_path):
    for name in ("first", "second"):
        scan(model, tiny_sae(), token_rows(), tmp_path / name, keep="all", **KEPT, batch=64, shard=100)
        torch.manual_seed(1)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_bfloat16_is_scanned_in_bfloat16(build, tmp_path):
    model, sae, rows = build(dtype=torch.bfloat16), tiny_sae().to(torch.bfloat16), token_rows()
    index = scan(model, sae, rows, tmp_path / "index", **KEPT, batch=1)
    assert_index_is(index, loop(model, sae, rows, **KEPT))


def test_bins_are_half_octaves():
    edges = torch.tensor(bin_edges())
    assert bins_of(edges).tolist() == list(range(64))
    assert bins_of(edges.nextafter(torch.tensor(0.0))).tolist() == [0, *range(63)]
    assert bins_of(torch.tensor([1e-9, 1e9])).tolist() == [0, 63]


def test_hashes_are_spread_alike_over_places_and_features():
    feature, place = torch.arange(50).repeat_interleave(2000), torch.arange(2000).repeat(50)
    found = firing_hash(position_hash(place), feature)
    assert found[:3].tolist() == [hashed(p, 0)[1] for p in range(3)]
    shares = torch.histc(found.double(), 20, 0, 2**31) / len(found)
    assert (shares - 0.05).abs().max() < 0.003  # four standard deviations
    of_features = found.reshape(50, 2000).double().mean(1) / 2**31
    assert (of_features - 0.5).abs().max() < 0.03
    assert np.abs(np.corrcoef(found.reshape(50, 2000).numpy()) - np.eye(50)).max() < 0.12
