"""The metadata services of three clouds on loopback, which can be told to take the machine away, and to misbehave."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SECONDS = 30  # from any look on, until the machine is taken away


class MetadataServer(ThreadingHTTPServer):
    """`mood` is what happens to a request: `well`, `hang`, `drop`, or an HTTP status to answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mood: str | int = "well"
        self.tokens: set[str] = set()
        self.requests = 0
        self.is_interrupted = False
        self.is_at_risk = False
        self.changed = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def interrupt(self) -> None:
        with self.changed:
            self.is_interrupted = True
            self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MetadataServer

    def _handle(self) -> None:
        mood = self.server.mood  # at first: it may be another one in the end
        self.server.requests += 1
        if mood == "hang":
            time.sleep(30)
        if mood in ("hang", "drop"):
            self.close_connection = True
            return
        self._answer(*((int(mood), "", {}) if mood != "well" else self._route()))

    do_GET = do_PUT = _handle  # noqa: N815  the names that http.server looks for

    def _route(self) -> tuple[int, str, dict[str, str]]:
        path = urlsplit(self.path).path
        if path == "/latest/api/token" and self.command == "PUT":
            return self._new_token()
        if path == "/latest/meta-data/spot/instance-action":
            return self._ec2(self.server.is_interrupted)
        if path == "/latest/meta-data/events/recommendations/rebalance":
            return self._ec2(self.server.is_at_risk)
        if path == "/computeMetadata/v1/instance/preempted":
            return self._compute_engine()
        if path == "/metadata/scheduledevents":
            return self._azure()
        return 404, "", {}

    def _new_token(self) -> tuple[int, str, dict[str, str]]:
        if "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            return 400, "", {}
        token = secrets.token_hex(16)
        self.server.tokens.add(token)
        return 200, token, {}

    def _ec2(self, is_told: bool) -> tuple[int, str, dict[str, str]]:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            return 401, "", {}
        if not is_told:
            return 404, "", {}
        end = datetime.fromtimestamp(time.time() + SECONDS, UTC)
        return 200, json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}), {}

    def _compute_engine(self) -> tuple[int, str, dict[str, str]]:
        if self.headers.get("Metadata-Flavor") != "Google":
            return 403, "", {}
        query = parse_qs(urlsplit(self.path).query)
        server = self.server
        with server.changed:
            if query.get("last_etag") == [f"e{server.is_interrupted:d}"]:
                server.changed.wait(float(query["timeout_sec"][0]))
            return 200, str(server.is_interrupted).upper(), {"ETag": f"e{server.is_interrupted:d}"}

    def _azure(self) -> tuple[int, str, dict[str, str]]:
        if self.headers.get("Metadata") != "true" or "api-version" not in parse_qs(urlsplit(self.path).query):
            return 400, "", {}
        end = formatdate(time.time() + SECONDS, usegmt=True)
        event = {"EventId": "1", "EventType": "Preempt", "NotBefore": end}
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": [event] * self.server.is_interrupted}), {}

    def _answer(self, status: int, body: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    server = MetadataServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.interrupt()  # whoever waits for news gets some
        server.shutdown()
        server.server_close()
