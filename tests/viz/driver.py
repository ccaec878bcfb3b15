"""A page in headless Chromium, driven as a user does: real keys, clicks and time, and a record of what it asks for.

Speaks the DevTools protocol over the browser's pipe: no port, no package.
"""

import base64
import fcntl
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.viz.browser import FLAGS, find_chromium

KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("", 9), " ": (" ", 32)}
KEYS |= {"ArrowLeft": ("", 37), "ArrowUp": ("", 38), "ArrowRight": ("", 39), "ArrowDown": ("", 40)}
SHIFT = 8
PATIENCE = 30.0
"""Seconds to wait for any one answer."""


def _pipe() -> list[int]:
    """Both ends of a pipe, numbered above those that the browser will have."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends]
    for end in ends:
        os.close(end)
    return high


class Browser:
    """A running Chromium."""

    def __init__(self, folder: Path) -> None:
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        to_read, self.out = _pipe()
        self.into, to_write = _pipe()
        flags = [flag for flag in FLAGS if not flag.startswith("--virtual-time")]
        command = [str(find_chromium()), *flags, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]

        def connect() -> None:
            """Chromium reads commands from descriptor 3 and answers on 4."""
            os.dup2(to_read, 3)
            os.dup2(to_write, 4)

        self.process = subprocess.Popen(
            [*command, "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.number, self.events = b"", 0, []
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def call(self, method: str, session: str | None = None, **params) -> dict:
        """The browser's answer to one command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {} if session is None else {"sessionId": session}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def receive(self) -> dict:
        """The next message."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], PATIENCE)
            assert ready, f"no answer from the browser in {PATIENCE:g} s"
            data = os.read(self.into, 1 << 20)
            assert data, "the browser has gone"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def close(self) -> None:
        """End it."""
        os.close(self.out)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.into)


class Page:
    """One page of the browser."""

    def __init__(self, browser: Browser, width: int, height: int) -> None:
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = attached["sessionId"]
        browser.events.clear()
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method: str, **params) -> dict:
        """The answer to a command of this page."""
        return self.browser.call(method, self.session, **params)

    def resize(self, width: int, height: int) -> None:
        """Another size of the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, path: Path, fragment: str = "") -> float:
        """Open a file with the network off and wait until its script has drawn it; seconds that took."""
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", **offline)
        started = time.monotonic()
        self.call("Page.navigate", url=path.as_uri() + fragment)
        self.wait("document.documentElement?.dataset.ready === 'yes'")
        self.frame()
        return time.monotonic() - started

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript condition holds."""
        until = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never came: {condition}"
            time.sleep(0.01)

    def frame(self) -> None:
        """Wait until what has changed is on the screen."""
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def key(self, name: str, modifiers: int = 0) -> None:
        """Press one key."""
        text, code = KEYS.get(name, (name, 0))
        pressed = {"key": name, "modifiers": modifiers, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)
        self.frame()

    def write(self, text: str) -> None:
        """Write text where the focus is."""
        for letter in text:
            self.key(letter)

    def click(self, selector: str, modifiers: int = 0) -> None:
        """Click the middle of the first element that the selector finds."""
        x, y = self.middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            at = {"x": x, "y": y, "modifiers": modifiers}
            more = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **at, **more)
        self.frame()

    def hover(self, selector: str) -> None:
        """Move the pointer over the middle of an element."""
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.frame()

    def middle(self, selector: str) -> list[float]:
        """The middle of an element, scrolled into view."""
        return self.run(f"""(() => {{
            const item = document.querySelector({json.dumps(selector)});
            item.scrollIntoView({{block: "center", inline: "nearest"}});
            const b = item.getBoundingClientRect();
            return [b.left + b.width / 2, b.top + b.height / 2];
        }})()""")

    def screenshot(self, path: Path) -> None:
        """Write what can be seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    @property
    def troubles(self) -> list[str]:
        """Exceptions, errors and refused requests so far."""
        self.run("0")
        found = []
        for event in self.browser.events:
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """What the page asked any server for, its own file and data inside it apart."""
        self.run("0")
        sent = [
            e["params"]["request"]["url"] for e in self.browser.events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith(("file:", "data:", "blob:"))]

    def saved(self, ending: str) -> Path:
        """The file that the page has just saved."""
        until = time.monotonic() + PATIENCE
        while True:
            found = [path for path in self.browser.downloads.iterdir() if path.suffix == ending]
            if found and not list(self.browser.downloads.glob("*.crdownload")):
                return max(found, key=lambda path: path.stat().st_mtime_ns)
            assert time.monotonic() < until, f"no {ending} file was saved"
            self.run("new Promise((done) => setTimeout(done, 20))")

    def close(self) -> None:
        """Close the page."""
        self.browser.call("Target.closeTarget", targetId=self.target)


@contextmanager
def opened(
    browser: Browser, path: Path, *, width: int = 1440, height: int = 1000, fragment: str = ""
) -> Iterator[Page]:
    """A page that is closed afterwards."""
    page = Page(browser, width, height)
    try:
        page.open(path, fragment)
        yield page
    finally:
        page.close()


# --- what the graph page's tests ask

LIT = "[...document.querySelectorAll('.node.lit')].map((item) => item.dataset.id)"
HEADING = "document.querySelector('#panel h2')?.textContent ?? null"
HASH = "decodeURIComponent(location.hash)"
CANVAS = "Object.assign({}, document.querySelector('#edges').dataset)"


def node_at(document: dict, **wanted) -> str:
    """The id of the first node whose description holds `wanted`."""
    nodes = document["mechkit"]["nodes"]
    return next(name for name, node in nodes.items() if all(node.get(k) == v for k, v in wanted.items()))


def mark(name: str) -> str:
    """The selector of a node's mark."""
    return f".node[data-id={json.dumps(name)}]"


def slide(page: Page, name: str, value: float) -> None:
    """Move a slider, and wait until the figure has followed."""
    page.run(f"""(() => {{ const slider = document.querySelector({json.dumps(name)}); slider.value = {value};
        slider.dispatchEvent(new Event("input")); }})()""")
    page.frame()
    page.wait("document.querySelector('#edges').dataset.done !== ''")


def save(page: Page) -> dict:
    """What "Save JSON" saves."""
    for path in page.browser.downloads.iterdir():
        path.unlink()
    page.click("#save-json")
    return json.loads(page.saved(".json").read_text(encoding="utf-8"))
