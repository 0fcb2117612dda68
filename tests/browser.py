"""A real Chromium without a window, driven through its DevTools protocol over a pipe.

It needs nothing but the browser: no driver, no port, no package.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

NAMES = (
    *("chromium-headless-shell", "chromium", "chromium-browser", "chrome"),
    *("google-chrome", "google-chrome-stable"),
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-dev-shm-usage"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a graphics card
    *("--remote-debugging-pipe", "--no-first-run", "--disable-extensions", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update"),
)
SECONDS = 60.0
WARNINGS = ("error", "warning", "assert")
KEYS = {"Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9}


class Browser:
    """A browser process with one page.

    Attributes:
        complaints: what the page wrote to the console as errors or warnings, and what it threw.
        requests: the addresses that the page asked for, without data URIs.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._number, self._buffer, self._session = 0, b"", ""
        self._process, self._to, self._from = _start(program, profile)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, page: Path, place: str = "") -> None:
        """Open a file, or a place in it, and wait until it is loaded, with all its pictures."""
        for address in ("about:blank", page.resolve().as_uri() + place):  # a place alone loads none
            self.complaints.clear()
            self.requests.clear()
            self._events.clear()
            self.send("Page.navigate", url=address)
            while not any(event["method"] == "Page.loadEventFired" for event in self._events):
                self._note(self._receive())

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, as a person does."""
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS[key], "code": key}
        text = {"Enter": "\r", " ": " "}.get(key)
        down = about | ({"text": text} if text else {})
        self.send("Input.dispatchKeyEvent", type="keyDown", **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def look(self, width: int, dark: bool = False, media: str = "screen") -> None:
        """Set the width of the window, light or dark, and screen or print."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def photograph(self, selector: str = "html") -> bytes:
        """An element as PNG."""
        x, y, width, height = self.run(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect();"
            "return [r.x + scrollX, r.y + scrollY, r.width, r.height]; })()"
        )
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        found = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def close(self) -> None:
        """End the browser."""
        os.close(self._to)  # it ends when its pipe does
        os.waitpid(self._process, 0)
        os.close(self._from)

    def _receive(self) -> dict[str, Any]:
        """The next message."""
        until = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], until - time.monotonic())
            part = os.read(self._from, 1 << 20) if ready else b""
            if not part:
                raise AssertionError("the browser has ended or does not answer")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page complains of and asks for."""
        self._events.append(event)
        about = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if about["type"] in WARNINGS:
                self.complaints.append(str(about["args"]))
            case "Log.entryAdded" if (
                about["entry"]["level"] in WARNINGS and about["entry"]["source"] != "rendering"
            ):  # software WebGL is slow, which the browser says
                self.complaints.append(str(about["entry"]))
            case "Network.requestWillBeSent" if not about["request"]["url"].startswith("data:"):
                self.requests.append(about["request"]["url"])


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine; Debian's package is chromium-headless-shell")
    if not hasattr(os, "posix_spawn"):
        pytest.skip("the browser is driven over pipes as POSIX has them")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        found = Browser(program, Path(profile))
        try:
            yield found
        finally:
            found.close()


def _start(program: str, profile: Path) -> tuple[int, int, int]:
    """The process, and the ends of the pipes that write to it and read from it."""
    ours = [_apart(end) for end in os.pipe()]
    theirs = [_apart(end) for end in os.pipe()]
    log = os.open(os.devnull, os.O_RDWR)
    actions = [
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
        (os.POSIX_SPAWN_DUP2, ours[0], 3),  # where it reads commands from
        (os.POSIX_SPAWN_DUP2, theirs[1], 4),  # where it writes answers to
    ]
    arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = os.posix_spawn(program, arguments, dict(os.environ), file_actions=actions)
    for end in (ours[0], theirs[1], log):
        os.close(end)
    return process, ours[1], theirs[0]


def _apart(end: int) -> int:
    """The same end with a number that 3 and 4 don't overwrite."""
    import fcntl  # not on Windows

    found = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return found
