"""The transcoder loop: it learns known features, gives the same bits from the same seed, and SAELens reads it."""

import pytest
import torch
from sae_lens import SAE

from mechkit.dictionaries import Transcoder, sample_rows, train_transcoder
from mechkit.dictionaries.scores import unexplained

N_TRUE, L0 = 24, 3


def planted(n_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse true features, what they look like in the input, and what they write."""
    generator = torch.Generator().manual_seed(7)
    read, write = torch.randn(2, N_TRUE, 32, generator=generator)
    generator.manual_seed(seed)
    on = torch.rand(n_rows, N_TRUE, generator=generator).argsort(1) < L0
    features = on * (0.5 + torch.rand(n_rows, N_TRUE, generator=generator))
    return features @ read, features @ write, write


def trained(seed: int = 0, n_steps: int = 600):
    x, y, _ = planted(4000, seed=1)
    rows = sample_rows(x, y, n_rows=256, seed=seed)
    return train_transcoder(rows, d_features=48, l0=L0, n_steps=n_steps, seed=seed, metadata={"hook_name": "a"})


@pytest.fixture(scope="module")
def transcoder():
    sae = trained()
    tensors = {name: parameter.detach() for name, parameter in sae.named_parameters()}
    return Transcoder(layer=0, hook_in="a", hook_out="b", **tensors)


def test_planted_features_are_found(transcoder):
    x, y, write = planted(1000, seed=2)
    features = transcoder.activations(x)
    assert (
        unexplained(transcoder.decode(features), y) < 0.2
    )  # BatchTopK spends its budget unevenly, and 24 features share 32 dimensions
    assert (features > 0).sum(1).float().mean() == pytest.approx(L0, abs=1)
    similarity = torch.nn.functional.normalize(write) @ torch.nn.functional.normalize(transcoder.W_dec).T
    assert (similarity.max(1).values > 0.9).float().mean() > 0.75


def test_an_untrained_transcoder_explains_nothing():
    sae = trained(n_steps=1)
    x, y, _ = planted(1000, seed=2)
    with torch.no_grad():
        assert unexplained(sae(x), y) > 0.8


def test_the_same_seed_gives_the_same_bits_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = trained(n_steps=30), trained(n_steps=30), trained(seed=1, n_steps=30)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.W_enc, two.W_enc)
    assert torch.equal(one.threshold, two.threshold)
    assert not torch.equal(one.W_enc, other.W_enc)


def test_saelens_reads_back_what_was_trained(tmp_path):
    sae = trained(n_steps=30)
    sae.save_model(tmp_path)
    again = SAE.load_from_disk(tmp_path)
    assert type(again) is type(sae)
    assert again.cfg.metadata.hook_name == "a"
    x, _, _ = planted(10, seed=3)
    assert torch.equal(again(x), sae(x))


def test_rows_are_drawn_in_proportion_to_their_weight():
    x = torch.arange(4.0)[:, None]
    rows, _ = next(sample_rows(x, x, n_rows=20_000, seed=0, weight=torch.tensor([0.0, 1, 3, 0])))
    share = torch.bincount(rows.flatten().long(), minlength=4) / 20_000
    assert share.tolist() == pytest.approx([0, 0.25, 0.75, 0], abs=0.02)  # four standard errors are 0.013
