"""A headless Chromium, the distribution's, driven by its DevTools protocol over two pipes: no driver, no port.

Messages are JSON objects that end in NUL. What the page writes to the console, exceptions, and log entries of the
browser (such as a resource that cannot be loaded) are collected.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DEADLINE_S = 60.0
"""The first start on a busy machine takes seconds."""

_PROBLEMS = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}


class Page:
    """A page of the browser. `problems` has what the console, exceptions and the browser's log have said."""

    def __init__(self, reading: int, writing: int) -> None:
        self.problems: list[str] = []
        self._reading = reading
        self._writing = writing
        self._received = b""
        self._sent = 0
        self._session = ""

    def attach(self) -> None:
        """Make a page, and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._writing, data) :]
        deadline = time.monotonic() + DEADLINE_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._reading], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._reading, 1 << 20)
            assert data, "the browser has ended"
            self._received += data
        line, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") in _PROBLEMS:
            self.problems.append(json.dumps(message["params"])[:2000])
        return message

    def open(self, url: str, *, headers: dict[str, str] | None = None) -> None:
        """Go to a URL."""
        self.call("Network.setExtraHTTPHeaders", headers=headers or {})
        assert "errorText" not in self.call("Page.navigate", url=url)

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window in pixels, and the colours that the user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self._evaluated(expression)
        assert "exceptionDetails" not in found, ascii(found)
        return found["result"].get("value")

    def wait_for(self, expression: str, *, within_s: float = 20.0) -> None:
        """Return once an expression is true; an exception, as of a page that is not there yet, is not."""
        deadline = time.monotonic() + within_s
        while self._evaluated(expression)["result"].get("value") is not True:
            if time.monotonic() > deadline:
                text = ascii(self.value("document.documentElement.innerText"))  # which may have half a character
                raise AssertionError(f"not true: {expression}: {text}")
            time.sleep(0.05)

    def _evaluated(self, expression: str) -> dict[str, Any]:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)

    def screenshot(self, file: Path) -> None:
        """Write what is in the window to a PNG file."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))


def _pipe() -> tuple[int, int]:
    """The ends of a pipe, with numbers that are not 3 or 4."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


@contextmanager
def chromium(directory: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose files are below `directory`."""
    assert CHROMIUM is not None
    from_us, to_browser = _pipe()
    from_browser, to_us = _pipe()
    with (directory / "chromium.log").open("wb") as log:
        # the browser reads commands from descriptor 3 and writes to 4
        process = subprocess.Popen(
            ["bash", "-c", f'exec 3<&{from_us} 4>&{to_us}; exec "$@"', "bash", "setpriv", "--pdeathsig", "KILL",
             CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--force-prefers-reduced-motion",
             f"--user-data-dir={directory}/profile", "--remote-debugging-pipe"],
            pass_fds=(from_us, to_us), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    os.close(from_us)
    os.close(to_us)
    page = Page(from_browser, to_browser)
    try:
        page.attach()
        yield page
    finally:
        os.close(to_browser)  # which ends it
        os.close(from_browser)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
