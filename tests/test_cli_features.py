"""`mechkit features`: an index made and asked from a shell."""

import io
import json

import pytest
from rich.console import Console

from mechkit.cli import run
from mechkit.features import FeatureIndex
from tests.features.tiny import tiny_sae


@pytest.fixture(scope="module")
def home(addition, tmp_path_factory):
    """A folder with a corpus of sums, an SAE, and the index that the command makes of them."""
    folder = tmp_path_factory.mktemp("features")
    sums = [{"body": f"{a}+{b}={a + b}"} for a in range(10, 60, 3) for b in range(10, 40, 7)]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in sums) + "\nno json\n")
    sae = tiny_sae(32, hook="blocks.1.hook_resid_pre", d_in=addition.cfg.d_model)
    sae.save_model(folder / "mine")
    made = ["features", "scan", str(folder / "sums.jsonl"), "--sae", str(folder / "mine"), "--column", "body"]
    assert run([*made, "--out", str(folder / "index")]) == 0
    return folder


@pytest.fixture
def ask(home, capsys):
    """Runs a command on the index; returns what it printed, read as JSON where that was asked for."""

    def asked(*words):
        where = [] if words[0] == "scan" else ["--index", str(home / "index")]
        capsys.readouterr()
        assert run(["features", *words, *where]) == 0
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in words else out

    return asked


def test_scan_says_what_it_read_and_what_it_passed_over(home, ask, capsys):
    again = [
        "scan",
        str(home / "sums.jsonl"),
        "--sae",
        str(home / "mine"),
        "--column",
        "body",
        "--out",
        str(home / "index"),
    ]
    printed = ask(*again)
    for words in ("addition on 425 tokens", "mine", "passed over: 1 no JSON, such as", "sums.jsonl:85", "wrote"):
        assert words in printed
    summary = ask(*again, "--json")
    assert (summary["n_tokens"], summary["n_features"], summary["skipped"]) == (425, 32, {"no JSON": 1})


def test_lookup_shows_the_features_of_every_token(ask):
    printed = ask("lookup", "35+59=")
    assert [line.split()[0] for line in printed.splitlines()[1:5]] == ["35", "+", "59", "="]
    found = ask("lookup", "35+59=", "--top", "2", "--json")
    assert len(found["tokens"]) == 4
    assert len(found["rows"]) == 8


def test_a_feature_is_shown_with_its_examples_neighbours_and_labels(ask):
    id = str(ask("lookup", "35+59=", "--json")["rows"][0]["feature"])
    assert "wrote" in ask("label", id, "second number")
    printed = ask("feature", id)
    assert f"feature {id} second number" in printed
    assert "promotes:" in printed
    found = ask("feature", id, "--json")
    assert found["labels"] == [{"text": "second number", "source": "user", "automatic": False}]
    assert sum(row["n"] for row in found["histogram"]) == found["n_firings"]
    examples = ask("examples", id, "--top", "2", "--json")["rows"]
    assert [row["band"] for row in examples][:4] == ["top", "top", "q4", "q4"]
    assert examples[0]["activation"] == found["max"]
    assert examples[0]["text"] in ask("examples", id)
    assert [row["feature"] for row in ask("search", "numbers", "--json")["rows"]] == [int(id)]
    assert len(ask("similar", id, "--top", "3", "--json")["rows"]) == 3
    assert ask("cofiring", id, "--top", "3", "--json")["unit"] == "Jaccard overlap"


def test_effects_are_those_of_the_index(ask, home, addition):
    id = ask("lookup", "35+59=", "--json")["rows"][0]["feature"]
    found = ask("effect", f"{id},3", "35+59=", "12+13=", "--json")
    index = FeatureIndex.open(home / "index", model=addition)
    wanted = index.effect([id, 3], ["35+59=", "12+13="]).scores.tolist()
    assert [one["changes"] for one in found["features"]] == [pytest.approx(row, abs=1e-6) for row in wanted]
    assert (found["metric"], found["unit"], len(found["before"])) == ("logprob", "nats", 2)
    printed = ask("effect", str(id), "35+59=", "--metric", "logit", "--answer", "94", "--at", "-1")
    assert f"feature {id}" in printed
    assert "taken out" in printed
    assert "below 0: the feature raises the metric" in printed
    assert "held at 2" in ask("effect", str(id), "35+59=", "--steer", "2")


