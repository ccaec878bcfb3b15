import http.server
import threading
from urllib.parse import quote

import pytest
from browser import find_chromium, probe
from graph_payloads import bare_payload, crowded_payload, evil_payload, large_payload, small_payload
from test_heatmap_png import decode

from mechkit.viz.graph_page import render_graph_page

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium on PATH; set MECHKIT_CHROMIUM to the browser's path"
)

MEASURE = """
const box = (item) => { const b = item.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
const boxes = (selector) => [...document.querySelectorAll(selector)].map(box);
const all = (selector) => [...document.querySelectorAll(selector)];
"""
LAYOUT = (
    MEASURE
    + """
return {
  ready: document.documentElement.dataset.ready, nodes: boxes('.node'), trays: boxes('.tray'),
  names: boxes('.column-name text'), rows: boxes('#row-names div'), labels: boxes('.label'), lit: boxes('.node.lit'),
  legends: boxes('.legend, .edge-tools'), edges: all('.edge.plain').length, page: document.documentElement.scrollWidth,
  cards: boxes('#figure-card, #panel, #tables .card, #header'),
  requests: performance.getEntriesByType('resource').length,
  heading: document.querySelector('#panel h2')?.textContent ?? null, plot: all('canvas.operand-plot').length,
  reading: document.querySelector('.reading')?.textContent, images: all('body img, #main b').length,
};
"""
)


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


def test_a_payload_with_only_what_it_must_have_is_a_page(tmp_path):
    payload = bare_payload()
    report = probe(render_graph_page(payload), tmp_path, LAYOUT, fragment="#node=f")
    assert report["seen"] == {"errors": [], "violations": []}
    assert (len(report["nodes"]), report["heading"], report["plot"]) == (len(payload["nodes"]), "f", 0)


HASHES = """
const answers = {};
for (const hash of ['#node=embed%400', '#node=gone', '#path=2', '#node=%E0%A4%A', '#path=1', '#path=9', '#nonsense']) {
  location.hash = hash;
  await new Promise((resolve) => setTimeout(resolve, 20));
  answers[hash] = document.querySelectorAll('.node.lit').length;
}
return {answers};
"""


def test_a_hash_selects_what_it_names_and_nothing_where_that_is_not_there(tmp_path):
    report = probe(render_graph_page(small_payload()), tmp_path, HASHES)
    assert report["seen"] == {"errors": [], "violations": []}
    lit = report["answers"]
    named = ("#node=embed%400", "#path=2", "#path=1")
    assert all(lit[name] > 1 for name in named)
    assert not any(count for name, count in lit.items() if name not in named)


@pytest.mark.parametrize(
    ("make", "width"), [(small_payload, 1000), (large_payload, 1280), (evil_payload, 1280), (crowded_payload, 1920)]
)
def test_every_node_is_drawn_and_nothing_overlaps(make, width, tmp_path):
    payload = make()
    report = probe(render_graph_page(payload), tmp_path, LAYOUT, width=width)
    assert report["seen"] == {"errors": [], "violations": []}
    assert report["ready"] == "yes"
    assert report["requests"] == 0
    assert len(report["nodes"]) == len(payload["nodes"])
    assert all(x1 - x0 >= 7 for x0, _, x1, _ in report["nodes"])
    assert 40 <= report["edges"] <= 150
    assert report["images"] == 0
    for kind in ("nodes", "trays", "names", "rows", "legends", "cards"):
        assert overlaps(report[kind]) == [], kind
    assert report["page"] <= width


def test_the_hash_selects_a_node_and_its_names_cover_no_lit_mark(tmp_path):
    payload = small_payload()
    node = next(node for node in payload["nodes"] if node["plot"] and node["check"])
    report = probe(render_graph_page(payload), tmp_path, LAYOUT, fragment="#node=" + quote(node["id"]))
    assert report["seen"] == {"errors": [], "violations": []}
    assert report["heading"] == node["label"]
    assert report["plot"] == 1
    assert report["reading"].startswith("This prompt, a = 35, b = 59: ")
    assert report["labels"]
    assert overlaps(report["labels"] + report["lit"]) == []


POINT = """
const canvas = document.querySelector('canvas.operand-plot');
const reading = () => document.querySelector('.reading').textContent;
const b = canvas.getBoundingClientRect();
const side = b.width - 40;
const point = (x, y) => {
  const at = {clientX: b.left + 36 + x * side, clientY: b.top + 6 + y * side};
  canvas.dispatchEvent(new PointerEvent('pointermove', at));
  return reading();
};
const rest = reading();
return {rest, corner: point(0.005, 0.005), middle: point(0.595, 1 - 0.355), outside: point(-0.1, 0.5)};
"""


