"""Model folders: they come back as they went in, and every kind of damage is one clear error."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechkit.zoo import load, load_folder, origin_of, processing_of, save_folder
from mechkit.zoo.folder import fold
from mechkit.zoo.tokenizer import word_tokenizer
from mechkit.zoo.training import new_model

ROOT = Path(__file__).parents[2]
STORIES = next((f for f in (ROOT / "shared", ROOT.parent / "shared") if f.is_dir()), ROOT) / "data/stories260k"
WORDS = ["<pad>", "a", "b", "c"]
TOKENS = torch.tensor([[1, 2, 3], [3, 3, 0]])


def tiny(**settings):
    defaults = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 4, "d_vocab": 4, "act_fn": "gelu"}
    model = new_model(0, **{**defaults, "default_prepend_bos": False, "device": "cpu", **settings})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def folder(tmp_path) -> Path:
    about = {"tokenizer": "words", "called": "the tiny model", "knows": "a, b and c"}
    text = word_tokenizer(WORDS).to_str()
    save_folder(tiny(), tmp_path / "tiny", processing="none", tokenizer_json=text, about=about)
    return tmp_path / "tiny"


def test_a_saved_model_computes_the_same_bits(folder):
    model = load_folder(folder, device="cpu")
    assert torch.equal(model(TOKENS), tiny()(TOKENS))
    assert model.to_tokens("a b c").tolist() == [[1, 2, 3]]
    assert not model.training


@pytest.mark.parametrize(
    "settings",
    [
        {"positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "RMS", "final_rms": True},
        {"gated_mlp": True, "n_key_value_heads": 1, "normalization_type": None},
        {"attn_only": True, "act_fn": None, "attention_dir": "bidirectional"},
        {"d_vocab_out": 3, "parallel_attn_mlp": True},
    ],
)
def test_every_kind_of_model_round_trips(tmp_path, settings):
    model = tiny(**settings)
    save_folder(model, tmp_path, processing="none")
    assert torch.equal(load_folder(tmp_path, device="cpu")(TOKENS), model(TOKENS))


def test_saving_twice_gives_the_same_hash_and_loading_reports_it(folder, tmp_path):
    again = save_folder(tiny(), tmp_path / "again", processing="none")
    assert load_folder(folder, device="cpu").mechkit_origin.sha256 == again


def test_dtype_can_be_chosen(folder):
    assert load_folder(folder, device="cpu", dtype=torch.float64).W_E.dtype == torch.float64


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_folding_keeps_the_log_probabilities_and_is_recorded(tmp_path, norm):
    model = tiny(normalization_type=norm, final_rms=norm == "RMS")
    save_folder(model, tmp_path, processing="none")
    folded = load(tmp_path, processing="folded", device="cpu")
    assert processing_of(folded) == "folded"
    assert processing_of(load(tmp_path, device="cpu")) == "none"
    assert not torch.allclose(folded.W_U, model.W_U)
    difference = folded(TOKENS).log_softmax(-1) - model(TOKENS).log_softmax(-1)
    assert difference.abs().max() < 1e-4  # float32, logits of size 1 to 10


def test_folded_weights_cannot_be_unfolded(tmp_path):
    model = tiny()
    fold(model)
    save_folder(model, tmp_path, processing="folded")
    with pytest.raises(ValueError, match="stored folded and the weights as trained are not kept"):
        load(tmp_path, processing="none", device="cpu")


def test_a_model_made_elsewhere_is_judged_by_its_norms():
    model = tiny()
    assert processing_of(model) == "none"
    fold(model)
    assert processing_of(model) == "folded"


def test_loading_leaves_the_random_state(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_folder(folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garble(folder):
    (folder / "model.safetensors").write_bytes(b"not weights at all")


def drop_tensor(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["embed.W_E"]
    save_file(weights, file)


def add_tensor(folder):
    file = folder / "model.safetensors"
    save_file({**load_file(file), "blocks.7.attn.W_Q": torch.zeros(1)}, file)


def reshape_tensor(folder):
    file = folder / "model.safetensors"
    save_file({**load_file(file), "embed.W_E": torch.zeros(5, 8)}, file)


def set_config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in {**config, **changes}.items() if value != "gone"}
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("damage", "error", "complaint"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "no model.safetensors in"),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "no config.json in"),
        (cut, ValueError, "model.safetensors' is damaged"),
        (garble, ValueError, "model.safetensors' is damaged"),
        (lambda folder: save_file({}, folder / "model.safetensors"), ValueError, "holds no weights"),
        (drop_tensor, ValueError, r"missing \['embed.W_E'\]"),
        (add_tensor, ValueError, r"unexpected \['blocks.7.attn.W_Q'\]"),
        (reshape_tensor, ValueError, r"embed.W_E is \(5, 8\), not \(4, 8\)"),
        (lambda folder: (folder / "config.json").write_text('{"n_layers": '), ValueError, "config.json' is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), ValueError, "must hold one object"),
        (set_config(n_layer=2), ValueError, r"unknown settings \['n_layer'\]"),
        (set_config(d_model="gone"), ValueError, r"missing \['d_model'\]"),
        (set_config(act_fn="nonsense"), ValueError, "does not describe a HookedTransformer: .*nonsense"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ValueError, "tokenizer.json' is damaged"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(folder, damage, error, complaint):
    damage(folder)
    with pytest.raises(error, match=complaint) as caught:
        load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_rounded_in_the_file_still_run_in_the_model_s_own_dtype(tmp_path):
    model = load("addition", device="cpu")
    save_folder(model, tmp_path / "small", processing="folded", dtype=torch.float16)
    size = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "small", origin_of(model).folder)]
    assert size[0] < 0.6 * size[1]
    back = load(tmp_path / "small", device="cpu")
    assert back.W_E.dtype == back.cfg.dtype == torch.float32
    assert torch.equal(back.W_E, model.W_E.half().float())
    assert not torch.equal(back.W_E, model.W_E)
    assert load(tmp_path / "small", device="cpu", dtype=torch.float16).W_E.dtype == torch.float16
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["mechkit"]["dtype"] = "float33"
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names the dtype 'float33'; it is one of torch's"):
        load(tmp_path / "small", device="cpu")


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere/at/all'"):
        load_folder("nowhere/at/all")


@pytest.mark.skipif(not STORIES.is_dir(), reason="no shared/data/stories260k in or beside the checkout")
def test_a_llama_style_folder_tells_its_story():
    model = load(STORIES, device="cpu")
    assert model.to_tokens("Once upon a time").tolist() == [[1, 403, 407, 261, 378]]
    start = model.to_tokens("", prepend_bos=True)
    assert start.tolist() == [[1]]
    story = model.generate(start, max_new_tokens=14, do_sample=False, verbose=False)
    assert "Once upon a time, there was a little girl" in model.to_string(story[0])
