"""Answers of an index, each against its definition."""

import gzip
import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from mechkit.features import FeatureIndex, scan
from mechkit.features.questions import adjusted, mann_whitney
from tests.features.tiny import HOOK, loop, tiny_sae, token_rows

KEPT = {"top": 4, "sample": 12, "window": (3, 2), "cofiring": 10_000}


@pytest.fixture(scope="module")
def sae():
    return tiny_sae(steps=4)


@pytest.fixture(scope="module")
def whole(model, sae, tmp_path_factory):
    return scan(model, sae, token_rows(), tmp_path_factory.mktemp("whole") / "index", **KEPT, batch=64)


@pytest.fixture
def index(whole, model):
    return FeatureIndex.open(whole.folder, model=model)


@pytest.fixture(scope="module")
def found(model, sae):
    return loop(model, sae, token_rows(), **KEPT)


def unembedding(model):
    """Logits of a residual stream at norm scale 1, from their mean, by the model's own modules."""
    with torch.no_grad():
        read = (model.ln_final.w[:, None] * model.W_U).double()
        centre = torch.eye(16).double() - 1 / 16
        return centre @ (read - read.mean(1, keepdim=True))


def test_a_feature_in_numbers(index, model, sae, found):
    for id in (3, 7):
        own = [value for feature, _, _, value in found["firings"] if feature == id]
        feature = index.feature(id)
        assert (feature.n_firings, feature.max) == (len(own), max(own))
        assert feature.density == len(own) / index.n_tokens == index.density[id]
        assert feature.mean == pytest.approx(sum(own) / len(own), rel=1e-12) == index.mean[id]
        assert feature.histogram["n"].sum() == len(own)
        assert feature.histogram["n"].iloc[[0, -1]].min() > 0
        logits = (sae.W_dec[id].double() @ unembedding(model)).detach()
        assert feature.promoted["token"].tolist() == logits.argsort(descending=True)[:10].tolist()
        assert feature.suppressed["token"].tolist() == logits.argsort()[:10].tolist()
        np.testing.assert_allclose(feature.promoted["logit"], logits.sort(descending=True).values[:10], rtol=1e-5)


def test_a_feature_that_never_fires_has_no_numbers(model, tmp_path):
    sae = tiny_sae()
    sae.b_enc.data[5] = -1e6
    index = scan(model, sae, token_rows(5), tmp_path / "index", **KEPT)
    feature = index.feature(5)
    assert (feature.n_firings, feature.density, len(feature.histogram)) == (0, 0, 0)
    assert np.isnan([feature.mean, feature.max, index.mean[5], index.max[5]]).all()
    assert len(index.examples(5)) == len(index.cofiring(5)) == 0
    assert 5 not in [other for id in range(24) for other in index.cofiring(id).rows["feature"]]


def test_examples_come_from_every_quarter_with_their_rows(index, found):
    frame = index.examples(3, n=2).frame()
    assert frame["band"].tolist() == ["top", "top", "q4", "q4", "q3", "q3", "q2", "q2", "q1", "q1"]
    strengths = [frame["activation"][frame["band"] == band] for band in ("q4", "q3", "q2", "q1")]
    assert all(a.min() >= b.max() for a, b in pairwise(strengths))
    flat, starts = [token for row in token_rows() for token in row], np.cumsum([0, *map(len, token_rows())])
    for one in frame.itertuples():
        row = int(np.searchsorted(starts, one.position, side="right")) - 1
        assert one.source == f"texts:{row}"
        first, last = max(starts[row], one.position - 3), min(starts[row + 1], one.position + 3)
        assert one.tokens == [f"#{token}" for token in flat[first:last]]
        assert first + one.peak == one.position
        wanted = [value for value in found["windows"][3, one.position] if not np.isnan(value)]
        assert one.activations == wanted
        assert one.activations[one.peak] == one.activation


