"""Pieces of pages about features, as HTML: tokens coloured by a strength, tables, counts. All text comes out as text.

>>> coloured(["a", "<b>"], [0.0, 2.0], 2.0)
'<span class="t kept" title="a: 0">a</span><wbr><span class="t kept p20" title="&lt;b&gt;: 2">&lt;b&gt;</span>'
"""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

N_SHADES = 20
"""Shades of a colour; a policy that allows no inline style needs a class for each."""


def shades_css() -> str:
    """Rules for the classes `p1` to `p20` (above 0) and `n1` to `n20` (below 0)."""
    steps = [(i, round(0.08 + 0.72 * i / N_SHADES, 3)) for i in range(1, N_SHADES + 1)]
    return "".join(
        f".{sign}{i} {{ background: rgb(var(--{name}) / {alpha}); }}\n"
        for sign, name in (("p", "above"), ("n", "below"))
        for i, alpha in steps
    )


def shade(value: float | None, most: float) -> str:
    """The class of a value on a scale that ends at `most`; empty for 0 and where there is none."""
    if value is None or not math.isfinite(value) or value == 0 or most <= 0:
        return ""
    level = max(1, min(N_SHADES, math.ceil(N_SHADES * abs(value) / most)))
    return f"{'p' if value > 0 else 'n'}{level}"


def coloured(tokens: Sequence[str], values: Sequence[float | None], most: float, peak: int | None = None) -> str:
    """Tokens one after the other, each with its strength as colour and in its title; the peak is framed."""
    spans = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        kept = "" if token[:1].isspace() else "kept"
        classes = " ".join(filter(None, ["t", kept, shade(value, most), "peak" if i == peak else ""]))
        spans.append(f'<span class="{classes}" title="{title(token, value)}">{seen(token)}</span>')
    return joined(tokens, spans)


def joined(tokens: Sequence[str], spans: Sequence[str]) -> str:
    """The tokens' HTML in a row; lines end at spaces and beside signs, not inside a word or before a stop."""
    ends = [False, *(_may_part(a, b) for a, b in pairwise(tokens))]
    return "".join(f"<wbr>{span}" if end else span for end, span in zip(ends, spans, strict=True))


def _may_part(left: str, right: str) -> bool:
    """Whether a line may end between two tokens that no space parts."""
    if not left or not right or right[0] in " .,;:?!)]}":
        return False
    return not (left[-1].isalnum() and right[0].isalnum())


def title(token: str, value: float | None) -> str:
    """What hovering over a token says."""
    return escape(f"{token}: {'' if value is None else number(value)}")


def seen(token: str) -> str:
    """A token in running text, with line ends and tabs made visible."""
    return escape(token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥"))


def token_word(token: str) -> str:
    """A token by itself: a space in front of it as a dot, which tells " a" from "a"."""
    dotted = token.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")
    n = len(dotted) - len(dotted.lstrip(" "))
    return f'<code><i class="space">{"·" * n}</i>{escape(dotted[n:])}</code>'


def number(value: float | None) -> str:
    """A number to three digits, as a reader writes it."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def signed(value: float, most: float) -> str:
    """A change with its sign, to as many decimals as give the greatest of its kind, `most`, three digits; 0 below."""
    decimals = 0 if most <= 0 or not math.isfinite(most) else max(0, min(9, 2 - math.floor(math.log10(most))))
    shown = f"{value:+,.{decimals}f}"
    return shown if any(digit in "123456789" for digit in shown) else "0"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; the first column stands left, the others right."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def bar(value: float, most: float) -> str:
    """A bar as long as a value's share of `most`, coloured by its sign."""
    width = 0 if most <= 0 or not math.isfinite(value) else 60 * min(1, abs(value) / most)
    kind = "below" if value < 0 else "above"
    drawn = f'<rect class="{kind}" width="{width:.1f}" height="8"/>'
    return f'<svg class="bar" viewBox="0 0 60 8" width="60" height="8" aria-hidden="true">{drawn}</svg>'


def facts(pairs: Sequence[tuple[str, str]], kind: str = "facts") -> str:
    """Names and values, as text."""
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="{kind}">{listed}</dl>'


def section(heading: str, body: str, note: str = "") -> str:
    """A part of a page under its heading, with a line on how to read it."""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{said}{body}</section>"