def test_the_operand_plot_reads_the_value_under_the_pointer(tmp_path):
    payload = small_payload()
    node = next(node for node in payload["nodes"] if node["plot"] and node["class"] == "operand")
    values = decode(node["plot"]["png"]) / 255 * node["plot"]["max"]
    assert values[35, 59] > 2 * values[59, 35]
    fragment = "#node=" + quote(node["id"])
    report = probe(render_graph_page(payload), tmp_path, POINT, fragment=fragment)

    def value(text: str, start: str) -> float:
        assert text.startswith(start)
        return float(text.removeprefix(start))

    # three digits are shown
    assert value(report["rest"], "This prompt, a = 35, b = 59: ") == pytest.approx(values[35, 59], rel=5e-3)
    assert value(report["middle"], "a = 35, b = 59: ") == pytest.approx(values[35, 59], rel=5e-3)
    assert value(report["corner"], "a = 99, b = 0: ") == pytest.approx(values[99, 0], rel=5e-3)
    assert report["outside"] == report["rest"]


CONTROLS = (
    MEASURE
    + """
const says = () => ({
  heading: document.querySelector('#panel h2')?.textContent ?? null,
  lit: all('.node.lit').map((item) => item.dataset.id), off: all('.node.off').length,
  edges: all('#edges .edge').length, litEdges: all('#edges .lit').length, hash: decodeURIComponent(location.hash),
});
const press = (name) => new KeyboardEvent('keydown', {key: name, bubbles: true, cancelable: true});
const key = (target, name) => target.dispatchEvent(press(name));
const click = (target) => target.dispatchEvent(new MouseEvent('click', {bubbles: true}));
const report = {start: says()};
const mark = all('.node').find((item) => item.dataset.id === '%(id)s');
click(mark); report.node = says();
click(document.querySelector('#panel .rows .row')); report.linked = says();
key(document.body, 'Escape'); report.escaped = says();
click(document.querySelector('#panel .path')); report.path = says();
click(document.querySelector('.backdrop')); report.background = says();
mark.focus(); key(mark, 'Enter'); report.entered = says();
click(document.querySelector('.legend')); report.filtered = says();
click(document.querySelector('.legend')); report.restored = says();
key(document.body, 'Escape');
const before = document.activeElement.dataset.id;
key(document.activeElement, 'ArrowDown'); report.moved = [before, document.activeElement.dataset.id];
const slider = document.querySelector('#n-edges');
slider.value = 0; slider.dispatchEvent(new Event('input')); report.none = says();
slider.value = 1; slider.dispatchEvent(new Event('input')); report.all = says();
report.tabStops = all('.node[tabindex="0"]').length;
return report;
"""
)


def test_every_control_does_what_it_says(tmp_path):
    payload = small_payload()
    node = next(node for node in payload["nodes"] if node["class"] == "sum" and node["layer"] == 1)
    edges = [edge for edge in payload["edges"] if node["id"] in (edge["source"], edge["target"])]
    seen = probe(render_graph_page(payload), tmp_path, CONTROLS % {"id": node["id"]})
    assert seen["seen"] == {"errors": [], "violations": []}
    assert (seen["start"]["heading"], seen["start"]["lit"], seen["start"]["edges"]) == (None, [], 64)
    assert seen["node"]["heading"] == node["label"]
    assert seen["node"]["hash"] == f"#node={node['id']}"
    assert seen["node"]["litEdges"] == len(edges)
    ends = {edge[end] for edge in edges for end in ("source", "target")}
    assert set(seen["node"]["lit"]) == ends | {node["id"]}
    strongest = max((edge for edge in edges if edge["target"] == node["id"]), key=lambda edge: abs(edge["weight"]))
    assert seen["linked"]["hash"] == f"#node={strongest['source']}"
    assert (seen["escaped"]["heading"], seen["escaped"]["hash"], seen["escaped"]["lit"]) == (None, "", [])
    assert set(seen["path"]["lit"]) == set(payload["pathways"][0]["nodes"])
    assert seen["path"]["heading"] == payload["pathways"][0]["text"]
    assert seen["background"]["lit"] == []
    assert seen["entered"]["heading"] == node["label"]
    n_sum = sum(item["class"] == "sum" for item in payload["nodes"])
    assert (seen["filtered"]["off"], seen["filtered"]["heading"]) == (n_sum, None)
    assert seen["restored"]["off"] == 0
    assert seen["moved"][0] != seen["moved"][1]
    assert (seen["none"]["edges"], seen["all"]["edges"]) == (0, 800)
    assert seen["tabStops"] == 1


@pytest.fixture
def server():
    """A local web server that counts what asks for it."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", hits
        running.shutdown()
        thread.join()


def test_the_page_makes_no_request_even_where_its_markup_asks_for_one(server, tmp_path):
    address, hits = server
    payload = small_payload()
    payload["title"] = payload["nodes"][0]["label"] = f"<img src={address}/payload>"
    page = render_graph_page(payload)
    asks = page.replace('<header id="header">', f'<header id="header"><img src="{address}/markup">')
    blocked = probe(asks, tmp_path, LAYOUT)
    assert hits == []
    assert blocked["seen"]["violations"] == [f"{address}/markup"]
    probe(asks.replace("default-src 'none';", "").replace("img-src data:;", ""), tmp_path, LAYOUT)
    assert hits == ["/markup"]
