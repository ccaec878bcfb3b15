"""What the model card says of the addition model, measured again on the stored weights."""

from pathlib import Path

import pytest
import torch
from sae_lens import SAE, JumpReLUTranscoder

from mechkit.dictionaries import measure, transcoders_for
from mechkit.dictionaries.scores import accuracy, replacing
from mechkit.zoo import load
from mechkit.zoo.addition import peaks, spectrum, sums_answers, sums_text, sums_tokens, unseen_sums

ALL_SUMS = [(a, b) for a in range(100) for b in range(100)]


@pytest.fixture(scope="module")
def model():
    return load("addition", device="cpu")


@pytest.fixture(scope="module")
def scores(model):
    tokens, answers = sums_tokens(unseen_sums()), sums_answers(unseen_sums())
    return measure(model, transcoders_for(model), tokens, answers, everywhere=sums_tokens(ALL_SUMS))


def test_at_least_995_of_1000_unseen_sums_are_right(scores):
    assert scores.accuracy >= 0.995


def test_the_transcoders_explain_sparsely_and_with_live_features(scores):
    assert max(scores.fvu) <= 0.10
    assert max(scores.l0) <= 32
    assert max(scores.dead) <= 0.20


def test_sums_stay_right_with_every_mlp_replaced(scores):
    assert scores.accuracy_replaced >= 0.98


def test_without_the_mlps_the_sums_are_wrong(model):
    """What replacing must do something against: an MLP that writes nothing breaks the sums."""
    silent = [(name, lambda y, hook: 0 * y) for name, _ in replacing(transcoders_for(model)) if name.endswith("out")]
    assert accuracy(model, sums_tokens(unseen_sums()), sums_answers(unseen_sums()), silent) < 0.5


def test_the_embedding_is_base_ten(model):
    shares = spectrum(model.W_E[:100])
    assert set(list(shares)[:8]) >= {100.0, 50.0, 10.0, 5.0, 2.5, 2.0}
    assert set(peaks(shares)[:6]) >= {100.0, 10.0, 5.0, 2.5, 2.0}


def test_random_embeddings_have_no_such_spectrum():
    embeddings = torch.randn(100, 128, generator=torch.Generator().manual_seed(0))
    assert not set(list(spectrum(embeddings))[:8]) >= {100.0, 10.0, 5.0}


def test_text_gives_the_tokens_the_scores_are_measured_on(model):
    assert torch.equal(model.to_tokens(sums_text(unseen_sums())), sums_tokens(unseen_sums()))


def test_logits_are_centred_over_the_vocabulary(model):
    logits = model(sums_tokens([(35, 59)]))
    assert logits.mean(-1).abs().max() < 1e-4 * logits.abs().max()


def test_saelens_loads_the_stored_transcoders_and_agrees(model):
    _, cache = model.run_with_cache("35+59=")
    for ours in transcoders_for(model):
        sae = SAE.load_from_disk(model.mechkit_origin.folder / "transcoders" / f"layer_{ours.layer}")
        assert isinstance(sae, JumpReLUTranscoder)
        x = cache[ours.hook_in]
        torch.testing.assert_close(ours.decode(ours.activations(x), x), sae(x), rtol=0, atol=1e-5)


def test_the_bundle_is_under_8_megabytes_and_the_card_names_its_hash(model):
    folder: Path = model.mechkit_origin.folder
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) < 8_000_000
    assert model.mechkit_origin.sha256 in (folder / "card.md").read_text()
    assert not [file.name for file in files if file.suffix in (".pt", ".pkl", ".bin")]
