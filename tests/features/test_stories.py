"""Lookup and effects on a trained language model: features that are known, one for each of some tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mechkit as mk
from mechkit.features import FeatureIndex, scan
from mechkit.features.questions import tokens_of
from tests.features.tiny import tiny_sae

ROOT = Path(__file__).parents[2]
STORIES = next((f for f in (ROOT / "shared", ROOT.parent / "shared") if f.is_dir()), ROOT) / "data/stories260k"

pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="no shared/data/stories260k in or beside the checkout")

TEXTS = ["Once upon a time there was a dog. The dog ran to Tom.", "Lily was sad. She saw a big cat and a dog."]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """The model, an SAE on its embeddings whose feature i fires on token i, and an index of some text."""
    model = mk.load(STORIES, device="cpu")
    n, d = model.W_E.shape
    sae = tiny_sae(n, hook="blocks.0.hook_resid_pre", d_in=d)
    with torch.no_grad():
        unit = model.W_E / model.W_E.norm(dim=1, keepdim=True)
        products = model.W_E @ unit.T
        own, others = products.diagonal(), products.masked_fill(torch.eye(n).bool(), -torch.inf).amax(0)
        sae.W_enc.data, sae.W_dec.data, sae.b_dec.data[:] = unit.T.clone(), unit.clone(), 0
        sae.b_enc.data = torch.where(own > others, -(own + others.clamp(min=0)) / 2, -1e6)
    folder = tmp_path_factory.mktemp("stories") / "index"
    return FeatureIndex.open(scan(model, {"tokens": sae}, TEXTS * 4, folder).folder, model=model), model, sae


def test_lookup_names_the_feature_of_every_token(stories):
    index, model, _ = stories
    ids = model.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    found = index.lookup(TEXTS[0])
    first = len(found.tokens) - len(ids)
    fires = [found.at(first + i).rows["feature"].tolist() for i in range(len(ids))]
    assert all(one in ([token], []) for one, token in zip(fires, ids, strict=True))
    assert sum(map(len, fires)) > len(ids) / 2
    assert "".join(found.tokens["token"]).endswith("Tom.")


def test_effects_on_a_trained_model_are_what_a_hook_says(stories):
    index, model, sae = stories
    rows = index.lookup(TEXTS[0], effect=mk.logprob).rows
    assert rows["effect"].abs().max() > 0.01
    ids = torch.tensor([tokens_of(index, model, TEXTS[0])])
    with torch.no_grad():
        answer = int(model(ids)[0, -1].argmax())
        before = model(ids)[0, -1].log_softmax(-1)[answer]
        for row in rows.iloc[[0, len(rows) // 2]].to_dict("records"):

            def take_out(x, hook, row=row):
                x = x.clone()
                x[0, row["pos"]] -= row["activation"] * sae.W_dec[row["feature"]]
                return x

            logits = model.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_pre", take_out)])
            change = float(logits[0, -1].log_softmax(-1)[answer] - before)
            assert row["effect"] == pytest.approx(change, abs=2e-5)


def test_only_features_of_tokens_that_are_there_do_anything(stories):
    index, model, _ = stories
    dog = model.tokenizer(" dog", add_special_tokens=False)["input_ids"]
    found = index.effect(sorted({*dog, *range(300, 320)}), TEXTS, mk.loss)
    assert found.scores.shape[1] == 2
    assert np.isfinite(found.scores.numpy()).all()
    unused = [site.index for site, row in zip(found.sites, found.scores, strict=True) if not row.any()]
    words = {token for text in TEXTS for token in tokens_of(index, model, text)}
    assert all(id not in words or index.n_firings[id] == 0 for id in unused)
    assert len(unused) < len(found)


def test_pages_of_a_trained_model_are_written(stories, tmp_path):
    index, _, _ = stories
    id = int(index.lookup(TEXTS[0]).rows["feature"][0])
    assert "Strongest" in index.page(id, tmp_path / "f.html", effect=index.effect(id, TEXTS)).read_text()
    assert "<!doctype html>" in index.prompt_page(TEXTS[0], tmp_path / "p.html").read_text()
