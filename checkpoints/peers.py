"""What the disks of other nodes have: while all ranks restore, each serves the others the copies on its node's disk.

What ranks hold alike lies in the file of one of them, so that on several nodes no disk alone has all that a rank needs.
"""

from __future__ import annotations

import hmac
import re
import secrets
import socketserver
import threading
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler

from checkpoints.channel import Channel
from checkpoints.entry import Commit
from checkpoints.errors import KeyMissing, StoreError
from checkpoints.store import Store
from checkpoints.strict_json import Fields, encode

SILENCE_SECONDS = 60.0
_MOST_MESSAGE_BYTES = 2**30
_POLL_SECONDS = 0.02  # so long a close may take
_SERVED_AT_ONCE = 8  # each takes the memory of what is read at once
_WAITING_CONNECTIONS = 1024
_PATH = re.compile(r"/([0-9a-f]{64})/([0-9]{1,15})/([0-9]{1,15})/([!-~]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """A rank that gives the files of a commit that its node's disk has to whoever knows the token."""

    address: str
    port: int
    token: str
    keys: tuple[str, ...]

    @classmethod
    def from_json(cls, fields: Fields) -> _Holder:
        return cls(
            address=fields.text("address"),
            port=fields.integer("port", most=65535),
            token=fields.text("token"),
            keys=fields.texts("keys"),
        )


class Peers:
    """One rank among those that restore together: reads from the disks of all nodes, and serves what its own has.

    address: at which the others reach this node. To be closed once no rank reads any more.
    """

    def __init__(
        self, copies: Store, address: str, channel: Channel, rank: int, world_size: int, deadline_seconds: float
    ) -> None:
        self._copies = copies
        self._channel = channel
        self._rank = rank
        self._world_size = world_size
        self._deadline_seconds = deadline_seconds
        self._holders: list[_Holder] = []  # by rank
        self.silence = ""  # which rank has not answered: after that none is waited for
        self._server = _Server(address, copies)
        threading.Thread(target=self._server.serve_forever, args=[_POLL_SECONDS], name="peers", daemon=True).start()

    def meet(self, commit: Commit) -> None:
        """Learn which disks have files of the commit. All ranks call it, for the same one. Raises PeerSilent."""
        held, holders = f"held/{commit.n}", f"holders/{commit.n}"
        self._channel.post(f"{held}/{self._rank}", encode(asdict(self._own(commit))))
        if self._rank == 0:  # one message for all: fetched one by one, they would be as many as ranks, squared
            said = self._channel.collect(held, range(self._world_size), self._deadline_seconds)
            told = [_Holder.from_json(Fields.parse("a disk", data, _MOST_MESSAGE_BYTES)) for data in said]
            self._channel.post(holders, encode({"ranks": [asdict(holder) for holder in told]}))
        data = self._channel.wait(holders, 0, self._deadline_seconds)
        ranks = Fields.parse("the disks", data, _MOST_MESSAGE_BYTES).objects("ranks")
        self._holders = [_Holder.from_json(fields) for fields in ranks]

    def get(self, key: str, start: int, length: int) -> bytes:
        """What a disk has of the file, up to `length` bytes from byte `start`, right or wrong. Raises StoreError."""
        ranks = [rank for rank, holder in enumerate(self._holders) if key in holder.keys]
        if not ranks:
            raise KeyMissing("get", key)
        if self.silence:
            raise StoreError("get", key, self.silence)
        rank = ranks[self._rank % len(ranks)]  # those of one node have the same: each is asked by some
        try:
            return self._ask(rank, f"{start}/{length}/{key}")
        except (OSError, HTTPException) as error:
            self.silence = f"rank {rank} did not answer ({error})"
            raise StoreError("get", key, self.silence) from error

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _own(self, commit: Commit) -> _Holder:
        keys: tuple[str, ...] = ()
        with suppress(StoreError):
            keys = tuple(self._copies.list(f"{commit.folder}/"))
        address, port = self._server.server_address[:2]
        return _Holder(address=str(address), port=port, token=self._server.token, keys=keys)

    def _ask(self, rank: int, what: str) -> bytes:
        holder = self._holders[rank]
        with closing(HTTPConnection(holder.address, holder.port, timeout=SILENCE_SECONDS)) as connection:
            connection.request("GET", f"/{holder.token}/{what}")
            response = connection.getresponse()
            data = response.read()
        if response.status != HTTPStatus.OK:
            raise StoreError("get", what, f"rank {rank} could not read it")
        return data


class _Server(socketserver.ThreadingTCPServer):
    """Not that of http.server, which looks up the name of its address: where no name server answers, that takes long.

    token: who does not know it, is told nothing.
    """

    daemon_threads = True
    request_queue_size = _WAITING_CONNECTIONS

    def __init__(self, address: str, copies: Store) -> None:
        super().__init__((address, 0), _Handler)
        self.copies = copies
        self.token = secrets.token_hex(32)
        self.turns = threading.BoundedSemaphore(_SERVED_AT_ONCE)


class _Handler(BaseHTTPRequestHandler):
    timeout = SILENCE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        asked = _PATH.fullmatch(self.path)
        with suppress(OSError):  # whoever asked may be gone
            if asked is None or not hmac.compare_digest(asked[1], self.server.token):
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                with self.server.turns:
                    self._give(asked[4], int(asked[2]), int(asked[3]))

    def _give(self, key: str, start: int, length: int) -> None:
        try:
            data = self.server.copies.get(key, start, length)
        except StoreError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response_only(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nobody reads along, and the token would be in it."""
