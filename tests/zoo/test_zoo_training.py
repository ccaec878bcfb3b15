"""Training of small models: it learns, it repeats bit for bit, and it goes on where it stopped."""

import pytest
import torch

from mechkit.zoo.training import answer_logits, new_model, schedule, train


def copy_task(generator):
    """Answer with the first of two tokens; every other prompt is one token long."""
    tokens = torch.randint(1, 6, (64, 2), generator=generator)
    tokens[::2, 1] = 0
    last = torch.ones(64, dtype=torch.long)
    last[::2] = 0
    return tokens, tokens[:, 0], last


def fresh(seed=0):
    return new_model(seed, n_layers=1, d_model=16, n_heads=2, d_head=8, n_ctx=2, d_vocab=6, act_fn="relu", device="cpu")


def test_a_few_steps_reduce_the_loss_and_tie_the_embeddings():
    model = fresh()
    losses = train(model, copy_task, n_steps=60, seed=0, learning_rate=1e-2)
    assert losses[-1] < 0.3 < losses[0]
    assert torch.equal(model.unembed.W_U, model.embed.W_E.T)
    assert not model.unembed.b_U.any()
    tokens, _, last = copy_task(torch.Generator().manual_seed(1))
    tied, plain = (answer_logits(model, tokens, last, tied) for tied in (True, False))
    torch.testing.assert_close(tied, plain)


def test_an_untied_unembedding_is_trained_on_its_own():
    model = fresh()
    before = model.W_U.clone()
    train(model, copy_task, n_steps=3, seed=0, tied=False)
    assert not torch.equal(model.W_U, before)
    assert not torch.equal(model.W_U, model.W_E.T)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_random_state():
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, two, other = fresh(), fresh(), fresh(1)
    for model in (one, two):
        train(model, copy_task, n_steps=10, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.W_E, other.W_E)


def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path):
    class CutOff(Exception):
        pass

    whole, cut = fresh(), fresh()
    train(whole, copy_task, n_steps=20, seed=0)
    left = iter(range(13))

    def failing(generator):
        if next(left, None) is None:
            raise CutOff
        return copy_task(generator)

    checkpoint = tmp_path / "runs" / "model.safetensors"
    with pytest.raises(CutOff):
        train(cut, failing, n_steps=20, seed=0, checkpoint=checkpoint, save_every=5)
    resumed = fresh(3)
    losses = train(resumed, copy_task, n_steps=20, seed=0, checkpoint=checkpoint, save_every=5)
    assert len(losses) == 10
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    checkpoint = tmp_path / "model.safetensors"
    train(fresh(), copy_task, n_steps=5, seed=0, checkpoint=checkpoint, save_every=5)
    wider = new_model(0, n_layers=1, d_model=32, n_heads=2, d_head=8, n_ctx=2, d_vocab=6, act_fn="relu", device="cpu")
    with pytest.raises(ValueError, match="is of another run"):
        train(wider, copy_task, n_steps=5, seed=0, checkpoint=checkpoint)
    checkpoint.write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"is damaged .*; delete it to start again"):
        train(fresh(), copy_task, n_steps=5, seed=0, checkpoint=checkpoint)


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [schedule(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) > 0.97
    assert rates[100] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
