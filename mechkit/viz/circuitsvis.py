"""CircuitsVis views on pages and in notebooks: its script once for all of them, tokens as text, no request.

CircuitsVis's own output loads its script from the network, swallows what follows it on a page, and reads tokens as
HTML. Here the views go as they are into one page, which works offline and holds what it is given:

    from circuitsvis.attention import attention_heads
    views_page("35+59=", [("Layer 0", attention_heads(patterns, tokens)), ("Layer 1", ...)])
    notebook([("Layer 0", attention_heads(patterns, tokens))])      # the last line of a cell
"""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mechkit.viz.offline import json_for_html, source_hash

DIGITS = 4
"""Significant digits of numbers."""
TOKENS = frozenset({"tokens", "prompt", "topKTokens"})
"""Props of tokens, which elements read as HTML unless they are drawn on a canvas; other props are shown as text."""
ON_CANVAS = frozenset({"AttentionHeads", "AttentionPattern"})
"""Elements that draw their tokens."""
STYLE = """
:root { color-scheme: light; }
body { font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  color: #1c222d; background: #fff; max-width: 1320px; margin: 0 auto; padding: 24px 32px 40px; }
h1 { font-size: 21px; font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; }
section > h2 { font-size: 14px; font-weight: 600; margin: 24px 0 6px; }
.AttentionPattern { max-width: 640px; }
"""


@dataclass(frozen=True)
class View:
    """One view: an element of CircuitsVis and what it shows."""

    element: str
    """Its name in CircuitsVis's script."""
    props: dict[str, Any]
    """What it shows, as JSON-able data."""

    @classmethod
    def of(cls, rendered: Any) -> "View":
        """What a function of CircuitsVis returned. Raises TypeError for anything else."""
        source = getattr(rendered, "cdn_src", None)
        found = re.search(r"import \{ render, (\w+) \} from", source) if isinstance(source, str) else None
        if found is None:
            raise TypeError(f"a view is what a function of circuitsvis returns, not {type(rendered).__name__}")
        start = source.index("{", source.index(f"{found[1]},\n", found.end()))  # type: ignore[union-attr]
        return cls(found[1], json.JSONDecoder().raw_decode(source, start)[0])  # type: ignore[arg-type]

    def safe(self) -> dict[str, Any]:
        """Its props with text that shows as text, numbers of a few digits, and null for what is no number."""
        as_html = frozenset() if self.element in ON_CANVAS else TOKENS
        return {key: _safe(value, key in as_html) for key, value in self.props.items()}


@dataclass(frozen=True)
class Notebook:
    """Views as the output of a notebook's cell: a frame of their own, which the notebook keeps."""

    page: str
    """The page in the frame."""
    height: int
    """Its height in pixels."""

    def _repr_html_(self) -> str:
        frame = f'width="100%" height="{self.height}" sandbox="allow-scripts" style="border: 0"'
        return f'<iframe srcdoc="{html.escape(self.page)}" {frame}></iframe>'


def views_page(title: str, views: Sequence[tuple[str, Any]]) -> str:
    """HTML of a page with each view under its heading; CircuitsVis's script stands in it once.

    `views` are pairs of a heading and what a function of CircuitsVis returned.
    Raises ImportError where CircuitsVis is not installed, TypeError for what is no view of it.
    """
    made = [View.of(view) for _, view in views]
    script, calls = bundle(), "".join(_call(i, view) for i, view in enumerate(made))
    parts = "".join(
        f'<section><h2>{html.escape(heading)}</h2><div id="view-{i}" class="{view.element}"></div></section>\n'
        for i, ((heading, _), view) in enumerate(zip(views, made, strict=True))
    )
    policy = (
        f"default-src 'none'; script-src {source_hash(script)} {source_hash(calls)} 'wasm-unsafe-eval'; "
        "style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f"{parts}<script>{script}</script>\n<script>{calls}</script>\n</body>\n</html>\n"
    )


def notebook(views: Sequence[tuple[str, Any]], title: str = "", height: int = 600) -> Notebook:
    """The views for a notebook, all in one frame; what is outside of it stays as it is."""
    return Notebook(views_page(title, views), height)


def bundle() -> str:
    """CircuitsVis's script, fit to stand in a page. Raises ImportError where it is not installed."""
    found = find_spec("circuitsvis")
    if found is None or not found.submodule_search_locations:
        raise ImportError("views of CircuitsVis need it installed: pip install circuitsvis")
    path = Path(found.submodule_search_locations[0]) / "dist" / "cdn" / "iife.js"
    script = path.read_text(encoding="utf-8").replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return re.sub(r"\n//# sourceMappingURL=.*", "", script)


def _call(i: int, view: View) -> str:
    """The line that draws a view; its data holds no sign that HTML reads."""
    return f'CircuitsVis.render("view-{i}", CircuitsVis.{view.element}, {json_for_html(view.safe())});\n'


def _safe(value: Any, as_html: bool) -> Any:
    if isinstance(value, dict):
        return {key: _safe(one, as_html) for key, one in value.items()}
    if isinstance(value, list):
        return [_safe(one, as_html) for one in value]
    if isinstance(value, str):
        return html.escape(value, quote=False) if as_html else value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
