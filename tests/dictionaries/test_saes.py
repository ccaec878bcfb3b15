"""SAEs from disk: read by SAELens, checked against the model."""

import json
import warnings

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from mechkit.dictionaries import load_sae, saes_for
from mechkit.dictionaries.saes import hook_width
from mechkit.zoo import load_folder, save_folder

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def home(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mine"
    sha256 = save_folder(model, path, processing="none")
    for hook, d_in in ((HOOK, 16), ("blocks.0.attn.hook_z", 16)):
        sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=20, device="cpu"))
        for key, value in {"hook_name": hook, "processing": "none", "weights_sha256": sha256}.items():
            sae.cfg.metadata[key] = value
        sae.save_model(path / "saes" / hook)
    return load_folder(path, device="cpu")


def changed(home, tmp_path, **changes):
    """A copy of the SAE with other settings; those of `metadata` are joined to its own."""
    source = home.mechkit_origin.folder / "saes" / HOOK
    target = tmp_path / "sae"
    target.mkdir()
    cfg = json.loads((source / "cfg.json").read_text())
    cfg["metadata"] |= changes.pop("metadata", {})
    (target / "cfg.json").write_text(json.dumps(cfg | changes))
    (target / "sae_weights.safetensors").write_bytes((source / "sae_weights.safetensors").read_bytes())
    return target


def test_a_model_folder_gives_its_saes_by_hook(home, model):
    found = saes_for(home)
    assert list(found) == ["blocks.0.attn.hook_z", HOOK]
    assert found[HOOK].W_enc.shape == (16, 20)
    assert saes_for(model) == {}


def test_an_sae_takes_the_dtype_of_the_model(home, tmp_path):
    double = load_folder(home.mechkit_origin.folder, device="cpu", dtype=torch.float64)
    assert saes_for(double)[HOOK].W_enc.dtype == torch.float64


def test_widths_are_those_of_all_heads_together(model):
    hooks = ("blocks.0.attn.hook_z", "blocks.0.mlp.hook_post", "blocks.0.hook_resid_mid")
    assert [hook_width(model, hook) for hook in hooks] == [16, 24, 16]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"metadata": {"hook_name": "blocks.7.hook_resid_post"}}, "'blocks.7.hook_resid_post', which is no hook of"),
        ({"metadata": {"hook_name": None}}, "hook_name None, which is no hook of this model"),
        (
            {"metadata": {"hook_name": "blocks.0.mlp.hook_post"}},
            r"d_in 16; blocks.0.mlp.hook_post of this model has 24",
        ),
        ({"metadata": {"processing": "folded"}}, "trained on weights with processing 'folded', this model has 'none'"),
        ({"metadata": {"weights_sha256": "0" * 64}}, "trained on weights with sha256 000000000000"),
        ({"architecture": "cubist"}, "no SAE that SAELens reads"),
        ({"d_sae": 21}, "no SAE that SAELens reads"),
    ],
)
def test_an_sae_of_another_model_is_an_error(home, tmp_path, changes, error):
    with pytest.raises(ValueError, match=error):
        load_sae(changed(home, tmp_path, **changes), home)


def test_missing_and_damaged_files_are_errors(home, tmp_path):
    path = changed(home, tmp_path)
    (path / "sae_weights.safetensors").write_bytes(b"0123456789")
    with pytest.raises(ValueError, match="no SAE that SAELens reads"):
        load_sae(path, home)
    (path / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no sae_weights.safetensors in '.*'; a dictionary is"):
        load_sae(path, home)
    with pytest.raises(FileNotFoundError, match=r"no cfg.json in"):
        load_sae(tmp_path / "nowhere", home)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "its file does not say by how much"),
        ({"metadata": {"hook_name_out": "blocks.9.hook_mlp_out"}}, "hook_name_out 'blocks.9.hook_mlp_out'"),
        ({"metadata": {"hook_name_out": "blocks.0.mlp.hook_post"}}, "d_out 16; blocks.0.mlp.hook_post of this .* 24"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "center_writing_weights=True, this one has processing 'none'",
        ),
        (
            {"metadata": {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 1}},
            "d_in 16; blocks.0.attn.hook_z of this model has 8",
        ),
    ],
)
def test_an_sae_trained_in_another_way_is_an_error(home, tmp_path, changes, error, recwarn):
    with pytest.raises(ValueError, match=error):
        load_sae(changed(home, tmp_path, **changes), home)


