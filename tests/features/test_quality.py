"""The quality of an SAE on a text, against plain loops and against `fidelity`."""

import math

import pytest
import torch

import mechkit as mk
from mechkit.dictionaries import fidelity
from mechkit.features import FeatureIndex, scan
from mechkit.features.quality import Quality
from tests.features.tiny import HOOK, tiny_sae, token_rows


@torch.no_grad()
def by_hand(model, sae, rows, ignore=()):
    """Every number, a row at a time."""
    hook, head = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index
    part = lambda x: x if head is None else x[:, :, head]  # noqa: E731
    held, rebuilt, active, losses, n = [], [], [], torch.zeros(4).double(), 0
    for row in rows:
        kept = [i for i, token in enumerate(row) if token not in ignore]
        x = part(model.run_with_cache(torch.tensor([row]))[1][hook])
        held.append(x[0, kept].double())
        rebuilt.append(sae(x)[0, kept].double())
        active.append(sae.encode(x)[0, kept])
    held, rebuilt, active = torch.cat(held), torch.cat(rebuilt), torch.cat(active)
    mean = held.mean(0)
    for row in rows:
        kept = [i for i, token in enumerate(row) if token not in ignore]
        instead = [lambda x: x, lambda x: sae(x), torch.zeros_like, lambda x: mean.to(x).expand_as(x)]
        for i, make in enumerate(instead):

            def edit(y, hook, make=make, kept=kept):
                y = y.clone()
                part(y)[:, kept] = make(part(y))[:, kept]
                return y

            logits = model.run_with_hooks(torch.tensor([row]), fwd_hooks=[(hook, edit)])[0, :-1]
            losses[i] += torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
        n += len(row) - 1
    share = (active != 0).double().mean(0)
    explained = 1 - (held - rebuilt).square().sum() / (held - mean).square().sum()
    return {
        "explained_variance": float(explained), "l0": float(share.sum()), "dead": int((share == 0).sum()),
        "dense": int((share > 0.1).sum()), "n_tokens": len(held), "n_counted": len(held),
        **dict(zip(("loss", "loss_rebuilt", "loss_zeroed", "loss_mean"), (losses / n).tolist(), strict=True)),
    }  # fmt: skip


def wanted_rows():
    return [row for row in token_rows() if len(row) > 1]


@pytest.mark.parametrize("ignore", [(), (3, 7)])
@pytest.mark.parametrize("about", [{}, {"hook": "blocks.0.attn.hook_z", "d_in": 8, "hook_head_index": 1}])
def test_quality_is_what_plain_loops_say(model, about, ignore):
    sae = tiny_sae(**about)
    sae.b_enc.data[5] = -1e6
    found = mk.sae_quality(model, sae, token_rows(), ignore=ignore)
    wanted = by_hand(model, sae, wanted_rows(), ignore)
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(value, rel=2e-5), name
    assert found.dead >= 1
    assert 0 < found.dense < 24
    assert len({found.loss, found.loss_rebuilt, found.loss_zeroed, found.loss_mean}) == 4


@pytest.fixture(scope="module")
def own_rows(model):
    """Rows that the model itself goes on with: on these, taking the stream away costs loss."""
    rows = torch.arange(30)[:, None]
    with torch.no_grad():
        for _ in range(8):
            rows = torch.cat([rows, model(rows)[:, -1:].argmax(-1)], 1)
    return rows


def test_it_agrees_with_fidelity_on_rows_of_one_length(model, own_rows):
    rows = own_rows
    found, other = mk.sae_quality(model, tiny_sae(), rows), fidelity(model, [tiny_sae()], rows)[0]
    for name in ("explained_variance", "l0", "loss", "loss_rebuilt", "loss_zeroed", "n_tokens", "recovered"):
        assert getattr(found, name) == pytest.approx(getattr(other, name), rel=1e-4), name
    assert found.dead / found.n_features == pytest.approx(other.dead)


def test_a_perfect_sae_recovers_everything_and_an_empty_one_nothing(model, own_rows):
    sae = tiny_sae(32)
    with torch.no_grad():
        sae.W_enc.data = torch.cat([torch.eye(16), -torch.eye(16)], 1)
        sae.W_dec.data = sae.W_enc.data.T.clone()
        sae.b_enc.data[:], sae.b_dec.data[:] = 0, 0
    found = mk.sae_quality(model, sae, own_rows)
    assert (found.explained_variance, found.recovered, found.recovered_mean) == pytest.approx((1, 1, 1), abs=1e-5)
    sae.W_dec.data[:] = 0
    empty = mk.sae_quality(model, sae, own_rows)
    assert empty.recovered == pytest.approx(0, abs=1e-6)
    assert empty.loss_rebuilt == empty.loss_zeroed > found.loss
    assert empty.explained_variance < 1e-6


def test_what_costs_nothing_has_no_share_recovered():
    found = Quality(
        "h", 1, 0.5, 1.0, 0, 0, loss=2.0, loss_rebuilt=2.1, loss_zeroed=1.9, loss_mean=2.5, n_tokens=9, n_counted=9
    )
    assert math.isnan(found.recovered)
    assert found.recovered_mean == pytest.approx(0.8)


def test_an_index_measures_on_its_own_corpus(model, tmp_path):
    index = scan(model, tiny_sae(), token_rows(), tmp_path / "index", ignore=[3])
    index = FeatureIndex.open(index.folder, model=model)
    whole = index.quality()
    assert whole.loss_rebuilt == pytest.approx(by_hand(model, tiny_sae(), wanted_rows(), [3])["loss_rebuilt"], rel=1e-5)
    assert (whole.l0, whole.dead) == (index.density.sum(), (index.density == 0).sum())
    part = index.quality(60, seed=1)
    assert part.n_tokens < 75 < part.n_counted == index.n_tokens
    assert index.quality(60, seed=1) == part != index.quality(60, seed=2)
    assert ("dead", f"{whole.dead} of 24") in whole.facts()


def test_text_that_measures_nothing_is_said(model):
    with pytest.raises(ValueError, match="no row has two tokens"):
        mk.sae_quality(model, tiny_sae(), [[3], [4]])
    with pytest.raises(ValueError, match="every token is one to ignore"):
        mk.sae_quality(model, tiny_sae(), [[3, 3]], ignore=[3])
    with pytest.raises(ValueError, match=f"{HOOK} of this model has 16"):
        mk.sae_quality(model, tiny_sae(d_in=8), [[3, 3]])
