"""Pages of an index hold what its answers say."""

import re

import pytest

import mechkit as mk
from mechkit.features import FeatureIndex, scan
from mechkit.features.pages import feature_payload, prompt_payload
from mechkit.features.words import parted
from tests.features.tiny import tiny_sae, token_rows


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "index"
    made = scan(model, tiny_sae(steps=4), token_rows(), folder, top=4, sample=12, window=(3, 2))
    return FeatureIndex.open(made.folder, model=model)


def test_a_features_page_holds_its_answers(index, tmp_path):
    index.label(3, "</script><b>mine")
    effect = index.effect([7, 3], [[3, 1, 4], [1, 5, 9]])
    data = feature_payload(index, 3, 2, effect)
    feature, examples = index.feature(3), index.examples(3, 2).rows
    assert [one["text"] for one in data["labels"]] == ["</script><b>mine"]
    shown = [(one["activation"], one["peak"]) for band in data["bands"] for one in band["examples"]]
    assert shown == list(zip(examples["activation"], examples["peak"], strict=True))
    assert sum(data["histogram"]["n"]) == feature.n_firings
    assert [logit for _, logit in data["promoted"]] == feature.promoted["logit"].tolist()
    assert [(id, value) for id, value, _ in data["similar"]] == list(
        index.similar(3).rows.itertuples(index=False, name=None)
    )
    assert [change for _, _, change in data["effect"]["rows"]] == effect.scores[1].tolist()
    path = index.page(3, tmp_path / "page.html", effect=effect)
    assert path == tmp_path / "page.html"
    page = path.read_text()
    assert "&lt;/script&gt;&lt;b&gt;mine" in page
    assert page.count("</script") == 0
    with pytest.raises(ValueError, match="the effect given is not of feature 5"):
        index.page(5, tmp_path / "x.html", effect=effect)
    with pytest.raises(ValueError, match="no feature 24"):
        index.page(24, tmp_path / "x.html")


def test_neighbours_go_by_their_first_label(index):
    near = index.similar(3).rows["feature"].tolist()
    index.label(near[0], "by a program", "program", automatic=True)
    index.label(near[0], "by me")
    assert [name for _, _, name in feature_payload(index, 3)["similar"]] == ["by me", *[""] * 9]
    for source in ("program", "user"):
        index.labels.remove(near[0], source)


def test_a_feature_that_never_fires_has_a_page(model, tmp_path):
    sae = tiny_sae()
    sae.b_enc.data[5] = -1e6
    index = scan(model, sae, token_rows(5), tmp_path / "index", top=4, sample=12)
    assert "It fires nowhere" in index.page(5, tmp_path / "page.html").read_text()
    bare = scan(model, sae, token_rows(5), tmp_path / "bare", top=0, sample=0)
    assert "It fires nowhere" in bare.page(3, tmp_path / "bare.html").read_text()
    assert (
        "coloured by"
        in FeatureIndex.open(bare.folder, model=model).prompt_page([1, 2], tmp_path / "p.html").read_text()
    )


@pytest.mark.parametrize("metric", [None, mk.logprob])
def test_a_prompts_page_holds_what_lookup_says(index, metric, tmp_path):
    data, found = prompt_payload(index, [3, 1, 4, 1, 5], 2, metric), index.lookup([3, 1, 4, 1, 5], effect=metric)
    assert data["errors"] == found.tokens["error"].tolist()
    for pos, top in enumerate(data["tops"]):
        own = found.at(pos).top(2).rows
        assert [(id, activation) for id, activation, _, _ in top] == list(
            zip(own["feature"], own["activation"], strict=True)
        )
    for one in data["features"]:
        own = found.rows[found.rows["feature"] == one["id"]].set_index("pos")["activation"]
        assert {pos: value for pos, value in enumerate(one["activations"]) if value} == own.to_dict()
        assert one["max"] >= max(one["activations"])
    sizes = [max(map(abs, one["activations"])) if metric is None else abs(one["effect"]) for one in data["features"]]
    assert sizes == sorted(sizes, reverse=True)
    assert data["effect"] == (None if metric is None else ("logprob", "nats"))
    page = index.prompt_page([3, 1, 4, 1, 5], tmp_path / "p.html", n=2, effect=metric).read_text()
    assert set(re.findall(r'data-feature="(\d+)"', page)) == {str(one["id"]) for one in data["features"]}


def test_words_are_parted_where_no_token_holds_a_space():
    assert "".join(parted(["<bos>", "a", "b", ".", "c", "->", "d", "'s"], True)) == "<bos>a b. c->d's"
    assert parted(["a", " b"], False) == ["a", " b"]
