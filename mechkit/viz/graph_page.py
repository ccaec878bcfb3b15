"""The attribution-graph page: one HTML file that holds its own style, script and data.

The page makes no request (its Content-Security-Policy forbids every one) and treats all text of the
payload as text. The payload is plain JSON-able data; every key but the four below may be missing:

>>> page = render_graph_page({
...     "title": "35+59=",
...     "tokens": ["35", "+", "59", "="],
...     "nodes": [{"id": "token@0", "kind": "token", "layer": -1, "pos": 0, "label": "35"},
...               {"id": "94", "kind": "logit", "layer": 0, "pos": 3, "label": "94"}],
...     "edges": [{"source": "token@0", "target": "94", "weight": 0.53}],
... })
>>> page.startswith("<!doctype html>")
True
"""

import html
import math
import re

from mechkit.viz.offline import asset, json_for_html, policy

KINDS = ("feature", "error", "token", "position", "bos", "bias", "logit")
SCRIPTS = ("dom.js", "layout.js", "figure.js", "plot.js", "panel.js", "graph.js")


def render_graph_page(payload: dict) -> str:
    """HTML of the page that shows `payload`, self-contained and safe to open with no network.

    Raises ValueError where the payload contradicts itself: a key missing, ids that repeat, an edge to a
    node that is not there, a position outside the tokens, a number that is not finite.
    """
    _check(payload)
    style = asset("graph.css")
    script = "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in SCRIPTS) + "\n})();"
    parts = {
        "title": html.escape(str(payload["title"])),
        "policy": policy(style, [script]),
        "style": style,
        "payload": json_for_html(payload),
        "script": script,
    }
    # One pass, so that a placeholder written inside the payload stays text.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("graph.html"))


def _check(payload: dict) -> None:
    missing = [key for key in ("title", "tokens", "nodes", "edges") if key not in payload]
    if missing:
        raise ValueError(f"the payload has no {', '.join(map(repr, missing))}; it needs title, tokens, nodes, edges")
    n_layers = _n_layers(payload)
    seen: set[str] = set()
    for node in payload["nodes"]:
        _check_node(node, len(payload["tokens"]), n_layers)
        if node["id"] in seen:
            raise ValueError(f"two nodes are called '{node['id']}'; ids must be unique")
        seen.add(node["id"])
    _check_links(payload, seen)
    _check_finite(payload, "payload")


def _check_links(payload: dict, known: set[str]) -> None:
    for edge in payload["edges"]:
        for end in ("source", "target"):
            if edge[end] not in known:
                raise ValueError(f"an edge's {end} is '{edge[end]}', which is not a node of the graph")
    for pathway in payload.get("pathways") or []:
        strangers = [name for name in pathway.get("nodes") or [] if name not in known]
        if strangers:
            raise ValueError(f"the pathway '{pathway.get('text')}' names '{strangers[0]}', not a node of the graph")


def _n_layers(payload: dict) -> int:
    return payload.get("n_layers") or max((node["layer"] for node in payload["nodes"]), default=0)


def _check_node(node: dict, n_tokens: int, n_layers: int) -> None:
    name = node["id"]
    if node["kind"] not in KINDS:
        raise ValueError(f"node '{name}' is of kind '{node['kind']}'; kinds are {', '.join(KINDS)}")
    if not -1 <= node["layer"] <= n_layers:
        raise ValueError(f"node '{name}' is in layer {node['layer']}; layers here are -1 to {n_layers}")
    pos = node.get("pos")
    if pos is not None and not 0 <= pos < n_tokens:
        raise ValueError(f"node '{name}' is at position {pos}; the prompt has {n_tokens} tokens")
    plot = node.get("plot")
    if plot and not plot["png"].startswith("data:image/png;base64,"):
        raise ValueError(f"the plot of node '{name}' must be a PNG data URI; see heatmap_png.grey_png")


def _check_finite(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; the page needs finite numbers, or null where there is none")
