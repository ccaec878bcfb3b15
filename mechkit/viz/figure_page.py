"""A figure as a page: one HTML file with its script, some facts above and a table below, that makes no request.

>>> import plotly.graph_objects as go
>>> figure_page(go.Figure(), "Patching", [("clean", "35+59=")], ["site", "logits"], [["L0.resid_pre@2", "+21"]])[:15]
'<!doctype html>'
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""What the page may do: run what is in it, and load nothing."""

_STYLE = """
body { font: 14px/1.5 Inter, "Helvetica Neue", Helvetica, Arial, "DejaVu Sans", sans-serif; color: #1f2933;
  background: #fff; max-width: 1180px; margin: 0 auto; padding: 28px 32px 48px; }
h1 { font-size: 21px; font-weight: 600; margin: 0 0 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0 0 8px; }
dt { color: #5f6875; } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 8px 0 0; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 400; color: #5f6875; border-bottom: 1px solid #d5d9de; padding: 4px 14px 4px 0; }
td { text-align: right; padding: 3px 14px 3px 0; border-bottom: 1px solid #eef0f2; }
th:first-child, td:first-child { text-align: left; }
"""


def figure_page(
    figure: go.Figure,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    head: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> str:
    """HTML of a page with `title`, `facts` by name, the figure and, with a head, a table; all text is shown as text."""
    drawn = figure.to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False})
    table = _table(head, rows) if head else ""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><dl>{listed}</dl>\n{drawn}\n{table}</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
