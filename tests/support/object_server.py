"""A real S3 server on loopback (SeaweedFS), and a proxy before it that loses requests and replies."""

from __future__ import annotations

import http.client
import json
import random
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

KEY, SECRET, BUCKET = "testkey", "testsecret", "checkpoints"
START_SECONDS = 60.0
HANG_SECONDS = 120.0
SERVER = shutil.which("weed", path=f"{Path(sys.executable).parent}")


def environment(port: int) -> dict[str, str]:
    """What a client at that port of loopback needs."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def object_server(folder: Path) -> Iterator[int]:
    """The port of a server whose objects lie in the folder. It makes buckets as they are asked for."""
    identity = {"credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"], "name": "tests"}
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    s3, master, volume, filer = _free_ports(4)
    command = [
        str(SERVER), f"-logdir={folder}", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-s3",
        f"-s3.config={folder / 'identities.json'}", f"-s3.port={s3}", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.telemetry=false", "-volume.max=100", "-master.volumeSizeLimitMB=256", "-volume.minFreeSpace=1",
    ]  # fmt: skip
    with TemporaryDirectory() as short:  # the paths of sockets must be
        command += [f"-s3.localSocket={short}/s3", f"-filer.localSocket={short}/filer"]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_it_writes(s3, process)
            yield s3
        finally:
            process.kill()  # asked to end, it takes half a minute
            process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports whose 10,000th successor is free as well: the server takes those for its own messages."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 40_000)
        if port not in found and all(map(_is_free, (port, port + 10_000))):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _wait_until_it_writes(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until the server takes an object: it answers before it can do that."""
    import obstore

    deadline = time.monotonic() + START_SECONDS
    names = {"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"}
    config = {names[name]: value for name, value in environment(port).items() if name in names}
    bucket = obstore.store.S3Store(
        BUCKET, endpoint=f"http://127.0.0.1:{port}", region="us-east-1", config=config,
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip
    while True:
        try:
            obstore.put(bucket, "started", b"yes")
            obstore.delete(bucket, "started")
            return
        except obstore.exceptions.BaseError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


Fault = Callable[[BaseHTTPRequestHandler], str]


def seldom(what: dict[str, float], seed: int) -> Fault:
    """A fault that strikes at random, with these probabilities."""
    order = random.Random(seed)

    def fault(_request: BaseHTTPRequestHandler) -> str:
        drawn = order.random()
        for name, probability in what.items():
            if (drawn := drawn - probability) < 0:
                return name
        return "pass"

    return fault


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.port = port
        self.fault = fault
        self.counts: Counter[str] = Counter()

    def handle_error(self, *request: object) -> None:
        """A client that is killed resets its connections."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*request)


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        what = self.server.fault(self)
        self.server.counts[what] += 1
        if what == "503":
            busy = b"<Error><Code>SlowDown</Code></Error>"
            self._answer(503, [], busy, sent=len(busy))
            return
        if what == "hang":
            select.select([self.connection], [], [], HANG_SECONDS)  # it can be read when the client gives up
        if what not in ("drop", "hang"):
            status, headers, answer = self._pass_on(body)
        if what in ("drop", "hang", "reply"):
            self.close_connection = True
            return
        if what == "lie" and status == 412:
            status, headers, answer = 200, [("ETag", '"of another object"')], b""
        if what == "cut":
            self.close_connection = True
        with suppress(ConnectionError):  # whoever asked may be gone
            self._answer(status, headers, answer, sent=len(answer) // 2 if what == "cut" else len(answer))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815  the names that http.server looks for

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            server.putheader(name, value)
        server.endheaders(body or None)
        response = server.getresponse()
        answer = response.read()
        server.close()
        return response.status, response.getheaders(), answer

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int) -> None:
        has_body = self.command != "HEAD"
        skipped = ("connection", "transfer-encoding", *(["content-length"] if has_body else []))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in skipped:
                self.send_header(name, value)
        if has_body:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body[:sent])

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def proxy(port: int, fault: Fault) -> Iterator[tuple[int, Counter[str]]]:
    """The port of a proxy to the server at `port`, and how often it did what.

    `fault` says what to do with a request: `pass` it on; answer `503`; `drop` it; `hang`, that is, neither answer nor
    close; pass it on and lose the `reply`, or `cut` the answer's body in the middle; pass it on and `lie`, that is,
    answer 200 where a precondition has failed.
    """
    server = _Proxy(port, fault)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], server.counts
    finally:
        server.shutdown()
        server.server_close()
