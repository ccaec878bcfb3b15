"""What a corpus may be, and what becomes of documents that cannot be read."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mechkit.features import documents, scan
from mechkit.features.corpus import bos_of, tokenise
from tests.features.tiny import tiny_sae, token_rows

TEXTS = ["3+5=", "35+59=94", "7+8="]


def texts_of(found):
    return [content for _, _, content in found]


def write(folder: Path):
    (folder / "a.txt").write_text(TEXTS[0])
    (folder / "b.jsonl").write_text(json.dumps({"text": TEXTS[1]}) + "\n\n")
    pq.write_table(pa.table({"text": [TEXTS[2]]}), folder / "c.parquet")
    (folder / "d.png").write_bytes(b"\x00")


def test_files_of_every_kind_are_read_by_name(tmp_path):
    write(tmp_path)
    assert texts_of(documents(tmp_path)) == TEXTS
    assert texts_of(documents(str(tmp_path / "b.jsonl"))) == [TEXTS[1]]
    assert texts_of(documents([tmp_path / "c.parquet", tmp_path / "a.txt"])) == [TEXTS[2], TEXTS[0]]


def test_datasets_texts_and_token_ids_are_read_as_they_are():
    datasets = pytest.importorskip("datasets")
    assert texts_of(documents(datasets.Dataset.from_dict({"text": TEXTS}))) == TEXTS
    assert texts_of(documents(TEXTS)) == TEXTS
    assert texts_of(documents([{"body": text} for text in TEXTS], "body")) == TEXTS
    for rows in (
        torch.tensor([[1, 2], [3, 4]]),
        np.array([[1, 2], [3, 4]]),
        [[1, 2], [3, 4]],
        [{"tokens": [1, 2]}, [3, 4]],
    ):
        assert [content.tolist() for content in texts_of(documents(rows))] == [[1, 2], [3, 4]]


def test_what_cannot_be_read_is_passed_over_and_counted(tmp_path):
    write(tmp_path)
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "f.txt").write_text(" \n")
    (tmp_path / "g.jsonl").write_bytes(b'{"text": "7+8="}\nno json\n{"text": "\xff"}\n{"text": null}\n')
    (tmp_path / "h.parquet").write_bytes(b"PAR1")
    (tmp_path / "i.txt").symlink_to(tmp_path / "nowhere")
    found = documents(tmp_path)
    assert texts_of(found) == [*TEXTS, TEXTS[2]]
    wanted = {"invalid UTF-8": 2, "empty": 2, "no JSON": 1, "unreadable": 2}
    assert dict(found.skipped) == wanted
    assert found.first["no JSON"] == [f"{tmp_path / 'g.jsonl'}:1"]
    assert texts_of(found) == [*TEXTS, TEXTS[2]]
    assert dict(found.skipped) == wanted


def test_a_file_without_leave_to_read_is_passed_over(tmp_path):
    write(tmp_path)
    (tmp_path / "a.txt").chmod(0)
    if os.access(tmp_path / "a.txt", os.R_OK):
        pytest.skip("this user may read everything")
    found = documents(tmp_path)
    assert texts_of(found) == TEXTS[1:]
    assert found.skipped["unreadable"] == 1


@pytest.mark.parametrize(
    ("corpus", "error", "words"),
    [
        ("nowhere.txt", FileNotFoundError, "no corpus 'nowhere.txt'"),
        (iter(TEXTS), TypeError, "an iterator runs dry"),
        (3, TypeError, "not int"),
        (torch.ones(2, 2), ValueError, "whole-number array"),
        (torch.ones(2, dtype=torch.long), ValueError, r"\[2\]"),
    ],
)
def test_what_is_no_corpus_is_said(corpus, error, words):
    with pytest.raises(error, match=words):
        documents(corpus)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([{"body": "x"}], ValueError, r"row 0 has columns body, not text or input_ids or tokens; name one"),
        ([[[1, 2]]], TypeError, "a document is text or a list of token ids"),
        ([[1.5]], TypeError, "a document is text or a list of token ids"),
    ],
)
def test_rows_of_other_content_are_said(rows, error, words):
    with pytest.raises(error, match=words):
        list(documents(rows))


def test_long_documents_go_on_in_the_next_row(model, tmp_path):
    rows = tokenise(model, documents([[1, 2, 3, 4, 5], [6]]), tmp_path, context=2, bos=False)
    cut = [rows.tokens[rows.starts[i] : rows.starts[i + 1]].tolist() for i in range(rows.n_rows)]
    assert cut == [[1, 2], [3, 4], [5], [6]]
    assert rows.about["split"] == 1
    assert rows.source_of(3) == "texts:1"


def test_rows_of_text_begin_with_a_bos_where_one_is_wanted(gpt2_like, tmp_path):
    text = "One day a little girl went out"
    bare = gpt2_like.to_tokens(text, prepend_bos=False)[0].tolist()
    rows = tokenise(gpt2_like, documents([text]), tmp_path / "with", context=4, bos=True)
    bos = gpt2_like.tokenizer.bos_token_id
    assert rows.tokens.tolist() == [bos, *bare[:3], bos, *bare[3:6], bos, *bare[6:]]
    rows = tokenise(gpt2_like, documents([text]), tmp_path / "without", context=4, bos=False)
    assert rows.tokens.tolist() == bare


def test_a_bos_that_the_tokenizer_lacks_is_said():
    with pytest.raises(ValueError, match="the model's tokenizer has none; give bos=False"):
        bos_of(SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=None)))


def test_a_text_that_the_tokenizer_refuses_is_passed_over(addition, tmp_path):
    rows = tokenise(addition, documents(["3+5=", "hello", "7+8="]), tmp_path, context=8, bos=False)
    assert rows.n_rows == 2
    assert rows.about["skipped"] == {"unknown to the tokenizer": 1}
    assert rows.about["first_skipped"] == {"unknown to the tokenizer": ["texts:1"]}


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        (["", " "], r"nothing to read in the corpus; documents passed over: \{'empty': 2\}"),
        ([[1, 99]], "holds token ids 1 to 99; the model has 0 to 29"),
        (["a text"], "the model has no tokenizer to read 'a text' with"),
    ],
)
def test_a_corpus_that_the_model_cannot_read_is_said(model, tmp_path, corpus, words):
    with pytest.raises(ValueError, match=words):
        scan(model, tiny_sae(), corpus, tmp_path / "index")


@pytest.mark.parametrize(
    ("sae", "words"),
    [
        ({"hook": "blocks.9.hook_resid_pre"}, "which is no hook of this model"),
        ({"d_in": 17}, "reads 17 numbers; blocks.1.hook_resid_pre of this model has 16"),
        ({"hook": "blocks.0.hook_mlp_in"}, "does not fire on this model"),
    ],
)
def test_an_sae_that_does_not_fit_is_said(model, tmp_path, sae, words):
    with pytest.raises(ValueError, match=words):
        scan(model, tiny_sae(**sae), token_rows(), tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "most"}, "keep is one of examples, all"),
        ({"context": 13}, "context is 13; this model reads at most 12"),
        ({"top": -1}, "top is -1; it must be at least 0"),
        ({"window": (1, -1)}, "neither is negative"),
    ],
)
def test_options_that_mean_nothing_are_said(model, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        scan(model, tiny_sae(), token_rows(), tmp_path / "index", **options)


def test_saes_need_names(model, tmp_path):
    with pytest.raises(ValueError, match=r"given twice \['blocks.1.hook_resid_pre'\]"):
        scan(model, [tiny_sae(), tiny_sae(seed=1)], token_rows(), tmp_path / "index")
    with pytest.raises(TypeError, match=r"an SAE is one of SAELens's, not str"):
        scan(model, ["gpt2-small"], token_rows(), tmp_path / "index")


def test_saes_say_how_rows_are_read(model):
    from mechkit.features.settings import settings_for

    more = {"keep": "all", "top": 1, "sample": 1, "window": (0, 0), "cofiring": 0, "shard": 1, "batch": 1}
    one = tiny_sae(context_size=8, prepend_bos=False, exclude_special_tokens=[3, 1])
    found = settings_for(model, {"one": one}, None, None, None, **more)
    assert (found.context, found.bos, found.ignore) == (8, False, (1, 3))
    other = tiny_sae(prepend_bos=True)
    with pytest.raises(ValueError, match="some of these SAEs were trained with a BOS"):
        settings_for(model, {"one": one, "other": other}, None, None, None, **more)