def test_promoting_ranks_features_by_what_they_add_to_a_logit(index, model, sae):
    logits = (sae.W_dec.double() @ unembedding(model))[:, 4].detach()
    ranked = index.promoting(4, n=24).rows
    assert ranked["feature"].tolist() == logits.argsort(descending=True).tolist()
    np.testing.assert_allclose(ranked["logit"], logits.sort(descending=True).values, rtol=1e-4, atol=1e-5)


def test_similar_ranks_features_by_the_cosine_of_their_directions(index, sae):
    cosines = torch.nn.functional.cosine_similarity(sae.W_dec[3], sae.W_dec, dim=1).detach()
    cosines[3] = -2
    assert index.similar(3, 5).rows["feature"].tolist() == cosines.argsort(descending=True)[:5].tolist()
    assert index.similar(2.5 * sae.W_dec[3].detach(), 1).rows["feature"].tolist() == [3]


def test_cofiring_says_how_much_is_shared(index, found):
    for id in (3, 7):
        rows = index.cofiring(id, 4).rows
        assert list(zip(rows["feature"], rows["shared"], strict=True)) == found["cofiring"][id][:4]
        fired = np.array(found["fired"])[rows["feature"]]
        np.testing.assert_allclose(rows["overlap"], rows["shared"] / (found["fired"][id] + fired - rows["shared"]))
        np.testing.assert_allclose(rows["of_this"], rows["shared"] / found["fired"][id])


def test_lookup_gives_every_active_feature_of_every_token(index, model, sae):
    prompt = [3, 1, 4, 1, 5]
    looked = index.lookup(prompt)
    with torch.no_grad():
        x = model.run_with_cache(torch.tensor([prompt]))[1][HOOK][0]
        active = tiny_sae().encode(x)  # the copy in the index is the SAE itself, without the rounding around it
        rebuilt = active @ sae.W_dec + sae.b_dec
    assert len(looked) == (active > 0).sum()
    for one in looked.rows.itertuples():
        assert one.activation == pytest.approx(float(active[one.pos, one.feature]), rel=1e-5)
    assert (looked.rows["activation"].diff().dropna() <= 0).all()
    np.testing.assert_allclose(looked.rows.groupby("pos")["share"].sum(), 1, rtol=1e-5)
    own, total = active[2, :, None] * sae.W_dec.detach(), active[2] @ sae.W_dec.detach()
    for one in looked.at(2).rows.itertuples():
        assert one.share == pytest.approx(float(own[one.feature] @ total / (total @ total)), rel=1e-4)
    np.testing.assert_allclose(looked.tokens["error"], (rebuilt - x).norm(dim=1) / x.norm(dim=1), rtol=1e-5)
    assert looked.tokens["n_features"].tolist() == (active > 0).sum(1).tolist()
    assert index.lookup(prompt, n=2).rows.groupby("pos").size().tolist() == [2] * 5
    assert looked.at(-1).rows["pos"].tolist() == [4] * looked.tokens["n_features"][4]


def test_lookup_refuses_another_model(whole, build):
    other = FeatureIndex.open(whole.folder, model=build(d_mlp=25))
    with pytest.raises(ValueError, match=r"model.sha256 was"):
        other.lookup([1, 2])


def test_contrast_finds_the_feature_that_tells_two_sets_apart(index, model):
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 30, 8).tolist() for _ in range(40)]
    with torch.no_grad():
        x = model.run_with_cache(torch.tensor(texts))[1][HOOK]
        means = tiny_sae().encode(x).mean(1)
    order = means[:, 6].argsort(descending=True).tolist()
    a, b = [texts[i] for i in order[:20]], [texts[i] for i in order[20:]]
    ranked = index.contrast(a, b).rows
    assert ranked["feature"][0] == 6
    assert ranked["effect"][0] == 1
    assert ranked["q"][0] < 1e-5
    halves = index.contrast(texts[::2], texts[1::2]).rows
    assert halves["q"].min() > 0.05
    one = ranked.set_index("feature").loc[9]
    values = means[:, 9].double().tolist()
    wins = [np.sign(values[i] - values[j]) for i in order[:20] for j in order[20:]]
    assert one["effect"] == pytest.approx(np.mean(wins), abs=0.01)
    assert one["mean_a"] == pytest.approx(np.mean([values[i] for i in order[:20]]), rel=1e-4)


