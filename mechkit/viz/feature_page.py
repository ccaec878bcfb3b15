"""The page of one feature: where it fires, how strongly, what it promotes, what is near it, what it does.

It makes no request and runs no script. The payload is plain data; keys but those of the example may be missing:

>>> feature_page({
...     "id": 12, "about": "sae of model at hook", "labels": [], "facts": [("fires on", "1 %")],
...     "bands": [{"name": "Strongest", "examples": [
...         {"activation": 2.5, "tokens": ["a", " b"], "activations": [None, 2.5], "peak": 1, "source": "a.txt:0"}]}],
... })[:15]
'<!doctype html>'
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mechkit.viz.offline import asset, page
from mechkit.viz.tokens_html import bar, coloured, facts, number, section, shades_css, signed, table, token_word

BINS_WIDTH, BINS_HEIGHT = 300, 96
"""Size of the histogram's drawing, in its own units."""


def feature_page(payload: Mapping[str, Any]) -> str:
    """HTML of the page that shows `payload`, self-contained and safe to open with no network.

    Raises KeyError where one of `id`, `about`, `labels`, `facts` and `bands` is missing.
    """
    asides = [_histogram(payload.get("histogram")), _logits(payload), _near(payload), _together(payload)]
    mains = [_effect(payload.get("effect")), *_bands(payload["bands"], payload.get("max"))]
    body = (
        f"<header>{_heading(payload)}{facts(payload['facts'], 'key')}</header>\n"
        f'<main class="columns"><div>{"".join(mains)}</div><aside>{"".join(asides)}</aside></main>\n'
        f"<footer>{_quality(payload)}{facts(payload.get('made', []))}</footer>"
    )
    return page(f"Feature {payload['id']}", body, asset("features.css") + shades_css())


def _heading(payload: Mapping[str, Any]) -> str:
    labels = payload["labels"]
    first = escape(labels[0]["text"]) if labels else '<span class="none">no label yet</span>'
    more = "".join(f"<li>{escape(one['text'])}{source_mark(one)}</li>" for one in labels[1:])
    mark = source_mark(labels[0]) if labels else ""
    return (
        f'<p class="kicker">{escape(payload["about"])}</p>'
        f'<h1><span class="id">Feature {int(payload["id"])}</span> {first}{mark}</h1>'
        f"{f'<ul class=labels>{more}</ul>' if more else ''}"
    )


def source_mark(label: Mapping[str, Any]) -> str:
    """Who called a feature so; what a program proposed says so."""
    words = f"{label['source']}, automatic" if label["automatic"] else str(label["source"])
    return f' <small class="mark">{escape(words)}</small>'


def _bands(bands: Sequence[Mapping[str, Any]], most: float | None) -> list[str]:
    if not any(band["examples"] for band in bands):
        return [section("Examples", '<p class="empty">It fires nowhere in this corpus.</p>')]
    every = [one["activation"] for band in bands for one in band["examples"]]
    most = most or max(map(abs, every))
    return [
        section(band["name"], "".join(_example(one, most) for one in band["examples"]), band.get("note", ""))
        for band in bands
        if band["examples"]
    ]


def _example(one: Mapping[str, Any], most: float) -> str:
    text, source = coloured(one["tokens"], one["activations"], most, one["peak"]), escape(one["source"])
    return (
        f'<div class="example"><span class="value">{number(one["activation"])}</span>'
        f'<p class="text">{text}</p><span class="source" title="{source}">{source}</span></div>'
    )


def _histogram(bins: Mapping[str, Sequence[float]] | None) -> str:
    if not bins or not bins["n"]:
        return ""
    most, wide = max(bins["n"]), BINS_WIDTH / len(bins["n"])
    rects = []
    for i, (start, n) in enumerate(zip(bins["from"], bins["n"], strict=True)):
        tall = BINS_HEIGHT * n / most
        where = f'x="{i * wide:.1f}" y="{BINS_HEIGHT - tall:.1f}" width="{max(1, wide - 1.5):.1f}" height="{tall:.1f}"'
        rects.append(f'<rect class="above" {where}><title>from {number(start)}: {n:,} firings</title></rect>')
    shown = sorted({0, len(bins["n"]) // 2, len(bins["n"]) - 1})
    marks = "".join(
        f'<text x="{i * wide:.1f}" y="{BINS_HEIGHT + 14}" text-anchor="{"middle" if i else "start"}">'
        f"{number(bins['from'][i])}</text>"
        for i in shown
    )
    line = f'<line x1="0" x2="{BINS_WIDTH}" y1="{BINS_HEIGHT}" y2="{BINS_HEIGHT}"/>'
    size = f'viewBox="0 0 {BINS_WIDTH} {BINS_HEIGHT + 18}" role="img" aria-label="Histogram of strengths"'
    drawn = f'<svg class="bins" {size}>{"".join(rects)}{line}{marks}</svg>'
    return section("Strengths", drawn, f"Firings by strength; a bin is half an octave. Highest bin: {most:,}.")


def _logits(payload: Mapping[str, Any]) -> str:
    promoted, suppressed = payload.get("promoted") or [], payload.get("suppressed") or []
    if not promoted:
        return ""
    most = max(abs(logit) for _, logit in [*promoted, *suppressed])
    side = lambda rows: table(  # noqa: E731
        ["token", "", "logit"],
        [[token_word(text), bar(logit, most), f"{logit:+.2f}"] for text, logit in rows],
        "narrow",
    )
    both = f'<div class="pair"><div>{side(promoted)}</div><div>{side(suppressed)}</div></div>'
    return section("Promotes and suppresses", both, "Logits for an activation of 1 and a last norm of scale 1.")


def _near(payload: Mapping[str, Any]) -> str:
    rows = payload.get("similar") or []
    note = "Features with the most similar decoder direction."
    return section("Neighbours", _features(rows, "cosine"), note) if rows else ""


def _together(payload: Mapping[str, Any]) -> str:
    rows = payload.get("cofiring") or []
    note = "Features that fire on the same tokens: shared tokens over tokens of either."
    return section("Fires together with", _features(rows, "overlap"), note) if rows else ""


def _features(rows: Sequence[tuple[int, float, str]], measure: str) -> str:
    named = any(label for _, _, label in rows)
    head = ["feature", *(["label"] if named else []), measure]
    cells = [[str(int(id)), *([escape(label)] if named else []), f"{value:.2f}"] for id, value, label in rows]
    return table(head, cells, "features" if named else "")


def _effect(effect: Mapping[str, Any] | None) -> str:
    if not effect:
        return ""
    most = max((abs(change) for _, _, change in effect["rows"]), default=0.0)
    rows = [
        [f'<span class="text">{escape(prompt)}</span>', number(before), bar(change, most), signed(change, most)]
        for prompt, before, change in effect["rows"]
    ]
    head = ["prompt", effect["metric"], "", f"change, {effect['unit']}"]
    return section("Effect", table(head, rows, "wide"), effect["how"])


def _quality(payload: Mapping[str, Any]) -> str:
    found = payload.get("quality") or []
    return f"<h2>The SAE on this corpus</h2>{facts(found, 'key small')}" if found else ""
