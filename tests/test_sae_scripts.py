"""The scripts that train dictionaries, end to end in small."""

from dataclasses import replace

import pytest
import torch
import typer

from mechkit.dictionaries import load_sae, load_transcoders, saes_for
from mechkit.dictionaries.sae_training import Plan
from mechkit.zoo import load, load_folder, save_folder
from mechkit.zoo.tinyworld.text import ids
from mechkit.zoo.training import new_model
from scripts import train_sae
from scripts import train_tinyworld_dictionaries as script

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("\n".join(f"{a}+{b}={a + b}" for a in range(40) for b in range(20)))
    return file


def test_an_sae_of_any_model_over_text_files(book, tmp_path, capsys):
    options = {"model": "addition", "hook": HOOK, "features": 40, "l0": 5.0, "rows": 20_000, "width": 5}
    train_sae.main([book], **options, out=tmp_path / "sae", runs=tmp_path / "runs")
    said = capsys.readouterr().out
    assert f"{HOOK}, scored on 200 tokens it was not trained on" in said
    sae = load_sae(tmp_path / "sae", load("addition", device="cpu"))
    assert (sae.cfg.d_sae, sae.cfg.metadata.model_name, sae.cfg.metadata.prepend_bos) == (40, "addition", False)
    before = (tmp_path / "sae/sae_weights.safetensors").stat().st_mtime_ns
    train_sae.main([book], **options, out=tmp_path / "sae", runs=tmp_path / "runs")
    assert (tmp_path / "sae/sae_weights.safetensors").stat().st_mtime_ns == before  # what is there is not trained again


def test_files_are_packed_into_full_rows(addition, book):
    rows = train_sae.packed(addition, [book, book], 4)
    text = addition.to_tokens(book.read_text(), truncate=False)[0]
    assert torch.equal(rows.flatten(), torch.cat([text, text])[: rows.numel()])
    assert 2 * len(text) - rows.numel() < 4
    with pytest.raises(typer.BadParameter, match="do not fill one row of 90000"):
        train_sae.packed(addition, [book], 90_000)


def test_a_bos_stands_before_each_file_and_row(gpt2_like, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The cat sat on the mat and the dog on the hog")
    monkeypatch.setattr(gpt2_like, "cfg", replace(gpt2_like.cfg, default_prepend_bos=True))
    rows = train_sae.packed(gpt2_like, [tmp_path / "a.txt"] * 3, 6)
    assert set(rows[:, 0].tolist()) == {50256}
    assert (rows[:, 1:] == 50256).sum() == 3


def test_a_model_without_a_text_of_its_own_needs_files(addition):
    with pytest.raises(typer.BadParameter, match="give text files"):
        train_sae.text_of(addition, [], 5, 0)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """A random model of tinyworld's words in a folder, with a card."""
    folder = tmp_path_factory.mktemp("world")
    settings = {"n_layers": 3, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "n_ctx": 96, "act_fn": "relu"}
    model = new_model(0, device="cpu", d_vocab=len(ids()), model_name="tinyworld", **settings)
    save_folder(model, folder, processing="none")
    (folder / "card.md").write_text("before\n<!-- dictionaries -->\nold\n<!-- end of dictionaries -->\nafter\n")
    return folder


def test_every_dictionary_of_tinyworld_is_trained_once_and_scored(small_world, tmp_path, monkeypatch, capsys):
    plan = Plan(d_features=20, l0=4, n_rows=3000, batch=100)
    small = {"SAE_PLAN": plan, "TRANSCODER_PLAN": plan, "N_TRAIN": 60, "N_TEST": 4, "N_PROMPTS": 5, "HOME": small_world}
    for name, value in small.items():
        monkeypatch.setattr(script, name, value)
    script.train_missing(small_world, tmp_path, "cpu", ["saes"])
    model = load_folder(small_world, device="cpu")
    assert list(saes_for(model)) == list(script.SAE_HOOKS)
    assert not (small_world / "transcoders").exists()
    script.train_missing(small_world, tmp_path, "cpu")
    assert [t.hook_out for t in load_transcoders(small_world / "transcoders", model)] == [
        f"blocks.{layer}.hook_mlp_out" for layer in range(3)
    ]
    assert capsys.readouterr().out.count("trained in") == 5
    script.train_missing(small_world, tmp_path, "cpu")
    assert "trained in" not in capsys.readouterr().out
    scores = script.check(small_world)
    assert scores.count("variance explained") == 5
    assert "right, all MLPs replaced" in scores
