"""The page in a real browser: drawn whole, driven by mouse and keys, saved, quiet on the network, quick when large."""

import json
from urllib.parse import quote

import numpy as np
import pytest
from graph_payloads import (
    bare_payload,
    crowded_payload,
    evil_payload,
    large_payload,
    small_payload,
)
from test_heatmap_png import decode

from tests.viz.browser import find_chromium
from tests.viz.driver import CANVAS, HASH, HEADING, LIT, SHIFT, mark, node_at, slide

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium on PATH; set MECHKIT_CHROMIUM to the browser's path"
)

BOXES = """(() => {
  const seen = (selector) => [...document.querySelectorAll(selector)].filter((item) => item.checkVisibility());
  const boxes = (selector) => seen(selector).map((item) => {
    const b = item.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; });
  return Object.fromEntries(%s.map((name) => [name, boxes(name)]));
})()"""
OUTLINED = """(() => {
  const item = document.activeElement;
  const mark = item.classList.contains("node") ? item.querySelector(".mark") : null;
  return mark ? parseFloat(getComputedStyle(mark).strokeWidth) > 2 : getComputedStyle(item).outlineStyle !== "none";
})()"""
UNNAMED = """[...document.querySelectorAll("button, input")]
  .filter((item) => !(item.textContent.trim() || item.getAttribute("aria-label") || item.labels?.length))
  .map((item) => item.outerHTML.slice(0, 80))"""


def overlaps(boxes: list[list[float]]) -> list[tuple]:
    """Pairs of boxes that share more than a tenth of a pixel each way (positions are rounded to 0.01)."""
    order = sorted(boxes)
    found = []
    for at, (x0, y0, x1, y1) in enumerate(order):
        for other in order[at + 1 :]:
            if other[0] >= x1 - 0.1:
                break
            if min(y1, other[3]) - max(y0, other[1]) > 0.1:
                found.append(((x0, y0, x1, y1), other))
    return found


def test_the_overlap_check_sees_an_overlap():
    assert overlaps([[0, 0, 10, 10], [20, 0, 30, 10], [9, 9, 12, 12]])
    assert not overlaps([[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20]])


@pytest.mark.parametrize(
    ("make", "width"),
    [(bare_payload, 800), (small_payload, 1000), (large_payload, 1280), (evil_payload, 1280), (crowded_payload, 1920)],
)
def test_every_node_is_drawn_and_nothing_overlaps(make, width, show):
    document = make()
    document["qParams"]["pinnedIds"] = [node["node_id"] for node in document["nodes"][:30]]
    page = show(document, width=width)
    slide(page, "#n-nodes", 1) if len(document["nodes"]) > 3 else None
    kinds = [".node", ".tray", ".column-name text", "#row-names div", ".legend, .edge-tools", ".box"]
    kinds.append("#figure-card, #subgraph-card, #panel, #tables .card, #header")
    boxes = page.run(BOXES % json.dumps(kinds))
    assert len(boxes[".node"]) == len(document["nodes"])
    assert all(x1 - x0 >= 7 for x0, _, x1, _ in boxes[".node"])
    for kind in (".node", ".tray", ".column-name text", "#row-names div", ".legend, .edge-tools", ".box"):
        assert overlaps(boxes[kind]) == [], kind
    assert overlaps(boxes[kinds[-1]]) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelectorAll('body img, #main b').length") == 0


def test_a_click_shows_a_node_its_edges_and_their_heads(show):
    document = small_payload()
    name = node_at(document, **{"class": "sum", "layer": 1})
    links = [link for link in document["links"] if name in (link["source"], link["target"])]
    document["mechkit"]["edges"]["heads"] = [[["L0.H3", 0.62], ["no head", 0.2]] for _ in document["links"]]
    page = show(document)
    page.click(mark(name))
    assert page.run(HEADING) == next(node["clerp"] for node in document["nodes"] if node["node_id"] == name)
    assert page.run(HASH) == f"#node={name}"
    assert set(page.run(LIT)) == {link[end] for link in links for end in ("source", "target")} | {name}
    assert int(page.run(CANVAS)["lit"]) == len(links)
    assert page.run("document.querySelector('#panel .heads').textContent") == "L0.H3 62.0 %"
    strongest = max((link for link in links if link["target"] == name), key=lambda link: abs(link["weight"]))
    page.click("#panel .rows .row")
    assert page.run(HASH) == f"#node={strongest['source']}"
    page.key("Escape")
    assert (page.run(HEADING), page.run(HASH), page.run(LIT)) == (None, "", [])


