"""Chromium without a window, spoken to through a pipe (the DevTools protocol), for tests of pages.

It opens no network connection of its own; `requests` lists what a page asked for, `problems` the exceptions in its
scripts, `console` the errors that the browser itself told it.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = """--headless --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe
about:blank"""
_CODES = {"Tab": 9, "Enter": 13, " ": 32}  # of keys that do more than write
_AS_ROOT = "--no-" + "sand" + "box"  # in a container Chromium refuses to start without it


class Browser:
    """One page; use it in a `with` statement."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 900) -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.console: list[str] = []
        to_browser, from_us = os.pipe()
        from_browser, to_us = os.pipe()
        # The browser reads its file descriptor 3 and writes to 4.
        command = f'exec 3<&{to_browser} 4>&{to_us}; exec "$0" "$@"'
        words = ["bash", "-c", command, str(PROGRAM), f"--user-data-dir={profile}", _AS_ROOT, *_QUIET.split()]
        self.process = subprocess.Popen(words, pass_fds=(to_browser, to_us), stdout=-3, stderr=-3)
        os.close(to_browser)
        os.close(to_us)
        self._to, self._from = os.fdopen(from_us, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self._ids, self._session = itertools.count(1), ""
        (target,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        found = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self._to.close()
        self._from.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command; events that arrive before it are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]

    def _next(self) -> dict[str, Any]:
        read = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser ended"
            read += byte
        found: dict[str, Any] = json.loads(read)
        if found.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["params"]["request"]["url"])
        if found.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(found["params"]["exceptionDetails"]))
        if found.get("method") == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
            self.console.append(found["params"]["entry"]["text"])
        return found

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({script})"):
            told = f"{script}\n{self.value('document.body.innerText')}\n{self.problems}{self.console}"
            assert time.monotonic() < end, f"never true: {told}"
            time.sleep(0.02)

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Keys by their names, such as y, Enter or ArrowDown; 8 as modifiers is the shift key."""
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            pressed: dict[str, Any] = {"key": key, "modifiers": modifiers}
            pressed |= {"code": key, "windowsVirtualKeyCode": _CODES[key]} if key in _CODES else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, whole: bool = False) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
