"""Headless Chromium for the page's tests: run a page with a probe script, get back what the probe saw."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=3000",
)
WATCH = """
window.seen = {errors: [], violations: []};
addEventListener('error', (event) => seen.errors.push(String(event.message)));
addEventListener('unhandledrejection', (event) => seen.errors.push(String(event.reason)));
addEventListener('securitypolicyviolation', (event) => seen.violations.push(event.blockedURI));
window.alert = () => seen.errors.push('alert was called');
"""
REPORT = """
addEventListener('load', () => setTimeout(async () => {
  const report = {seen, ...(await (async () => { %s })())};
  const out = document.createElement('pre');
  out.id = 'report';
  out.textContent = JSON.stringify(report);
  document.body.append(out);
}, 200));
"""


def find_chromium() -> str | None:
    return os.environ.get("MECHKIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def probe(page: str, folder: Path, script: str, *, width: int = 1280, fragment: str = "", extra=()) -> dict:
    """What `script` (a JavaScript function body, may await) returns in `page`, with `seen` beside it.

    The copy of the page allows the two scripts added here by their hashes and nothing else.
    """
    first, last = WATCH, REPORT % script
    hashes = " ".join(_hash(source) for source in (first, last))
    page = page.replace("script-src ", f"script-src {hashes} ", 1)
    page = page.replace("<title>", f"<script>{first}</script><title>", 1)
    page = page.replace("</body>", f"<script>{last}</script></body>", 1)
    path = folder / "probe.html"
    path.write_text(page, encoding="utf-8")
    flags = [*FLAGS, *extra, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1000"]
    command = [find_chromium(), *flags, "--dump-dom", path.as_uri() + fragment]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    report = re.search(r'<pre id="report">(.*?)</pre>', dump, re.S)
    assert report, f"the page's script did not finish:\n{dump[-2000:]}"
    return json.loads(html.unescape(report[1])) | {"dump": dump}


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