def test_a_pathway_lights_its_nodes(show):
    document = small_payload()
    page = show(document)
    page.click("#panel .path")
    assert set(page.run(LIT)) == set(document["mechkit"]["pathways"][0]["nodes"])
    assert page.run(HEADING) == document["mechkit"]["pathways"][0]["text"]


def test_a_hash_selects_what_it_names_and_nothing_where_that_is_not_there(show):
    page = show(small_payload(), fragment="#node=embed%400")
    assert len(page.run(LIT)) > 1
    for fragment, n_lit in (("#node=gone", 0), ("#path=2", 5), ("#node=%E0%A4%A", 0), ("#path=9", 0), ("#nonsense", 0)):
        page.run(f"location.hash = {json.dumps(fragment)}")
        page.run("new Promise((done) => setTimeout(done, 30))")
        assert len(page.run(LIT)) == n_lit, fragment


def test_names_cover_no_lit_mark(show):
    document = small_payload()
    page = show(document, fragment="#node=" + quote(node_at(document, **{"class": "sum", "layer": 1})))
    boxes = page.run(BOXES % json.dumps([".label", ".node.lit"]))
    assert boxes[".label"]
    assert overlaps(boxes[".label"] + boxes[".node.lit"]) == []


def test_the_operand_plot_reads_the_value_under_the_pointer(show):
    document = small_payload()
    about = document["mechkit"]["nodes"]
    name = next(n for n, node in about.items() if node.get("plot") and node["class"] == "operand")
    values = decode(about[name]["plot"]["png"]) / 255 * about[name]["plot"]["max"]
    assert values[35, 59] > 2 * values[59, 35]
    page = show(document, fragment="#node=" + quote(name))
    page.wait("document.querySelector('.reading').textContent !== ''")
    read = """((x, y) => {
        const canvas = document.querySelector("canvas.operand-plot");
        const b = canvas.getBoundingClientRect();
        const at = {clientX: b.left + 36 + x * (b.width - 40), clientY: b.top + 6 + y * (b.width - 40)};
        canvas.dispatchEvent(new PointerEvent("pointermove", at));
        return document.querySelector(".reading").textContent; })"""

    def value(text: str, start: str) -> float:
        assert text.startswith(start)
        return float(text.removeprefix(start))

    # three digits are shown
    rest = page.run("document.querySelector('.reading').textContent")
    assert value(rest, "This prompt, a = 35, b = 59: ") == pytest.approx(values[35, 59], rel=5e-3)
    middle, corner = page.run(f"{read}(0.595, 1 - 0.355)"), page.run(f"{read}(0.005, 0.005)")
    assert value(middle, "a = 35, b = 59: ") == pytest.approx(values[35, 59], rel=5e-3)
    assert value(corner, "a = 99, b = 0: ") == pytest.approx(values[99, 0], rel=5e-3)


def test_search_finds_by_label_token_id_class_and_supernode_and_enter_goes_round(show):
    document = small_payload()
    page = show(document)
    about = document["mechkit"]["nodes"]
    labels = {node["node_id"]: node["clerp"] for node in document["nodes"]}
    page.key("/")
    page.write("first operand")
    found = set(page.run("[...document.querySelectorAll('.node.match')].map((item) => item.dataset.id)"))
    grouped = {m for name, *members in document["qParams"]["supernodes"] if "first operand" in name for m in members}
    assert found == {n for n in labels if "first operand" in labels[n]} | grouped
    by_share = sorted(found, key=lambda n: -(about[n].get("influence") or 2))
    for expected in (by_share[0], by_share[1]):
        page.key("Enter")
        assert page.run(HASH) == f"#node={expected}"
    page.key("Enter", SHIFT)
    assert page.run(HASH) == f"#node={by_share[0]}"
    assert page.run("document.activeElement.id") == "search"
    page.key("Escape")
    assert page.run("document.querySelectorAll('.node.match').length") == 0
    for text, expected in (
        ("modular", {n for n in about if about[n].get("class") == "modular"}),
        ("logit1", {"logit1"}),
    ):
        page.key("/")
        page.write(text)
        assert set(page.run("[...document.querySelectorAll('.node.match')].map((item) => item.dataset.id)")) == expected
        page.key("Escape")
    page.key("/")
    page.write("zzz")
    assert page.run("document.querySelector('#n-results').textContent") == "No node matches."


