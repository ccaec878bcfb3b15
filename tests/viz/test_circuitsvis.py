"""CircuitsVis on pages: its script once, every view drawn, tokens as text, what follows a view still there."""

import json
import re

import numpy as np
import pytest
import torch
from browser import find_chromium, probe

from mechkit.viz import circuitsvis

pytest.importorskip("circuitsvis", reason="CircuitsVis is not installed")
in_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium on PATH; set MECHKIT_CHROMIUM to the browser's path"
)
EVIL = ["<b>x</b>", "two", " three", "</script><img src=x onerror=alert(1)>"]


def views(words=EVIL):
    """One of every kind."""
    from circuitsvis import activations, attention, logits, tokens, topk_samples, topk_tokens

    draw = np.random.default_rng(0)
    words, patterns, values = list(words), torch.from_numpy(draw.random((2, 4, 4))).tril(), draw.random(4)
    log_probs = torch.from_numpy(draw.normal(size=(4, 8))).log_softmax(-1)
    return [
        ("heads", attention.attention_heads(patterns, words)),
        ("patterns", attention.attention_patterns(words, patterns)),
        ("pattern", attention.attention_pattern(words, patterns[0])),
        ("coloured", tokens.colored_tokens(words, values)),
        (
            "coloured by several",
            tokens.colored_tokens_multi(words, torch.from_numpy(draw.random((4, 2))), ["a", EVIL[0]]),
        ),
        ("log probabilities", logits.token_log_probs(torch.arange(4), log_probs, lambda i: (words * 2)[int(i)], 3)),
        ("neurons", activations.text_neuron_activations(words, torch.from_numpy(draw.random((4, 2, 3))))),
        ("strongest tokens", topk_tokens.topk_tokens([words], [draw.random((2, 4, 3))], 3)),
        ("strongest samples", topk_samples.topk_samples([[[words]]], [[[values.tolist()]]])),
    ]


def test_the_script_stands_once_and_no_text_becomes_a_tag():
    page = circuitsvis.views_page(EVIL[3], views())
    assert page.count("var CircuitsVis=") == 1
    assert page.count("</script") == 2
    assert "<!--" not in page
    assert "<img" not in page.split("<script>")[0]
    assert "sourceMappingURL" not in page
    assert len(page) < 1_450_000
    assert [line.split('"')[1] for line in page.splitlines() if line.startswith("CircuitsVis.render")][-1] == "view-8"
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy


def test_a_view_keeps_its_data_with_short_numbers_and_text_as_text():
    from circuitsvis.tokens import colored_tokens

    view = circuitsvis.View.of(colored_tokens(EVIL, [0.123456789, float("nan"), 1e-9, 2.0], max_value=3.0))
    assert view.element == "ColoredTokens"
    assert view.props["tokens"] == EVIL
    safe = view.safe()
    assert safe["values"] == [0.1235, None, 1e-9, 2.0]
    assert safe["tokens"][0] == "&lt;b&gt;x&lt;/b&gt;"
    assert safe["maxValue"] == 3.0
    assert not re.search("[<>&]", circuitsvis._call(0, view).removeprefix("CircuitsVis"))
    by_canvas = dict(views())["pattern"]
    assert circuitsvis.View.of(by_canvas).safe()["tokens"] == EVIL


def test_a_notebook_has_the_page_in_a_frame_of_its_own():
    import html

    shown = circuitsvis.notebook(views()[:1], "Heads")._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html')
    inside = shown.removeprefix('<iframe srcdoc="')
    assert '"' not in inside[: inside.index('" width=')]
    assert html.unescape(inside[: inside.index('" width=')]) == circuitsvis.views_page("Heads", views()[:1])
    assert 'sandbox="allow-scripts"' in shown


def test_what_is_no_view_is_said(monkeypatch):
    with pytest.raises(TypeError, match="a view is what a function of circuitsvis returns, not str"):
        circuitsvis.views_page("x", [("a", "<div/>")])
    monkeypatch.setattr(circuitsvis, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install circuitsvis"):
        circuitsvis.bundle()


LOOK = """
const drawn = [...document.querySelectorAll('section > div')];
return {
  headings: [...document.querySelectorAll('section > h2')].map((h) => h.textContent),
  drawn: drawn.map((d) => d.querySelectorAll('*').length),
  bold: document.querySelectorAll('section b').length, images: document.querySelectorAll('section img').length,
  text: document.body.innerText, requests: performance.getEntriesByType('resource').map((r) => r.name),
};
"""


@in_chromium
def test_every_view_is_drawn_and_what_follows_it_stays(tmp_path):
    report = probe(circuitsvis.views_page("All views", views()), tmp_path, LOOK)
    assert report["seen"] == {"errors": [], "violations": []}
    assert report["headings"] == [name for name, _ in views()]
    assert min(report["drawn"]) >= 3
    assert (report["bold"], report["images"]) == (0, 0)
    assert [name for name in report["requests"] if not name.startswith(("data:", "blob:"))] == []
    assert report["text"].count(EVIL[0]) >= 5
    assert EVIL[3] in report["text"].replace("\xa0", " ")
    assert "&lt;" not in report["text"]


@in_chromium
def test_the_check_for_tags_sees_them_where_text_is_not_escaped(tmp_path, monkeypatch):
    monkeypatch.setattr(circuitsvis, "TOKENS", frozenset())
    report = probe(circuitsvis.views_page("Raw", views()[3:4]), tmp_path, LOOK)
    assert report["bold"] == 1


@in_chromium
def test_a_frame_in_a_notebook_draws_its_view_and_keeps_what_follows(tmp_path):
    frame = circuitsvis.notebook(views()[3:4])._repr_html_()
    page = f"<!doctype html><html><head><title>n</title></head><body>{frame}<p id='after'>AFTER</p></body></html>"
    look = """
      await new Promise((resolve) => setTimeout(resolve, 800));
      const frame = document.querySelector('iframe');
      const after = document.querySelector('#after').textContent;
      return {after, wide: frame.clientWidth, bold: document.querySelectorAll('b').length};
    """
    report = probe(page, tmp_path, look)
    assert (report["after"], report["bold"]) == ("AFTER", 0)
    assert report["wide"] > 900
    assert json.dumps(report["seen"]) == '{"errors": [], "violations": []}'
