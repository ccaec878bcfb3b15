"""SAEs from disk: read by SAELens, checked against the model."""

import json

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
