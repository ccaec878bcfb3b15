"""The page of a prompt: its tokens coloured by a feature that the reader chooses, and the features of each token.

It makes no request. The payload is plain data:

>>> prompt_page({
...     "about": "sae of model at hook", "tokens": ["a", " b"], "errors": [0.1, 0.2], "counts": [0, 1], "effect": None,
...     "features": [{"id": 12, "label": "bees", "activations": [0.0, 2.5]}], "tops": [[], [(12, 2.5, 1.0, None)]],
... })[:15]
'<!doctype html>'
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mechkit.viz.offline import asset, page
from mechkit.viz.tokens_html import bar, coloured, facts, number, section, shade, shades_css, signed, table, token_word

LONGEST = 48
"""Signs of a label shown on a button."""


def prompt_page(payload: Mapping[str, Any]) -> str:
    """HTML of the page that shows `payload`, self-contained and safe to open with no network.

    `features` are in the order in which they are listed, the first one chosen; `effect` is None, or the metric's name
    and unit. Raises KeyError where a key of the example is missing.
    """
    tokens, features = payload["tokens"], payload["features"]
    labels = {one["id"]: one["label"] for one in features}
    mains = section("By token", _by_token(payload, labels), _how_to_read(payload))
    asides = section("Features", _list(payload), "Choose one to colour the prompt by it.") if features else ""
    body = (
        f'<header><p class="kicker">{escape(payload["about"])}</p>{_coloured_prompt(tokens, features)}</header>\n'
        f'<main class="columns"><div>{mains}</div><aside>{asides}</aside></main>\n'
        f"<footer>{facts(payload.get('made', []))}</footer>"
    )
    title = "".join(tokens)[:80]
    data = {"features": {str(one["id"]): _shades(one, tokens) for one in features}}
    return page(f"{title} · features", body, asset("features.css") + shades_css(), [asset("prompt.js")], data)


def _coloured_prompt(tokens: Sequence[str], features: Sequence[Mapping[str, Any]]) -> str:
    if not features:
        return f'<p class="text prompt">{coloured(tokens, [0.0] * len(tokens), 1.0)}</p><p>No feature fires.</p>'
    first = features[0]
    text = coloured(tokens, first["activations"], _most(first))
    return (
        f'<p class="text prompt">{text}</p><p class="legend"><span>coloured by</span>'
        f'<strong id="chosen">{escape(_name(first))}</strong><span id="chosen-most">{_scale(first)}</span></p>'
    )


def _shades(one: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """What the script needs to colour the prompt by a feature."""
    titles = [f"{token}: {number(value)}" for token, value in zip(tokens, one["activations"], strict=True)]
    shades = [shade(value, _most(one)) for value in one["activations"]]
    return {"name": _name(one), "most": _scale(one), "shades": shades, "titles": titles}


def _most(one: Mapping[str, Any]) -> float:
    return one.get("max") or max(map(abs, one["activations"]))


def _scale(one: Mapping[str, Any]) -> str:
    here = max(one["activations"], key=abs)
    known = one.get("max")
    return f"greatest here {number(here)}" + (f", in the corpus {number(known)} (full colour)" if known else "")


def _name(one: Mapping[str, Any]) -> str:
    return f"feature {one['id']}" + (f": {one['label']}" if one["label"] else "")


def _how_to_read(payload: Mapping[str, Any]) -> str:
    missed = "Missed: length of what the SAE leaves out, over that of what it reads. "
    if payload["effect"] is None:
        return missed + "Features by activation."
    metric, unit = payload["effect"]
    return missed + f"Features by effect: what {metric} ({unit}) changes by without that firing."


def _by_token(payload: Mapping[str, Any], labels: Mapping[int, str]) -> str:
    rows = []
    most = _greatest_effect(payload)
    each = zip(payload["tokens"], payload["errors"], payload["counts"], payload["tops"], strict=True)
    for pos, (token, error, count, top) in enumerate(each):
        missed = f"{bar(error, 1.0)} {100 * error:.0f} %"
        chips = "".join(_chip(one, labels, most) for one in top)
        rows.append([str(pos), token_word(token), missed, f"{count}", f'<div class="chips">{chips}</div>'])
    what = "activation" if payload["effect"] is None else "effect"
    return table(["", "token", "missed", "firing", f"features, {what}"], rows, "by-token")


def _greatest_effect(payload: Mapping[str, Any]) -> float:
    return max((abs(one.get("effect") or 0.0) for one in payload["features"]), default=0.0)


def _chip(one: Sequence[Any], labels: Mapping[int, str], most: float) -> str:
    id, activation, share, effect = one
    label = escape(labels.get(id, "")[:LONGEST])
    shown = number(activation) if effect is None else signed(effect, most)
    said = f"activation {number(activation)}, {100 * share:.0f} % of what is rebuilt"
    words = f"<b>{int(id)}</b> {label}" if label else f"<b>{int(id)}</b>"
    return f'<button class="chip" data-feature="{int(id)}" title="{said}">{words} <small>{shown}</small></button>'


def _list(payload: Mapping[str, Any]) -> str:
    """The features in order, with where and how strongly each fires."""
    rows, with_effect, most = [], payload["effect"] is not None, _greatest_effect(payload)
    for number_of, one in enumerate(payload["features"]):
        values = one["activations"]
        at = max(range(len(values)), key=lambda i: abs(values[i]))
        pressed = "true" if number_of == 0 else "false"
        button = f'<button data-feature="{int(one["id"])}" aria-pressed="{pressed}">{int(one["id"])}</button>'
        words = escape(one["label"][:LONGEST]) or f"at {token_word(payload['tokens'][at])}"
        rows.append([button, words, number(values[at]), *([signed(one["effect"], most)] if with_effect else [])])
    head = ["feature", "label, or where", "greatest", *(["effect"] if with_effect else [])]
    return table(head, rows, "list")
