"""Labels by a program and their test, on features whose meaning is known: each fires on one token and no other."""

import re

import pytest
import torch

from mechkit.features import FeatureIndex, scan
from mechkit.features.evidence import background, evidence, is_held_out
from mechkit.features.labelling import listed, peak_words, word_list_judge
from mechkit.features.words import word_at
from tests.features.tiny import tiny_sae, token_rows


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
    """An index of an SAE on the embedding whose feature i fires on token i alone (or, for few, never)."""
    sae = tiny_sae(30, hook="hook_embed")
    with torch.no_grad():
        words = model.W_E / model.W_E.norm(dim=1, keepdim=True)  # of all tokens, one's own has the greatest product
        sae.W_enc.data, sae.W_dec.data, sae.b_dec.data[:] = words.T.clone(), words.clone(), 0
        products = model.W_E @ words.T
        own, others = products.diagonal(), products.masked_fill(torch.eye(30).bool(), -torch.inf).amax(0)
        sae.b_enc.data = torch.where(own > others, -(own + others.clamp(min=0)) / 2, -1e6)
    assert sorted((products + sae.b_enc > 0).nonzero().tolist()) == [[i, i] for i in range(30) if own[i] > others[i]]
    made = scan(model, sae, token_rows(250), tmp_path_factory.mktemp("labels") / "index", window=(3, 2), sample=40)
    return FeatureIndex.open(made.folder, model=model)


def test_the_words_of_a_feature_are_found_and_tell_where_it_fires(index):
    found = index.propose_labels()
    assert found.rows["text"].tolist() == [f"fires on: #{id}" for id in found.rows["feature"]]
    assert len(found) == (index.n_firings > 0).sum() > 20
    labels = index.labels.all()
    assert labels["automatic"].all()
    assert set(labels["source"]) == {"peak_words"}
    scores = [index.detection(id) for id in found.rows["feature"].tolist()[:5]]
    assert [one.balanced_accuracy for one in scores] == [1.0] * 5
    assert all(one.n_firing == one.n_silent > 5 for one in scores)


def test_a_wrong_description_is_no_better_than_chance(index):
    found = index.detection(3, "fires on: #7")
    assert found.balanced_accuracy < 0.65
    assert index.detection(3, "fires on:").balanced_accuracy == 0.5
    everything = index.detection(3, "x", judge=lambda description, texts: [0.9] * len(texts))
    assert (everything.balanced_accuracy, everything.hits, everything.rejections) == (0.5, 1, 0)


def test_what_fires_and_what_does_not_is_true_and_balanced(index):
    for id in (3, 7, 11):
        found = index.detection(id, f"fires on: #{id}", n=20)
        fires = [f"#{id}" in re.findall(r"#\d+", text) for text in found.texts["text"]]
        assert fires == found.texts["fires"].tolist()
        assert sum(fires) * 2 == len(fires) <= 40
        again = index.detection(id, f"fires on: #{id}", n=20)
        assert again.texts.equals(found.texts)
        other = index.detection(id, f"fires on: #{id}", n=20, seed=1)
        assert other.texts["text"].tolist() != found.texts["text"].tolist()


def test_no_row_is_both_described_and_tested_on(index):
    rows, asked = token_rows(250), []

    def judge(description, texts):
        asked.extend(texts)
        return [True] * len(texts)

    for id in (3, 7):
        seen = evidence(index, id)
        assert len(seen.examples) > 5
        assert not any(is_held_out(index.text.rows.row_of(place), id, 0) for place in seen.examples["position"])
        asked.clear()
        index.detection(id, "x", judge=judge)
        held = [" ".join(f"#{token}" for token in row) for number, row in enumerate(rows) if is_held_out(number, id, 0)]
        assert asked
        assert all(any(text in row for row in held) for text in asked)
    share = sum(is_held_out(row, 3, 0) for row in range(4000)) / 4000
    assert 0.45 < share < 0.55
    assert any(is_held_out(row, 3, 0) != is_held_out(row, 7, 0) for row in range(20))