def test_lookup_by_effect_and_its_page(ask, tmp_path):
    page = tmp_path / "prompt.html"
    printed = ask("lookup", "35+59=", "--effect", "logprob", "--page", str(page))
    assert "effect: change of the metric without that firing" in printed
    assert f"wrote {page}" in printed
    assert page.read_text().startswith("<!doctype html>")
    found = ask("lookup", "35+59=", "--effect", "logprob", "--json")
    assert abs(found["rows"][0]["effect"]) == max(abs(row["effect"]) for row in found["rows"]) > 0


def test_a_page_of_a_feature_is_written_and_named(ask, tmp_path):
    page = tmp_path / "feature.html"
    printed = ask("page", "3", "35+59=", "--quality", "--out", str(page))
    assert f"wrote {page}" in printed
    text = page.read_text()
    for words in ("Feature 3", "35+59=", "variance explained", "taken out"):
        assert words in text


def test_quality_is_printed_and_is_the_indexs(ask):
    printed = ask("quality")
    for words in ("variance explained", "loss recovered, against zeros", "features per token", "dead"):
        assert words in printed
    found = ask("quality", "--tokens", "100", "--json")
    assert 100 <= found["n_tokens"] < 110
    assert found["explained_variance"] < 1


def test_labels_are_proposed_and_tested(ask):
    printed = ask("label", "--auto")
    assert "labels;" in printed
    assert "wrote" in printed
    labelled = ask("search", "fires", "--json")["rows"]
    assert labelled
    assert all(row["automatic"] and row["text"].startswith("fires on: ") for row in labelled)
    id = str(labelled[0]["feature"])
    found = ask("detect", id, labelled[0]["text"], "--json")
    assert 0 <= found["balanced_accuracy"] <= 1
    assert len(found["texts"]) == found["n_firing"] + found["n_silent"]
    assert "0.5 is chance" in ask("detect", id, labelled[0]["text"])
    assert "1 labels" in ask("label", id, "--auto")


def test_promoting_takes_a_token_or_its_number(ask, addition):
    by_text = ask("promoting", "94", "--json")
    assert by_text["text"] == "94"
    assert ask("promoting", f"#{by_text['token']}", "--json")["rows"] == by_text["rows"]


def test_contrast_reads_two_corpora(ask, tmp_path):
    for name, low in (("a", 10), ("b", 60)):
        rows = [json.dumps({"text": f"{low + i}+{low + 2 * i}="}) for i in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    found = ask("contrast", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--json", "--top", "4")
    assert (found["n_a"], found["n_b"], len(found["rows"])) == (10, 10, 4)
    assert abs(found["rows"][0]["effect"]) > 0.8


def test_tables_are_written_and_named(ask, tmp_path):
    printed = ask("tables", "--out", str(tmp_path))
    for path in tmp_path.iterdir():
        assert str(path) in printed
    assert (tmp_path / "features.parquet").is_file()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["feature", "3", "--index", "nowhere"], "no index in 'nowhere'; make one with scan"),
        (["scan", "nowhere.txt"], "no corpus 'nowhere.txt'"),
        (["scan", "pyproject.toml"], "is no corpus"),
        (["effect", "3", "x", "--metric", "size"], "the metric is one of logprob, logit, prob, loss, not 'size'"),
        (["effect", "three", "x"], "features are numbers parted by commas"),
        (["page", "3", "--out", "nowhere/x.html"], "there is no folder 'nowhere'"),
        (["label", "3"], "give a feature and a text"),
        (["label", "3", "x", "--auto"], "give a feature and a text"),
    ],
)
def test_what_the_user_can_mend_is_one_line(home, command, words, capsys, tmp_path):
    more = ["--sae", str(home / "mine"), "--out", str(tmp_path / "index")] if command[0] == "scan" else []
    assert run(["features", *command, *more]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_text_of_a_corpus_is_never_read_as_markup():
    import pandas as pd

    from mechkit.features.ranked import Ranked
    from mechkit.report.features import print_ranked

    rows = {"band": ["top"], "activation": [1.0], "text": ["[bold]\na"], "tokens": [["[bold]", "\n", "a"]], "peak": [1]}
    out = io.StringIO()
    print_ranked(Ranked(pd.DataFrame(rows), "activation"), Console(file=out, width=100))
    assert "[bold]↵a" in out.getvalue()


def test_the_bar_says_how_many_tokens_a_second(monkeypatch):
    from mechkit.cli import terminal
    from mechkit.core.progress import progress
    from mechkit.features.scanning import Batch

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(terminal, "PATIENCE", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with terminal.bars(stream):
        for _ in progress([Batch([0], 500), Batch([1], 500)], "scanning, tokens", 1000):
            pass
    assert "50%" in stream.getvalue()
    assert "/s" in stream.getvalue()
