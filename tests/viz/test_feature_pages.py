"""Pages of features and prompts: everything is in the file, text stays text, numbers are where they belong."""

import re
from html.parser import HTMLParser

import pytest
from browser import find_chromium, probe

from mechkit.viz.feature_page import feature_page
from mechkit.viz.prompt_page import prompt_page
from mechkit.viz.tokens_html import N_SHADES, shade, signed

EVIL = [
    "</script><img src=x onerror=alert(1)>",
    '"><b onclick=alert(2)>',
    "</style><style>*{display:none}</style>",
    "a&lt;b",
]
in_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium on PATH; set MECHKIT_CHROMIUM to the browser's path"
)


def feature_data(words=(" a", "b", "\n", " d"), label="commas"):
    words = list(words)
    example = {
        "activation": 2.5,
        "tokens": words,
        "activations": [None, 2.5, 0.0, -1.25],
        "peak": 1,
        "source": words[0],
    }
    return {
        "id": 12, "about": words[1], "max": 2.5,
        "labels": [
            {"text": label, "source": "user", "automatic": False},
            {"text": words[2], "source": "program", "automatic": True},
        ],
        "facts": [("fires on", "1 %"), (words[0], words[1])],
        "bands": [
            {"name": words[0], "note": words[1], "examples": [example]},
            {"name": "none", "note": "", "examples": []},
        ],
        "histogram": {"from": [0.5, 0.75, 1.0], "n": [4, 0, 1]},
        "promoted": [(words[0], 1.5), (words[3], 0.75)], "suppressed": [(words[1], -1.5), (words[2], -0.3)],
        "similar": [(3, 0.91, words[0]), (4, 0.5, "")], "cofiring": [(5, 0.25, "")],
        "effect": {
            "metric": words[0], "unit": words[1], "how": words[2], "rows": [(words[3], -0.5, -2.0), ("p", 1.0, 0.5)],
        },
        "quality": [("L0", "16"), (words[0], words[1])], "made": [("model", words[0])],
    }  # fmt: skip


def prompt_data(words=(" a", "b", "\n", " d"), effect=None):
    features = [
        {"id": 7, "label": words[0], "activations": [0.0, 2.0, 0.0, 1.0], "max": 4.0},
        {"id": 30, "label": "", "activations": [0.0, 0.0, 0.0, 0.5], "max": None},
    ]
    tops = [[], [(7, 2.0, 1.0, None)], [], [(7, 1.0, 0.5, None), (30, 0.5, 0.5, None)]]
    if effect:
        features = [{**one, "effect": change} for one, change in zip(features, (-0.5, 0.01), strict=True)]
        tops = [[(*one[:3], -0.5 if one[0] == 7 else 0.01) for one in top] for top in tops]
    return {
        "about": words[1], "tokens": list(words), "errors": [0.5, 0.25, 0.1, 2.0], "counts": [0, 1, 0, 2],
        "features": features, "tops": tops, "effect": effect, "made": [("model", words[2])],
    }  # fmt: skip


PAGES = {
    "a feature": lambda words: feature_page(feature_data(words, words[3])),
    "a prompt": lambda words: prompt_page(prompt_data(words)),
    "a prompt by effect": lambda words: prompt_page(prompt_data(words, (words[0], words[1]))),
}


