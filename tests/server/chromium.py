"""A real Chromium without a window, driven by the DevTools protocol over a WebSocket."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PATIENCE_S = 30.0
KEYS = {
    "Enter": {"code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Escape": {"code": "Escape", "windowsVirtualKeyCode": 27},
    "Tab": {"code": "Tab", "windowsVirtualKeyCode": 9},
    "Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
}
SHIFT = 8


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One process; every tab has a storage of its own."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._num_calls = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._num_calls += 1
        number = self._num_calls
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            told = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)

    @contextlib.contextmanager
    def tab(self, url: str, *, width: int = 1200, height: int = 800, dark: bool = False) -> Iterator["Tab"]:
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            tab.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        tab.open(url)
        try:
            yield tab
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        """Goes there and waits until the page's scripts have run."""
        self.call("Page.navigate", url=url)
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, condition: str) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end_s, (
                f"never became true: {condition}; {self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.01)

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, modifiers: int = 0) -> None:
        params = {"key": key, **KEYS[key], "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if "text" in params else "rawKeyDown", **params)
        params.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def click(self, selector: str) -> None:
        """With the mouse, at the middle of the element, which must be in sight."""
        place = self.evaluate(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            params = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", **params)

    def tab_to(self, selector: str) -> None:
        """By the Tab key alone."""
        for _ in range(60):
            if self.evaluate(f"document.activeElement?.matches({json.dumps(selector)}) ?? false"):
                return
            self.press("Tab")
        raise AssertionError(f"the Tab key does not reach {selector}")

    def screenshot(self, path: Path) -> bytes:
        image = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        path.write_bytes(image)
        return image

    def events(self, method: str) -> list[dict[str, Any]]:
        self.evaluate("0")  # what was told before has arrived when this is answered
        own = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in own if event["method"] == method]

    def complaints(self) -> list[str]:
        """What a developer would see in red."""
        told = [json.dumps(event) for event in self.events("Runtime.exceptionThrown")]
        told += [json.dumps(e) for e in self.events("Runtime.consoleAPICalled") if e["type"] in ("error", "warning")]
        entries = [event["entry"] for event in self.events("Log.entryAdded")]
        return told + [entry["text"] for entry in entries if entry["level"] in ("error", "warning")]

    def requested(self) -> list[str]:
        return [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]


@contextlib.contextmanager
def chromium(path: str, folder: Path) -> Iterator[Browser]:
    """A running browser with its files in `folder`."""
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    network = ("--no-proxy-server", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [path, *options, *network, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        address = next(line.split(" on ", 1)[1].strip() for line in lines if line.startswith("DevTools listening on"))
        with connect(address, max_size=None, open_timeout=PATIENCE_S, proxy=None) as socket:
            yield Browser(socket)
            with contextlib.suppress(Exception):
                Browser(socket).call("Browser.close")
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()
