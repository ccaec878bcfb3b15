"""The loss of a language model without hooks: the hooked model's own numbers, and gradients."""

import pytest
import torch

from mechkit.zoo.language import plain_logits, text_loss
from mechkit.zoo.training import new_model, train

SHAPE = {
    "n_layers": 2,
    "d_model": 24,
    "n_heads": 3,
    "d_head": 8,
    "d_mlp": 40,
    "n_ctx": 12,
    "d_vocab": 17,
    "device": "cpu",
}
TOKENS = torch.randint(17, (5, 12), generator=torch.Generator().manual_seed(0))


def made(**settings):
    model = new_model(0, **{**SHAPE, "act_fn": "relu", "normalization_type": "LN", **settings})
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


@pytest.mark.parametrize("act_fn", ["relu", "gelu"])
def test_the_logits_are_the_hooked_model_s(act_fn):
    model = made(act_fn=act_fn)
    # Twelve positions of float32 sums in another order.
    torch.testing.assert_close(plain_logits(model, TOKENS, tied=False), model(TOKENS), atol=2e-5, rtol=1e-5)
    model.unembed.W_U.data, model.unembed.b_U.data = model.embed.W_E.data.T.clone(), torch.zeros(17)
    torch.testing.assert_close(plain_logits(model, TOKENS, tied=True), model(TOKENS), atol=2e-5, rtol=1e-5)


def test_the_loss_and_its_gradients_are_the_hooked_model_s():
    one, other = made(), made()
    lost = text_loss(one, TOKENS, tied=False)
    wanted = other(TOKENS, return_type="loss")
    torch.testing.assert_close(lost, wanted, atol=1e-5, rtol=1e-5)
    lost.backward()
    wanted.backward()
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_model_of_another_build_is_refused():
    with pytest.raises(ValueError, match="normalization_type is 'RMS'; its text loss is known for LN"):
        plain_logits(made(normalization_type="RMS"), TOKENS, tied=False)
    with pytest.raises(ValueError, match="act_fn is 'silu'; its text loss is known for relu, gelu"):
        text_loss(made(act_fn="silu"), TOKENS, tied=True)


def rows(generator):
    """Counting up from a random number, round and round."""
    return ((torch.randint(17, (8, 1), generator=generator) + torch.arange(12)) % 17,)


def test_a_language_is_learned_and_parts_give_the_same_as_the_whole():
    whole, parted = made(), made()
    settings = {
        "n_steps": 40,
        "seed": 0,
        "loss": text_loss,
        "learning_rate": 1e-2,
        "n_warmup": 5,
        "weight_decay": 0.1,
        "max_norm": 1.0,
    }
    losses = train(whole, rows, **settings)
    assert losses[-1] < 0.5 < losses[0]
    assert train(parted, rows, n_parts=2, **settings)[:10] == pytest.approx(losses[:10], abs=1e-3)


def test_gradients_are_cut_to_their_greatest_length():
    short, long = made(), made()
    for model, max_norm in ((short, 1e-8), (long, 1.0)):
        train(model, rows, n_steps=1, seed=0, loss=text_loss, weight_decay=0.0, max_norm=max_norm, n_warmup=1)
    start = made()
    # AdamW divides by the gradient's size plus 1e-8, so that a gradient far below that hardly moves anything.
    moved = [float((model.W_in - start.W_in).detach().abs().max()) for model in (short, long)]
    assert moved[0] < 0.3 * moved[1]


def test_training_stops_and_goes_on_with_other_batches(tmp_path):
    told = []
    settings = {"n_steps": 12, "seed": 0, "loss": text_loss, "checkpoint": tmp_path / "model.safetensors"}
    model = made()
    first = train(model, rows, stop=5, report=lambda step, loss: told.append((step, loss)), **settings)
    second = train(model, lambda generator: (rows(generator)[0].flip(1),), **settings)
    assert (len(first), len(second)) == (5, 7)
    assert told == list(enumerate(first))
    plain = train(made(), rows, n_steps=12, seed=0, loss=text_loss)
    assert first == plain[:5]
    assert second != plain[5:]
