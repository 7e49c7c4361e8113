"""A proxy before an S3 server that does what networks and servers do on a bad day, when a test says so."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """What the server answered, or the proxy says in its place."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


Fault = Callable[[Asked, Callable[[], Answer]], Answer | None]
"""From a request, and what passes it on, to the answer; None: the connection is cut without one."""


def refused(status: int, code: str) -> Fault:
    """Answers an error without asking the server: `refused(503, "SlowDown")`."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Told to.</Message></Error>".encode()
    return lambda asked, go_on: Answer(status, [("Content-Type", "application/xml")], body)


def lost(asked: Asked, go_on: Callable[[], Answer]) -> Answer | None:
    """The server does as it is asked, and the answer is lost."""
    go_on()
    return None


def lax(asked: Asked, go_on: Callable[[], Answer]) -> Answer:
    """A server that ignores `If-None-Match`: a refused create is answered as if it had been done."""
    answer = go_on()
    if asked.method == "PUT" and answer.status == 412:
        return Answer(200, [("ETag", '"0"')], b"")
    return answer


def flipped(asked: Asked, go_on: Callable[[], Answer]) -> Answer:
    """One bit of each object that is read is wrong."""
    answer = go_on()
    if asked.method == "GET" and answer.body and "list-type" not in asked.path:
        answer.body = bytes([answer.body[0] ^ 1]) + answer.body[1:]
    return answer


class FaultyProxy:
    """Passes requests on; `fault` decides otherwise, for as long as it is set."""

    def __init__(self, upstream_port: int) -> None:
        self.fault: Fault | None = None
        self.stalled = threading.Event()
        """While set, nothing is answered."""
        self.asked: list[Asked] = []
        self._upstream_port = upstream_port
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str, part: str = "") -> int:
        """How many requests came with that method and that part in their path."""
        return sum(1 for asked in self.asked if asked.method == method and part in asked.path)

    def close(self) -> None:
        """Let go of whoever waits, and end."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _pass_on(self, asked: Asked, body: bytes) -> Answer:
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=30)
        with contextlib.closing(upstream):
            upstream.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            hop = ("connection", "transfer-encoding", "content-length")
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in hop]
            if asked.method == "HEAD" and answer.getheader("Content-Length"):
                headers.append(("Content-Length", str(answer.getheader("Content-Length"))))
            return Answer(answer.status, headers, answer.read())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = Asked(self.command, self.path, dict(self.headers.items()))
                proxy.asked.append(asked)
                if proxy.stalled.is_set():
                    proxy._released.wait()  # until the test ends: whoever asked has long gone
                    self.close_connection = True
                    return
                self._answer(
                    proxy.fault(asked, lambda: proxy._pass_on(asked, body))
                    if proxy.fault
                    else proxy._pass_on(asked, body)
                )

            def _answer(self, answer: Answer | None) -> None:
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response_only(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(answer.body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


@contextlib.contextmanager
def faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    """A proxy that ends with the block."""
    proxy = FaultyProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()