def test_without_a_model_nothing_is_checked(home, tmp_path):
    path = changed(home, tmp_path, metadata={"hook_name": "blocks.7.hook_resid_post"})
    assert load_sae(path).W_enc.dtype == torch.float32
    assert load_sae(path, dtype=torch.float64).W_enc.dtype == torch.float64


def test_reading_an_sae_draws_nothing(home, tmp_path):
    path, before = changed(home, tmp_path), torch.get_rng_state()
    load_sae(path, home)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_it_misses_on_text_is_measured_and_held_to_its_own_figure(home, tmp_path):
    tokens = torch.arange(24).reshape(3, 8)
    path = changed(home, tmp_path)
    with pytest.warns(UserWarning, match=r"of the variance on this text; rebuilds worse than the mean"):
        sae = load_sae(path, home, text=tokens)
    with torch.no_grad():
        x = home.run_with_cache(tokens)[1][HOOK].flatten(0, 1)
        missed = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert sae.mechkit_error == pytest.approx(float(missed), rel=1e-5)
    own = 1 - float(missed)
    for figure, warns in ((own, False), (own + 0.05 * float(missed), False), (own + 0.2 * float(missed), True)):
        cfg = json.loads((path / "cfg.json").read_text())
        cfg["metadata"]["explained_variance"] = figure
        (path / "cfg.json").write_text(json.dumps(cfg))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_sae(path, home, text=tokens)
        assert any("its own figure is" in str(one.message) for one in caught) is warns
    with pytest.raises(ValueError, match="give model= as well"):
        load_sae(path, text=tokens)


def test_text_is_read_in_rows_like_those_of_the_training(gpt2_like):
    from types import SimpleNamespace

    from mechkit.dictionaries.saes import _rows

    text = "One day a little girl went out to play"
    ids = gpt2_like.to_tokens(text, prepend_bos=False)[0].tolist()
    bos = gpt2_like.tokenizer.bos_token_id
    sae = SimpleNamespace(cfg=SimpleNamespace(metadata=SimpleNamespace(prepend_bos=True, context_size=4)))
    assert _rows(gpt2_like, sae, text).tolist() == [[bos, *ids[i : i + 3]] for i in range(0, len(ids) - 2, 3)]


def test_a_release_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="SAELens has no SAE 'x' in 'no-such-release'"):
        load_sae("no-such-release", sae_id="x")


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "gated", "transcoder", "skip_transcoder"])
def test_every_kind_is_read_and_measured(home, tmp_path, kind):
    from sae_lens.registry import get_sae_class

    kind_of_sae, kind_of_cfg = get_sae_class(kind)
    more = {"k": 3} if kind == "topk" else {}
    more |= {"d_out": 16, "apply_b_dec_to_input": False} if "transcoder" in kind else {}
    sae = kind_of_sae(kind_of_cfg(d_in=16, d_sae=20, device="cpu", **more))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    sae.cfg.metadata["hook_name"] = "blocks.1.hook_resid_mid" if "transcoder" in kind else HOOK
    if "transcoder" in kind:
        sae.cfg.metadata["hook_name_out"] = "blocks.1.hook_mlp_out"
    sae.cfg.metadata["explained_variance"] = -1e9
    sae.save_model(tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae", home, text=torch.arange(24).reshape(3, 8))
    assert type(loaded) is kind_of_sae
    with torch.no_grad():
        cache = home.run_with_cache(torch.arange(24).reshape(3, 8))[1]
        x, y = (
            cache[name].flatten(0, 1) for name in (sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out or HOOK)
        )
        missed = (sae(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert loaded.mechkit_error == pytest.approx(float(missed), rel=1e-4)