def test_a_labeller_sees_the_strongest_first_and_what_is_common(index):
    seen = evidence(index, 3)
    sizes = seen.examples["activation"].abs().tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert set(seen.examples["word"]) == {"#3"}
    common = background(index)
    assert sum(common.values()) == pytest.approx(1)
    assert common["#3"] == pytest.approx(index.feature(3).density, rel=0.2)


def test_the_judge_of_word_lists_tests_a_label_that_is_a_list(index):
    index.label(3, "the number three")
    index.label(3, "fires on: #3", "program", automatic=True)
    assert index.detection(3).description == "fires on: #3"
    assert index.detection(3, judge=lambda description, texts: [True] * len(texts)).description == "the number three"
    for source in ("user", "program"):
        index.labels.remove(3, source)


def test_labels_of_a_labeller_are_replaced_and_the_users_stay(index):
    index.label(4, "mine")
    names = {4: "four", 5: ""}
    labeller = lambda seen: names[seen.id]  # noqa: E731
    assert index.propose_labels(labeller, [4, 5]).rows.values.tolist() == [[4, "four"]]
    names.update({4: "", 5: "five"})
    assert index.propose_labels(labeller, [4, 5]).meta["n_without"] == 1
    own = index.labels.all().query("source != 'peak_words'")
    assert own[["feature", "text", "automatic"]].values.tolist() == [[4, "mine", False], [5, "five", True]]
    index.labels.remove(4)
    index.labels.remove(5, "<lambda>")


def test_words_that_are_everywhere_are_no_label():
    import pandas as pd

    from mechkit.features.evidence import Evidence

    none = pd.DataFrame()
    words = ["the"] * 60 + ["Rome"] * 20 + [",,"] * 15 + ["once"] * 1
    seen = Evidence(0, pd.DataFrame({"word": words}), none, none, {"the": 0.5, "Rome": 0.01, ",,": 0.02, "once": 0.001})
    assert peak_words(seen) == 'fires on: Rome, ",,"'
    assert peak_words(Evidence(0, pd.DataFrame({"word": ["the"] * 9}), none, none, {"the": 0.9})) == ""


def test_lists_of_words_are_read_as_they_are_written():
    assert listed('fires on: Paris, ",", "a \\"b\\"", New York, "\\n"') == ["Paris", ",", 'a "b"', "New York", "\n"]
    assert listed("Paris") == ["Paris"]
    assert listed('fires on: ", x') == ['"', "x"]
    texts = ["Rome", "Romeo", "rome", "in Rome, at", "5,000", ""]
    assert word_list_judge("fires on: Rome", texts) == [True, False, False, True, False, False]
    assert word_list_judge('fires on: ","', texts) == [False, False, False, True, True, False]


def test_a_word_is_put_together_from_its_pieces():
    tokens = ["<s>", " Stock", "hol", "m", ",", " is", "n", "'", "t"]
    assert [word_at(tokens, i, False) for i in range(9)] == [
        "<s>", "Stockholm", "Stockholm", "Stockholm", ",", "isn", "isn", "'", "t"
    ]  # fmt: skip
    assert word_at(["a", "b"], 0, True) == "a"
    assert word_at([" "], 0, False) == " "


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda i: i.detection(29), "has no label to test"),
        (lambda i: i.detection(30, "x"), "no feature 30"),
        (lambda i: i.detection(3, "x", judge=lambda d, t: [True]), "gave 1 answers for"),
        (lambda i: i.detection(3, "x", judge=lambda d, t: [2.0] * len(t)), r"answered 2.0; an answer is"),
        (lambda i: i.detection(3, "x", n=1), "a score needs two of each"),
    ],
)
def test_what_has_no_score_is_said(index, ask, words):
    for id in range(30):
        index.labels.remove(id, "peak_words")
    with pytest.raises(ValueError, match=words):
        ask(index)
