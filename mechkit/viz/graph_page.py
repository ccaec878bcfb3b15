"""The attribution-graph page: one HTML file that holds its own style, script and data.

The page makes no request (its Content-Security-Policy forbids every one) and treats all text of the document as text.
The document is a graph's file (`mechkit.graphs.files.export.graph_document`, or another tool's file that
`mechkit.graphs.files.foreign.completed` has filled in); the page saves the same document with its edits.

    render_graph_page(graph_document(graph))[:15]  # '<!doctype html>'
"""

import html
import re
from collections.abc import Mapping

from mechkit.viz.offline import asset, json_for_html, policy

SCRIPTS = (
    *("dom.js", "document.js", "layout.js", "figure.js", "edges.js", "subgraph.js", "search.js", "plot.js", "notes.js"),
    *("panel.js", "picture.js", "graph.js"),
)


def render_graph_page(document: Mapping) -> str:
    """HTML of the page that shows `document`, self-contained and safe to open with no network.

    Raises ValueError where the document is not plain, finite JSON data.
    """
    style = asset("graph.css")
    script = "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in SCRIPTS) + "\n})();"
    parts = {
        "title": html.escape(str(document["metadata"]["prompt"])),
        "policy": policy(style, [script]),
        "style": style,
        "payload": json_for_html(document),
        "script": script,
    }
    # One pass, so that a placeholder written inside the document stays text.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("graph.html"))
