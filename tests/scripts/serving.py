"""A web server on this machine that misbehaves as it is told, request by request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """How one request is answered: by default rightly, ranges and marks included."""

    status: int = 200
    break_after: int | None = None  # bytes, then the connection is cut
    hang_after: int | None = None  # bytes, then nothing comes until the server ends
    ignore_range: bool = False
    body: bytes | None = None  # instead of the file's
    shift: int = 0  # of the range that is sent against the one that was asked for
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Web:
    """Files by path, what to answer next for each path, and the requests that came."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    marks: dict[str, str | None] = field(default_factory=dict)
    next_answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"{self.address}{path}"

    def ranges(self, path: str) -> list[str | None]:
        return [asked for requested, asked in self.requests if requested == path]

    def publish(self, folder: Path) -> str:
        """Serve a folder's zips and a record that lists them; returns the record's address."""
        listed: list[dict[str, Any]] = []
        for path in sorted(folder.glob("*.zip")):
            content = path.read_bytes()
            self.files[f"/{path.name}"] = content
            listed.append(
                {
                    "key": path.name,
                    "size": len(content),
                    "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                    "links": {"self": self.url(f"/{path.name}")},
                }
            )
        self.files["/record"] = json.dumps({"files": listed}).encode()
        return self.url("/record")


@contextmanager
def web_server() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.requests.append((self.path, self.headers.get("Range")))
            waiting = web.next_answers.get(self.path)
            respond(self, web, waiting.pop(0) if waiting else Answer())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def respond(handler: BaseHTTPRequestHandler, web: Web, answer: Answer) -> None:
    content = web.files.get(handler.path) if answer.body is None else answer.body
    status = 404 if content is None else answer.status
    if content is None or status >= 400:
        handler.send_response(status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    mark = web.marks.get(handler.path, f'"{hashlib.md5(content).hexdigest()}"')
    start = wanted_start(handler, mark) if not answer.ignore_range else 0
    if start >= len(content) > 0:
        handler.send_response(416)
        handler.end_headers()
        return
    send(handler, content, start, mark, answer, web)


def wanted_start(handler: BaseHTTPRequestHandler, mark: str | None) -> int:
    asked = handler.headers.get("Range")
    condition = handler.headers.get("If-Range")
    if asked is None or (condition is not None and condition != mark):
        return 0
    return int(asked.removeprefix("bytes=").removesuffix("-"))


def send(
    handler: BaseHTTPRequestHandler,
    content: bytes,
    start: int,
    mark: str | None,
    answer: Answer,
    web: Web,
) -> None:
    if start:
        start += answer.shift
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    if mark is not None:
        handler.send_header("ETag", mark)
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    stop = answer.break_after if answer.hang_after is None else answer.hang_after
    handler.wfile.write(content[start:] if stop is None else content[start : start + stop])
    handler.wfile.flush()
    if answer.hang_after is not None:
        web.over.wait()
    if stop is not None:
        handler.close_connection = True
