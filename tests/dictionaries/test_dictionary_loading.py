"""Transcoders from disk: one that is damaged or belongs to another model is an error that says how."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechkit.dictionaries import load_transcoders, transcoders_for
from mechkit.zoo import load
from mechkit.zoo.folder import Origin
from mechkit.zoo.loading import zoo_names


@pytest.fixture(scope="module")
def model():
    return load("addition", device="cpu")


@pytest.fixture
def folder(model, tmp_path):
    shutil.copytree(model.mechkit_origin.folder / "transcoders", tmp_path / "transcoders")
    return tmp_path / "transcoders"


def test_the_zoo_model_has_a_transcoder_per_layer(model):
    transcoders = transcoders_for(model)
    assert [t.layer for t in transcoders] == [0, 1]
    assert [t.hook_in for t in transcoders] == ["blocks.0.ln2.hook_normalized", "blocks.1.ln2.hook_normalized"]
    assert [t.hook_out for t in transcoders] == ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
    assert "addition" in zoo_names()


def test_they_take_the_dtype_of_the_model():
    model = load("addition", device="cpu", dtype=torch.float64)
    assert {t.W_enc.dtype for t in transcoders_for(model)} == {torch.float64}


def test_a_model_from_elsewhere_has_none(model):
    origin = model.mechkit_origin
    try:
        model.mechkit_origin = Origin("gpt2", "folded")
        assert transcoders_for(model) is None
        del model.mechkit_origin
        assert transcoders_for(model) is None
    finally:
        model.mechkit_origin = origin


def edit(**changes):
    def change(folder):
        file = folder / "layer_1" / "cfg.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def edit_metadata(**changes):
    def change(folder):
        cfg = json.loads((folder / "layer_1" / "cfg.json").read_text())
        edit(metadata={**cfg["metadata"], **changes})(folder)

    return change


def cut(folder):
    file = folder / "layer_1" / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def narrow(folder):
    file = folder / "layer_1" / "sae_weights.safetensors"
    tensors = load_file(file)
    save_file({name: tensor[..., :64].contiguous() for name, tensor in tensors.items()}, file)


def shrink(folder):
    narrow(folder)
    edit(d_in=128, d_sae=64, d_out=64)(folder)
    file = folder / "layer_1" / "sae_weights.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "W_dec": tensors["W_dec"][:64].contiguous()}, file)


@pytest.mark.parametrize(
    ("damage", "error", "complaint"),
    [
        (lambda folder: shutil.rmtree(folder / "layer_1"), FileNotFoundError, r"holds \['layer_0'\]; this model needs"),
        (lambda folder: (folder / "layer_2").mkdir(), ValueError, "'layer_2'.*; this model needs layer_0 to layer_1"),
        (lambda folder: (folder / "layer_1/cfg.json").unlink(), FileNotFoundError, "no cfg.json in"),
        (lambda folder: (folder / "layer_1/cfg.json").write_text("{"), ValueError, "cfg.json' is damaged"),
        (lambda folder: (folder / "layer_1/sae_weights.safetensors").unlink(), FileNotFoundError, "no sae_weights"),
        (cut, ValueError, "sae_weights.safetensors' is damaged"),
        (narrow, ValueError, "its cfg.json asks for"),
        (shrink, ValueError, "has d_out 64; this model has d_model 128"),
        (edit(architecture="standard"), ValueError, "architecture 'standard'; it must be one of transcoder"),
        (edit(normalize_activations="layer_norm"), ValueError, "normalize_activations 'layer_norm'; fold it"),
        (edit(metadata={}), ValueError, "hook_name None, which is no hook of this model"),
        (edit_metadata(hook_name="blocks.0.ln2.hook_normalized"), ValueError, "which is not of layer 1"),
        (edit_metadata(hook_name_out="blocks.1.hook_mpl_out"), ValueError, "'blocks.1.hook_mpl_out', which is no hook"),
        (edit_metadata(processing="none"), ValueError, "processing 'none', this model has 'folded'; load the model"),
        (edit_metadata(weights_sha256="0" * 64), ValueError, "sha256 000000000000, this model's are"),
    ],
)
def test_a_transcoder_that_does_not_fit_is_one_clear_error(model, folder, damage, error, complaint):
    assert len(load_transcoders(folder, model)) == 2
    damage(folder)
    with pytest.raises(error, match=complaint) as caught:
        load_transcoders(folder, model)
    assert "\n" not in str(caught.value)