def test_mann_whitney_and_q_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).integers(0, 5, (30, 20)).astype(float)
    values[:12, :5] += 2
    values[:, 19] = 1
    effect, p = mann_whitney(values, 12)
    for i in range(19):
        wanted = stats.mannwhitneyu(values[:12, i], values[12:, i], method="asymptotic", use_continuity=False)
        assert p[i] == pytest.approx(wanted.pvalue, rel=1e-9)
        assert effect[i] == pytest.approx(2 * wanted.statistic / (12 * 18) - 1)
    assert (effect[19], p[19]) == (0, 1)
    np.testing.assert_allclose(adjusted(p), stats.false_discovery_control(p))


def test_labels_are_found_by_their_words_and_marked(index):
    index.label(3, "names of girls")
    index.label(3, "girls' names, after 'named'")
    index.label(7, "a girl is afraid", source="model", automatic=True)
    assert index.feature(3).labels["text"].tolist() == ["girls' names, after 'named'"]
    found = index.search("girl").rows
    assert sorted(zip(found["feature"], found["automatic"], strict=True)) == [(3, False), (7, True)]
    assert index.search('named "girls"').rows["feature"].tolist() == [3]
    assert index.search("afra").rows["feature"].tolist() == [7]
    assert len(index.search("boys")) == 0
    index.labels.remove(3)
    assert index.search("girl").rows["feature"].tolist() == [7]
    assert len(FeatureIndex.open(index.folder).labels.all()) == 1
    with pytest.raises(ValueError, match="no feature 24"):
        index.label(24, "x")
    with pytest.raises(ValueError, match="is empty"):
        index.label(2, "  ")
    with pytest.raises(ValueError, match="no word"):
        index.search('" -')
    index.labels.remove(7, "model")


