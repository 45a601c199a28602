"""Chromium over the DevTools protocol: a browser process, its tabs, and nothing else to install."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
]
START_S = 30.0


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One headless Chromium with a profile of its own."""

    def __init__(self, program: str, **environment: str) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix="notecast-chromium-"))
        command = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            command,
            env=environment or None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._address = f"127.0.0.1:{self._port()}"

    def tab(self) -> Tab:
        """Open an empty tab."""
        request = urllib.request.Request(f"http://{self._address}/json/new", method="PUT")
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            target = json.load(answer)
        close = f"http://{self._address}/json/close/{target['id']}"
        return Tab(target["webSocketDebuggerUrl"], close)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _port(self) -> int:
        """Chromium writes the port it chose into its profile."""
        told = self._profile / "DevToolsActivePort"
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            if told.exists() and (lines := told.read_text().split()):
                return int(lines[0])
            time.sleep(0.05)
        raise RuntimeError("Chromium did not start")


class Tab:
    """One page; commands wait for their answers, events are kept."""

    def __init__(self, url: str, close_url: str) -> None:
        self._close_url = close_url
        self._open = contextlib.ExitStack()
        self._socket: ClientConnection = self._open.enter_context(
            connect(url, max_size=None, compression=None)
        )
        self._last = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call `method` and return its result."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited, as if a person had caused it."""
        answer = self.send(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description"))
        return answer["result"].get("value")

    def wait(self, expression: str, *, limit_s: float = 20.0) -> Any:
        """Poll until `expression` is true and return its value."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.05)
        stats = self.evaluate("JSON.stringify([window.__nc?.stats(), window.__nc?.events()])")
        raise AssertionError(f"never true: {expression}; the page says {stats}")

    def on_load(self, script: str) -> None:
        """Run `script` in each new page before its own code."""
        self.send("Page.addScriptToEvaluateOnNewDocument", source=script)

    def emulate(self, *, width: int, height: int, scale: float = 1, dark: bool = False) -> None:
        """Give the page a window of this size and a colour scheme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.send("Emulation.setDeviceMetricsOverride", mobile=width < 600, **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go to `url`; a change of the fragment alone is a new page, too."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def click(self, selector: str) -> None:
        """Press and release the left button in the middle of an element, once it is usable."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{found} !== null && !{found}.disabled && {found}.offsetWidth > 0")
        box = self.evaluate(
            f"(() => {{ const e = {found};"
            " e.scrollIntoView({block: 'nearest'});"
            " const b = e.getBoundingClientRect();"
            " return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def key(self, key: str, *, text: str = "") -> None:
        """Press and release a key by its DOM name."""
        named = {"key": key, "code": "Space" if key == " " else key, "text": text}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **named)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path: Path) -> None:
        answer = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """Return what the browser logged: errors, warnings, blocked content, exceptions."""
        self.evaluate("0")  # whatever was logged before has come once this is answered
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                if params["type"] in ("error", "warning", "assert"):
                    found.append(json.dumps(params["args"]))
            elif event["method"] == "Log.entryAdded":
                entry = params["entry"]
                if entry["level"] in ("error", "warning"):
                    found.append(f"{entry['text']} {entry.get('url', '')}")
        return found

    def close(self) -> None:
        self._open.close()
        urllib.request.urlopen(self._close_url, timeout=START_S).close()
