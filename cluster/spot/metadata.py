"""The metadata service of one spot machine, on loopback: the part of EC2's that says when the machine will be taken.

It answers as "Use IMDSv2" and "Spot Instance interruption notices" of the EC2 user guide say.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataServer:
    """It listens from the start, and answers once `serve` was called."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def serve(self) -> None:
        threading.Thread(target=self._server.serve_forever, name="metadata", daemon=True).start()

    def interrupt(self, seconds: float) -> None:
        """From now on it says that the machine will be terminated in so many seconds."""
        self._server.ends_at = time.time() + seconds


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # passed through
        self.tokens: set[str] = set()
        self.ends_at: float | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token":
            self._answer(HTTPStatus.NOT_FOUND)
        elif "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            self._answer(HTTPStatus.BAD_REQUEST)
        else:
            token = secrets.token_hex(16)
            self.server.tokens.add(token)
            self._answer(HTTPStatus.OK, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            self._answer(HTTPStatus.UNAUTHORIZED)
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.ends_at is None:
            self._answer(HTTPStatus.NOT_FOUND)
        else:
            end = datetime.fromtimestamp(self.server.ends_at, UTC)
            self._answer(HTTPStatus.OK, json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}))

    def _answer(self, status: HTTPStatus, body: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""