def test_neuronpedia_exports_are_taken_in(index, tmp_path):
    rows = [{"index": "2", "description": "commas"}, {"index": "2", "description": "dots"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    nested = {"index": 5, "explanations": [{"description": "ends of words"}]}
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((json.dumps(nested) + "\n" + json.dumps({"x": 1})).encode()))
    assert index.labels.import_neuronpedia(tmp_path) == 2
    found = index.labels.all()
    assert found.to_dict("list") == {
        "feature": [2, 5], "text": ["commas", "ends of words"], "source": ["neuronpedia"] * 2, "automatic": [True] * 2
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps([{"index": 99, "description": "too far"}]))
    with pytest.raises(ValueError, match="no feature 99"):
        index.labels.import_neuronpedia(tmp_path / "c.json")
    (tmp_path / "d.json").write_text("{} x")
    with pytest.raises(ValueError, match="neither JSON nor JSON lines"):
        index.labels.import_neuronpedia(tmp_path / "d.json")


def test_tables_hold_what_the_answers_say(index, tmp_path):
    import pandas as pd

    from mechkit.features.tables import write_tables

    tables = {path.stem: pd.read_parquet(path) for path in write_tables(index, tmp_path)}
    assert set(tables) == {"features", "examples", "tokens", "cofiring", "labels"}
    assert tables["features"]["density"].tolist() == index.density.tolist()
    own = tables["examples"].query("feature == 3 and kind == 'top'")
    assert own["activation"].tolist() == index.examples(3).rows.query("band == 'top'")["activation"].tolist()
    own = tables["cofiring"].query("feature == 3")
    np.testing.assert_array_equal(own["overlap"], index.cofiring(3).rows["overlap"])
    own = tables["tokens"].query("feature == 3 and kind == 'promoted'")
    assert own["token"].tolist() == index.feature(3).promoted["token"].tolist()


def test_sql_without_duckdb_says_what_to_install(index, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"pip install 'mechkit\[sql\]'"):
        index.sql("select 1")


def test_sql_asks_the_tables(index):
    pytest.importorskip("duckdb", reason="DuckDB is an extra")
    index.label(4, "fours")
    query = (
        "select f.feature, n_firings, text from features f join labels l on f.feature = l.feature where l.feature = 4"
    )
    assert index.sql(query).values.tolist() == [[4, index.feature(4).n_firings, "fours"]]
    assert index.sql("select count(*) as n from examples where kind = 'top'")["n"][0] > 50
    index.labels.remove(4)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda i: i.feature(24), "no feature 24; 'blocks.1.hook_resid_pre' has 0 to 23"),
        (lambda i: i.examples(-1), "no feature -1"),
        (lambda i: i.similar(np.ones(3)), r"shape \(3,\)"),
        (lambda i: i.similar(np.zeros(16)), "length 0"),
        (lambda i: i.promoting(30), "no token 30"),
        (lambda i: i.promoting(" Paris"), "' Paris' is not one token of this model"),
        (lambda i: i.firings(3), 'keep="all"'),
        (lambda i: i.at(0), 'keep="all"'),
        (lambda i: i.at(10**6), "no token 1000000"),
        (lambda i: i.lookup([]), "0 tokens; this model reads 1 to 12"),
        (lambda i: i.lookup("a text"), "no tokenizer"),
        (lambda i: i.lookup([1]).at(1), "the prompt has 1 tokens"),
        (lambda i: i.contrast(["a"], ["b", "c"]), "at least two texts each"),
        (lambda i: i.contrast([[1], [2]], [[1], [2]], by="sum"), "by is mean or max"),
        (lambda i: FeatureIndex.open(i.folder, sae="x"), "has no SAE 'x'"),
    ],
)
def test_questions_without_an_answer_are_said(index, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(index)


def test_the_copy_of_the_sae_is_the_sae(model, tmp_path):
    from sae_lens import SAE

    sae = tiny_sae()
    sae.W_enc.data = sae.W_dec.data.T  # a view, which SAELens does not save
    index = scan(model, sae, token_rows(5), tmp_path / "index", **KEPT)
    copy = SAE.load_from_disk(index.folder / "saes" / index.sae / "sae")
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for name, weights in sae.state_dict().items():
        assert torch.equal(copy.state_dict()[name], weights)
    assert torch.allclose(copy(x), sae(x), atol=1e-5)  # products with a view sum in another order


@pytest.mark.parametrize("name", ["manifest.json", "saes/blocks.1.hook_resid_pre/histogram.npy", "corpus/tokens.npy"])
def test_a_damaged_index_is_said(model, sae, tmp_path, name):
    index = scan(model, sae, token_rows(5), tmp_path / "index", **KEPT)
    index.verify()
    path = index.folder / name
    raw = path.read_bytes()
    path.write_bytes(raw[:-4])
    with pytest.raises(ValueError, match="damaged"):
        FeatureIndex.open(index.folder)
    if name != "manifest.json":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(ValueError, match="damaged"):
            FeatureIndex.open(index.folder).verify()
    with pytest.raises(FileNotFoundError, match="make one with scan"):
        FeatureIndex.open(tmp_path)


def test_a_feature_and_its_examples_print_as_lines_that_can_be_read(index):
    fired = int(index.n_firings.argmax())
    lines = str(index.feature(fired)).splitlines()
    assert lines[0].startswith(f"feature {fired}: fires on {index.density[fired]:.3%} of the tokens")
    assert lines[1].startswith("promotes '")
    shown = repr(index.examples(fired))
    assert shown.split("\n", 1)[0].split() == ["band", "activation", "text", "peak", "position", "source"]
