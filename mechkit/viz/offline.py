"""Pages of one file that make no request: their shell, and text that cannot become anything but text.

The policy of a page allows exactly the style and the scripts written into it, by their hashes, and nothing else.

>>> page("A <b>title</b>", "<p>hello</p>", "p { margin: 0 }")[:15]
'<!doctype html>'
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any


def page(title: str, body: str, style: str, scripts: Sequence[str] = (), data: Any = None) -> str:
    """HTML of a page around `body`, which is HTML already; `data` is what its scripts find as JSON in `#payload`.

    Raises ValueError where `data` is not plain, finite JSON data.
    """
    held = "" if data is None else f'<script type="application/json" id="payload">{json_for_html(data)}</script>\n'
    written = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(style, scripts)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{body}\n{held}{written}</body>\n</html>\n"
    )


def policy(style: str, scripts: Sequence[str] = ()) -> str:
    """The Content-Security-Policy that allows this style and these scripts alone."""
    allowed = " ".join(source_hash(script) for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src {source_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def source_hash(source: str) -> str:
    """The policy's word for exactly this inline source; any other inline script or style stays inert."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def json_for_html(data: Any) -> str:
    """JSON that holds no sign that HTML reads. Raises ValueError for what is not plain, finite JSON data."""
    try:
        text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"the payload must be plain JSON data: {error}") from error
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """The text of a file of `viz/assets`."""
    return (files("mechkit.viz") / "assets" / name).read_text(encoding="utf-8")
