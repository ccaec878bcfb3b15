"""`measure_model`: every matrix at its site, as measured by hand; random weights are as chance, trained ones not."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import transcoders_for
from mechkit.dictionaries.decoders import decoders_at
from mechkit.superposition.weights import circuits, weights_of

FAST = {"draws": 39, "sample": 128}


@pytest.fixture(scope="module")
def found(addition):
    return mk.measure_model(addition, transcoders_for(addition), **FAST)


def row(found, site, matrix):
    return found.frame().loc[(site, matrix)].squeeze()


def test_every_matrix_of_the_model_has_a_row_at_its_site(found, addition):
    names = [(str(site), matrix) for site, matrix in zip(found.sites, found.rows["matrix"], strict=True)]
    wanted = [("embed", "W_E"), ("pos_embed", "W_pos"), ("ln_final", "W_U")]
    wanted += [(f"L{i}.{site}", matrix) for i in range(2) for site, matrix in (
        ("z", "OV writes"), ("v", "OV reads"), ("q", "queries"), ("k", "keys"), ("mlp_pre", "W_in"),
        ("mlp_post", "W_out"), (f"mlp_out[transcoders/layer_{i}]", "W_dec"),
    )]  # fmt: skip
    wanted += [(f"L{i}.H{h}.{site}", matrix) for i in range(2) for h in range(4)
               for site, matrix in (("z", "OV"), ("attn_scores", "QK"))]  # fmt: skip
    assert sorted(names) == sorted(wanted)


def test_a_row_is_what_measuring_its_matrix_gives(found, addition):
    for site, matrix, W in (
        ("embed", "W_E", addition.W_E),
        ("ln_final", "W_U", addition.W_U.T),
        ("L1.mlp_pre", "W_in", addition.W_in[1].T),
        ("L0.mlp_post", "W_out", addition.W_out[0]),
    ):
        report = mk.measure_superposition(W, **FAST)
        seen = row(found, site, matrix)
        for name, value in report.numbers().items():
            assert float(seen[name]) == pytest.approx(value), (site, name)
        observed, expected, p = report.tests["same covariance"].of("mean largest |cos|")
        assert seen["covariance_nearest"] == pytest.approx(observed / expected)
        assert seen["covariance_nearest_p"] == pytest.approx(p)


def test_heads_are_measured_in_the_singular_vectors_of_their_maps(found, addition):
    for circuit, site, full in (
        ("OV", "z", addition.W_V[1, 2] @ addition.W_O[1, 2]),
        ("QK", "attn_scores", addition.W_Q[1, 2] @ addition.W_K[1, 2].T),
    ):
        values = torch.linalg.svdvals(full.detach().double())
        seen = row(found, f"L1.H2.{site}", circuit)
        assert seen["participation_ratio"] == pytest.approx(float((values**2).sum() ** 2 / (values**4).sum()), rel=1e-4)
        assert seen["stable_rank"] == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-4)
        assert pd.isna(seen["mean_cosine"])  # within a head they are orthogonal by construction
        left, right = (rows[2] for rows in circuits(addition.blocks[1])[circuit])
        rebuilt = left.T @ (right / right.norm(dim=1, keepdim=True))
        torch.testing.assert_close(rebuilt.float(), full.detach(), atol=1e-4, rtol=1e-3)


def test_trained_weights_differ_from_chance_and_random_ones_do_not(found, build):
    p = found.rows["random_mean_square_p"].dropna()
    assert (p < 0.06).mean() > 0.9
    random = mk.measure_model(build(d_model=24, d_mlp=60, d_vocab=60, n_heads=3, normalization_type="LNPre"), **FAST)
    for name in ("random_mean_square_p", "random_nearest_p", "covariance_mean_square_p", "covariance_nearest_p"):
        seen = random.rows[name].dropna()
        assert len(seen) >= 6
        assert (seen <= 0.05).mean() < 0.25, name  # a few of as many matrices by chance


def test_heads_that_share_keys_turn_together(build):
    """Otherwise random weights of grouped-query attention would seem to overlap: each key head is there twice."""
    model = build(
        d_model=32, n_heads=8, d_head=4, n_key_value_heads=2, positional_embedding_type="rotary", rotary_dim=4
    )
    rows = mk.measure_model(model, heads=False, **FAST).frame()
    for matrix in ("keys", "OV reads"):
        ratios = rows.xs(matrix, level="matrix")["random_mean_square"]
        assert ratios.between(0.8, 1.25).all(), ratios
    assert "pos_embed" not in {str(site) for site in mk.measure_model(model, heads=False, draws=1).sites}


def test_norm_weights_that_are_not_folded_belong_to_what_is_read(build):
    model = build(normalization_type="RMS", gated_mlp=True, act_fn="silu")
    by_name = {(str(one.site), one.matrix): one.W for one in weights_of(model)}
    block = model.blocks[1]
    torch.testing.assert_close(by_name["L1.mlp_pre", "W_gate"], (block.ln2.w[:, None] * block.mlp.W_gate).T)
    torch.testing.assert_close(by_name["L1.mlp_pre_linear", "W_in"], (block.ln2.w[:, None] * block.mlp.W_in).T)
    torch.testing.assert_close(by_name["ln_final", "W_U"], (model.ln_final.w[:, None] * model.W_U).T)
    torch.testing.assert_close(by_name["embed", "W_E"], model.W_E)


def test_attention_only_models_and_mixtures_of_experts_say_what_they_lack(build):
    assert not {"W_in", "W_out"} & set(mk.measure_model(build(attn_only=True), draws=1).rows["matrix"])
    experts = build(num_experts=2, experts_per_token=1, gated_mlp=True, act_fn="silu")
    found = mk.measure_model(experts, draws=1)
    assert found.meta["left_out"] == ["mixtures of experts (layers 0, 1)"]


def test_a_measure_is_a_result_whose_rows_are_sites(found, tmp_path):
    fill = found.layers.measure("features_per_dimension")
    assert fill.unit == "features_per_dimension"
    assert set(map(str, fill.sites)) == set(map(str, found.layers.sites))
    assert str(fill.top(1).sites[0]) == "L0.q"
    with pytest.raises(ValueError, match="no measure 'vibes'"):
        found.measure("vibes")
    table = pd.read_parquet(found.save(tmp_path / "found.parquet"))
    assert table["mean_cosine"].tolist() == pytest.approx(found.rows["mean_cosine"].tolist(), nan_ok=True)
    assert "Weights show capacity" in str(found)


def test_dictionaries_from_disk_are_those_of_the_package(found, addition):
    decoders = decoders_at(addition.mechkit_origin.folder / "transcoders", addition)
    for decoder, transcoder in zip(decoders, transcoders_for(addition), strict=True):
        assert torch.equal(decoder.W_dec, transcoder.W_dec)
        assert (decoder.hook_name, decoder.name) == (transcoder.hook_out, transcoder.name)
    one = decoders_at(addition.mechkit_origin.folder / "transcoders" / "layer_1", addition)
    assert [decoder.hook_name for decoder in one] == ["blocks.1.hook_mlp_out"]


def test_dictionaries_of_another_model_are_refused(addition, model, tmp_path):
    folder = addition.mechkit_origin.folder / "transcoders"
    with pytest.raises(FileNotFoundError, match="no dictionary in"):
        decoders_at(tmp_path, addition)
    with pytest.raises(ValueError, match="no hook of this model"):
        decoders_at(folder, SimpleNamespace(hook_dict={}, cfg=model.cfg))
    with pytest.raises(ValueError, match="writes 128 dimensions, this model has d_model 16"):
        list(weights_of(model, transcoders_for(addition)))
    with pytest.raises(ValueError, match="no W_dec"):
        list(weights_of(addition, [object()]))


def test_the_sae_of_saelens_is_taken_as_it_is(model):
    """An object with `W_dec` and `cfg.metadata.hook_name`."""
    metadata = SimpleNamespace(hook_name="blocks.1.hook_resid_post", hook_name_out=None)
    sae = SimpleNamespace(W_dec=torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), name="an [sae]",
                          cfg=SimpleNamespace(metadata=metadata))  # fmt: skip
    found = mk.measure_model(model, [sae], heads=False, draws=3)
    assert str(found.sites[-1]) == "L1.resid_post[an sae]"


def test_weights_that_are_not_finite_are_named(build):
    model = build()
    model.blocks[1].mlp.W_out.data[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"W_out at L1\.mlp_post: W has NaN .*\(3\)"):
        mk.measure_model(model, draws=1)


def test_a_model_is_left_as_it_was_also_after_an_error(build):
    model = build().train()
    model.embed.W_E.requires_grad_(False)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    model.add_hook("blocks.0.hook_resid_mid", lambda x, hook: None, is_permanent=True)

    def state():
        return {
            "weights": {name: value.clone() for name, value in model.state_dict().items()},
            "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
            "flags": [(p.requires_grad, name) for name, p in model.named_parameters()],
            "hooks": [(name, list(point._forward_hooks)) for name, point in model.hook_dict.items()],
            "rest": (model.training, torch.is_grad_enabled(), str(model.cfg), torch.get_rng_state().tolist()),
        }

    def same(a, b):
        tensors = [[part[key][name] for name in part[key]] for part in (a, b) for key in ("weights", "grads")]
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(*(tensors[i] + tensors[i + 1] for i in (0, 2)),
                                                                      strict=True))  # fmt: skip
        assert [a[key] for key in ("flags", "hooks", "rest")] == [b[key] for key in ("flags", "hooks", "rest")]

    before = state()
    first, second = (mk.measure_model(model, draws=3) for _ in range(2))
    same(before, state())
    pd.testing.assert_frame_equal(first.rows, second.rows)
    with pytest.raises(ValueError, match="no W_dec"):
        mk.measure_model(model, [object()], draws=3)
    same(before, state())


def test_a_real_language_model_is_measured():
    folders = (up / "shared/data/stories260k" for up in Path(__file__).resolve().parents)
    folder = next((path for path in folders if path.exists()), None)
    if folder is None:
        pytest.skip("the model stories260k is not in a folder shared/data above the tests")
    found = mk.measure_model(mk.load(folder), heads=False, draws=39, sample=128)
    rows = found.frame()
    assert len(rows) == 2 + 5 * 7
    assert (rows["random_mean_square"].dropna() > 0.9).all()
    assert row(found, "embed", "W_E")["random_mean_square"] > 5  # anisotropic, as embeddings are
    assert row(found, "embed", "W_E")["covariance_mean_square"] < 2  # which its covariance explains
