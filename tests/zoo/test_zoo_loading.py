"""`load`: which names it knows, how fast it refuses the others, and that it imports late."""

import socket
import subprocess
import sys
import time

import pytest
from transformer_lens import HookedTransformer

from mechkit.zoo import load, processing_of, zoo_names


def test_the_addition_model_is_a_plain_hooked_transformer_that_reads_sums():
    model = load("addition", device="cpu")
    assert type(model) is HookedTransformer
    assert model.to_str_tokens("35+59=") == ["35", "+", "59", "="]
    assert model.to_tokens("35+59=").shape == (1, 4)
    assert model.to_tokens(["35+59=", "next 35="]).shape == (2, 4)
    assert model.to_single_token("94") == 94
    assert processing_of(model) == "folded"
    assert model.to_string(model("35+59=")[0, -1].argmax()) == "94"


def test_the_addition_model_loads_in_half_a_second():
    load("addition", device="cpu")
    start = time.perf_counter()
    load("addition", device="cpu")
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("ask", ["to_tokens", "to_str_tokens", "to_single_token"])
def test_the_model_refuses_unknown_text_and_names_it(ask):
    model = load("addition", device="cpu")
    with pytest.raises(ValueError, match=r"unknown token '590' in '35\+590='; the addition model knows the numbers 0"):
        getattr(model, ask)("35+590=")
    with pytest.raises(ValueError, match="empty prompt ''"):
        getattr(model, ask)("")
    with pytest.raises(ValueError, match="has 7 tokens; the addition model reads at most 5"):
        getattr(model, ask)("1+2+3+4")


def test_the_tokenizer_can_be_given_to_another_model():
    model = load("addition", device="cpu")
    copy = HookedTransformer(model.cfg, tokenizer=model.tokenizer)
    assert copy.to_tokens("35+59=").tolist() == model.to_tokens("35+59=").tolist()
    assert not copy.cfg.tokenizer_prepends_bos


@pytest.mark.parametrize("name", ["aditon", "no/such-model", "./nowhere"])
def test_an_unknown_name_is_refused_at_once_and_without_the_network(name, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("the network was asked"))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"no model '{name}': not in the zoo \\(addition, tinyworld\\)"):
        load(name)
    assert time.perf_counter() - start < 2


def test_a_near_miss_is_pointed_out():
    with pytest.raises(ValueError, match="did you mean addition"):
        load("additon")


def test_a_hub_model_out_of_reach_is_one_line_that_says_what_works(monkeypatch, tmp_path):
    def refuse():
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.utils.get_session", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    start = time.perf_counter()
    with pytest.raises(OSError, match=r"cannot load 'gpt2' from the Hugging Face Hub \(no route") as error:
        load("gpt2")
    assert time.perf_counter() - start < 2
    assert "use the zoo (addition, tinyworld) or a local model folder" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("processing", "build"), [(None, "from_pretrained"), ("none", "from_pretrained_no_processing")]
)
def test_a_hub_model_is_built_by_transformer_lens(monkeypatch, processing, build):
    made = load("addition", device="cpu")
    monkeypatch.setattr("mechkit.zoo.loading._within_reach", lambda official, name: None)
    monkeypatch.setattr(HookedTransformer, build, lambda name, **settings: made)
    model = load("gpt2", processing)
    assert model is made
    assert processing_of(model) == (processing or "folded")


def test_an_unknown_processing_is_refused():
    with pytest.raises(ValueError, match="no processing 'fold'; it is one of none, folded"):
        load("addition", processing="fold")


def test_the_zoo_lists_its_models():
    assert zoo_names() == ["addition", "tinyworld"]


def test_importing_the_zoo_imports_nothing_heavy():
    code = "import sys, mechkit.zoo, mechkit.zoo.addition, mechkit.dictionaries; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
