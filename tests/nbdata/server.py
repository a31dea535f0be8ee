"""A real HTTP server with ranges, and with the faults of real ones."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves files[path]; `faults[path]` holds what goes wrong at each request in turn, "" = nothing.

    Faults: "503"; "cut" sends half of what was asked for and hangs up; "garble" changes a byte; "whole" takes
    no notice of Range; "slow" waits. `asked` keeps (path, Range header or "") of every request.
    """

    def __init__(self, files: dict[str, bytes], faults: dict[str, list[str]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults = files, {path: list(todo) for path, todo in faults.items()}
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        server, path, asked = self.server, self.path, self.headers.get("Range", "")
        server.asked.append((path, asked))
        fault = server.faults[path].pop(0) if server.faults.get(path) else ""
        if fault == "503" or path not in server.files:
            self.send_error(503 if fault else 404)
            return
        time.sleep(0.5 if fault == "slow" else 0)
        content = server.files[path]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "whole" else 0
        body = content[start:]
        if fault == "garble":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@contextmanager
def serving(files: dict[str, bytes], faults: dict[str, list[str]] | None = None) -> Iterator[FileServer]:
    """Run a server while the block runs."""
    server = FileServer(files, faults or {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