def test_everything_is_reached_by_keys_and_the_focus_is_seen(show):
    document = small_payload()
    page = show(document)
    reached = []
    for _ in range(40):
        page.key("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.getAttribute('class')"))
        assert page.run(OUTLINED), reached[-1]
        if str(reached[-1]).startswith("node"):
            break
    assert {"search", "save-json", "save-png", "n-nodes", "n-edges"} <= set(reached)
    before = page.run("document.activeElement.dataset.id")
    page.key("ArrowDown")
    after = page.run("document.activeElement.dataset.id")
    assert before != after
    page.key("Enter")
    assert page.run(HASH) == f"#node={after}"
    page.key("ArrowDown")
    page.key("Enter", SHIFT)
    assert page.run(HEADING) == "2 nodes"
    assert page.run("document.querySelectorAll('.node[tabindex=\"0\"]').length") == 1
    assert page.run(UNNAMED) == []


def test_the_sliders_prune_nodes_and_edges(show):
    document = large_payload()
    page = show(document)
    about = document["mechkit"]["nodes"]
    prunable = sorted(
        (n for n in about if about[n]["kind"] in ("feature", "error", "bias")), key=lambda n: -about[n]["influence"]
    )
    slide(page, "#n-nodes", np.log(10) / np.log(len(prunable)))
    drawn = set(page.run("[...document.querySelectorAll('.node')].map((item) => item.dataset.id)"))
    assert drawn == set(about) - set(prunable[10:])
    slide(page, "#n-nodes", 1)
    assert page.run("document.querySelectorAll('.node').length") == len(about)
    slide(page, "#n-edges", 0)
    assert page.run(CANVAS)["done"] == "0"
    slide(page, "#n-edges", 1)
    assert page.run(CANVAS)["done"] == str(len(document["links"]))


def test_a_pruned_node_that_is_searched_for_comes_into_the_figure(show):
    document = large_payload()
    about = document["mechkit"]["nodes"]
    weakest = min((n for n in about if about[n]["kind"] == "feature"), key=lambda n: about[n]["influence"])
    page = show(document)
    assert not page.run(f"Boolean(document.querySelector({json.dumps(mark(weakest))}))")
    page.key("/")
    page.write(weakest.lower())
    page.key("Enter")
    assert page.run(f"Boolean(document.querySelector({json.dumps(mark(weakest))}))")


def test_a_category_is_hidden_and_shown(show):
    document = small_payload()
    n_sum = sum(node.get("class") == "sum" for node in document["mechkit"]["nodes"].values())
    page = show(document)
    page.click(".legend")
    assert page.run("document.querySelectorAll('.node.off').length") == n_sum
    page.click(".legend")
    assert page.run("document.querySelectorAll('.node.off').length") == 0


def test_notes_are_shown_with_the_node(show):
    document = small_payload()
    name = node_at(document, **{"class": "sum", "layer": 1})
    document["mechkit"]["nodes"][name]["notes"] = {
        "promoted": [[" Paris", 1.25]],
        "suppressed": [[" Rome", -0.5]],
        "examples": [[["the", " capital", " of"], [0.0, 2.0, 0.5], 1]],
        "labels": [["capitals", "a person"]],
    }
    page = show(document, fragment="#node=" + quote(name))
    text = page.run("document.querySelector('#panel').innerText")
    assert all(
        part in text for part in ("␣Paris", "+1.25", "␣Rome", "−0.500", "the capital of", "capitals", "a person")
    )
    assert page.run("document.querySelector('#panel .examples .peak').textContent") == " capital"