class Tags(HTMLParser):
    """Tags of a page as a browser's parser meets them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs)), dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("kind", PAGES)
def test_no_text_becomes_a_tag(kind):
    evil, tame = Tags(PAGES[kind](EVIL)), Tags(PAGES[kind](["w", "x", "y", "z"]))
    count = lambda tags: sorted((tag, names) for tag, names, _ in tags if tag != "wbr")  # noqa: E731
    assert count(evil.tags) == count(tame.tags)
    assert all(word in evil.text for word in (EVIL[0], EVIL[1]))


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_names_nothing_outside_itself(kind):
    page = PAGES[kind]([" a", "b", "c", "d"])
    assert not [attrs for _, _, attrs in Tags(page).tags if attrs.keys() & {"src", "href", "action", "srcset", "style"}]
    assert not re.search(r"https?://|url\(|@import|innerHTML|eval\(", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src ")
    assert "unsafe" not in policy


def test_an_example_shows_its_tokens_by_strength():
    page = feature_page(feature_data())
    spans = re.findall(r'<span class="t ?([^"]*)" title="([^"]*)">([^<]*)</span>', page)
    assert spans[:4] == [
        ("", " a: ", " a"),
        ("kept p20 peak", "b: 2.5", "b"),
        ("", "\n: 0", "↵"),
        (f"n{N_SHADES // 2}", " d: -1.25", " d"),
    ]


def test_shades_go_with_strength_and_sign():
    assert [shade(value, 2.0) for value in (0.0, None, float("nan"), 0.01, 1.0, 2.0, 9.0, -2.0)] == [
        "", "", "", "p1", "p10", "p20", "p20", "n20"
    ]  # fmt: skip
    assert (signed(-0.5, 2.0), signed(0.0123, 0.05), signed(-1e-9, 0.05)) == ("-0.50", "+0.0123", "0")


def test_numbers_stand_in_the_page():
    text = " ".join(Tags(feature_page(feature_data())).text.split())
    for words in (
        "Feature 12 commas user",
        "program, automatic",
        "L016",
        "0.91",
        "from 0.5: 4 firings",
        "-2.00",
        "+0.50",
    ):
        assert words in text, words
    empty = {"id": 1, "about": "", "labels": [], "facts": [], "bands": [{"name": "Strongest", "examples": []}]}
    assert "It fires nowhere in this corpus." in feature_page(empty)
    assert "no label yet" in feature_page(empty)
    assert "No feature fires." in prompt_page({**prompt_data(), "features": [], "tops": [[], [], [], []]})


LOOK = """
const at = (selector) => document.querySelector(selector);
const shades = () => [...document.querySelectorAll('.prompt .t')].map((t) => t.className.match(/[pn]\\d+/)?.[0] ?? '');
const before = shades();
at('button[data-feature="30"]')?.click();
return {
  before, after: shades(), chosen: at('#chosen')?.textContent, hash: location.hash,
  ready: document.documentElement.dataset.ready,
  titles: [...document.querySelectorAll('.prompt .t')].map((t) => t.title),
  requests: performance.getEntriesByType('resource').length, wide: document.documentElement.scrollWidth,
  images: document.querySelectorAll('img').length, text: document.body.innerText,
};
"""


@in_chromium
@pytest.mark.parametrize("width", [1280, 1000, 700])
@pytest.mark.parametrize("kind", PAGES)
def test_a_browser_shows_it_without_errors_and_requests(kind, width, tmp_path):
    report = probe(PAGES[kind](EVIL), tmp_path, LOOK, width=width)
    assert report["seen"] == {"errors": [], "violations": []}
    assert (report["requests"], report["images"]) == (0, 0)
    assert report["wide"] <= width
    assert EVIL[3] in report["text"]


@in_chromium
def test_choosing_a_feature_colours_the_prompt_by_it(tmp_path):
    report = probe(prompt_page(prompt_data()), tmp_path, LOOK)
    assert report["ready"] == "true"
    assert report["before"] == ["", "p10", "", "p5"]
    assert report["after"] == ["", "", "", "p20"]
    assert (report["chosen"], report["hash"]) == ("feature 30", "#feature=30")
    assert report["titles"][3] == " d: 0.5"


@in_chromium
def test_an_address_chooses_a_feature_and_nonsense_does_not(tmp_path):
    look = "return {chosen: document.querySelector('#chosen').textContent}"
    for fragment, name in (("#feature=30", "feature 30"), ("#feature=99", "feature 7:  a"), ("#x", "feature 7:  a")):
        report = probe(prompt_page(prompt_data()), tmp_path, look, fragment=fragment)
        assert report["chosen"] == name
        assert report["seen"] == {"errors": [], "violations": []}
