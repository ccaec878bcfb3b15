"""Labels, supernodes and pins, edited in a real browser by mouse and keys, saved and read back."""

import json

import jsonschema
import pytest
from graph_payloads import small_payload

from mechkit.graphs.graph import AttributionGraph
from tests.graphs.test_saved import SCHEMA
from tests.viz.browser import find_chromium
from tests.viz.driver import HEADING, SHIFT, mark, node_at, save

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium on PATH; set MECHKIT_CHROMIUM to the browser's path"
)


def test_nodes_are_grouped_renamed_and_ungrouped_by_mouse_and_keys(show, browser):
    document = small_payload()
    first, second = [n for n, node in document["mechkit"]["nodes"].items() if node["kind"] == "feature"][:2]
    page = show(document)
    page.click(mark(first))
    page.click(mark(second), SHIFT)
    assert page.run(HEADING) == "2 nodes"
    page.key("g")
    page.write("sums of 94")
    page.key("Enter")
    assert page.run(HEADING) == "sums of 94"
    page.key("e")
    page.write("the sum")
    page.key("Enter")
    assert page.run(HEADING) == "the sum"
    saved = save(page)
    assert {name: ids for name, *ids in saved["qParams"]["supernodes"]}["the sum"] == [first, second]
    assert sum(first in group for group in saved["qParams"]["supernodes"]) == 1
    page.click("#ungroup")
    assert page.run(HEADING) == "2 nodes"
    assert all(first not in group for group in save(page)["qParams"]["supernodes"])


def test_pinned_nodes_stay_in_the_subgraph_with_the_edges_between_them(show):
    document = small_payload()
    link = max(document["links"], key=lambda link: abs(link["weight"]))
    page = show(document)
    assert page.run("document.querySelectorAll('.box').length") == 0
    for end in ("source", "target"):
        page.run(f"location.hash = '#node=' + encodeURIComponent({json.dumps(link[end])})")
        page.run("new Promise((done) => setTimeout(done, 30))")
        page.key("p")
    assert page.run("document.querySelectorAll('.box').length") == 2
    assert page.run("document.querySelectorAll('.flow').length") == 1
    assert save(page)["qParams"]["pinnedIds"] == [link["source"], link["target"]]
    page.click(".box")
    page.key("p")
    assert page.run("document.querySelectorAll('.box').length") == 1
    page.click("#unpin-all")
    assert save(page)["qParams"]["pinnedIds"] == []


def test_a_label_is_edited_saved_and_read_back(show, tmp_path):
    document = small_payload()
    name = node_at(document, **{"class": "sum", "layer": 1})
    page = show(document)
    page.click(mark(name))
    page.key("e")
    page.write("sum is <b>94</b>")
    page.key("Enter")
    assert page.run(HEADING) == "sum is <b>94</b>"
    assert page.run("document.querySelector('#save-json').classList.contains('changed')")
    saved = save(page)
    assert not page.run("document.querySelector('#save-json').classList.contains('changed')")
    assert list(jsonschema.Draft7Validator(SCHEMA).iter_errors(saved)) == []
    expected = json.loads(json.dumps(document))
    next(node for node in expected["nodes"] if node["node_id"] == name)["clerp"] = "sum is <b>94</b>"
    assert saved == expected
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(saved))
    assert AttributionGraph.load(path).labels[name] == "sum is <b>94</b>"


def test_escape_leaves_a_label_as_it_was(show):
    document = small_payload()
    name = node_at(document, **{"class": "sum", "layer": 1})
    page = show(document)
    page.click(mark(name))
    before = page.run(HEADING)
    page.key("e")
    page.write("something else")
    page.key("Escape")
    assert page.run(HEADING) == before
    assert save(page) == document


def test_the_figure_is_saved_as_a_picture(show):
    page = show(small_payload())
    page.click("#save-png")
    data = page.saved(".png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000
