"""The agents of an attempt, one per node: how they agree, and how each soon learns that another one is gone.

The first node's agent leads; each of the others holds one connection to it. On that everybody beats, and followers show
the pulses of their ranks. A machine that loses its power says nothing: silence is what tells.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge, wait
from typing import Any

from cluster.allocation import Allocation
from cluster.network import address_towards, interface_of
from cluster.preemption import Notice
from launcher.runs import PREEMPTED_CODE, Attempt
from launcher.train.hangs import Hang
from launcher.train.pulse import Sight

BEAT_SECONDS = 1.0
LOST_SECONDS = 15.0
JOIN_SECONDS = 300.0
LEAVE_SECONDS = 10.0
_POLL_SECONDS = 0.1
_ACCEPT_SECONDS = 0.02
_LEADER = 0


def own_address(allocation: Allocation) -> str:
    """The address of this node that the others reach; gloo is told to use its interface, before it starts.

    By itself gloo takes what the host's own name stands for, which may be a loopback address.
    """
    if allocation.nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # for a batch job of several nodes that was given one
        return "127.0.0.1"
    address = allocation.address or address_towards(allocation.hosts[1 if allocation.node == _LEADER else _LEADER])
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_of(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    return address


class NodeLost(Exception):
    """A node of the attempt is gone, or was never there: the others must end, too."""


class Nodes:
    """What one agent knows of the others. For a single node there is nobody to talk to, and all answers are its own.

    ranks_must_end: set when the ranks of another node have ended, so that those of this one wait in vain.
    hang: what the leader has decided about a rank that hangs, on whichever node.
    """

    def __init__(self, attempt: Attempt, allocation: Allocation, address: str) -> None:
        self.ranks_must_end = threading.Event()
        self.hang: Hang | None = None
        self.address = address
        self._allocation = allocation
        self._attempt = attempt
        self._shown: list[Sight] = []
        self._sights: dict[int, list[Sight]] = {}
        self._peers: dict[int, _Peer] = {}
        self._lost: str | None = None
        self._is_over = threading.Event()
        self._are_gone = threading.Event()

    @property
    def node(self) -> int:
        return self._allocation.node

    @property
    def count(self) -> int:
        return self._allocation.nodes

    @property
    def leads(self) -> bool:
        return self.node == _LEADER

    def meet(self, notice: Notice) -> bool:
        """Return when all are here, or with False when this node is asked to stop before. Raises NodeLost."""
        deadline = time.monotonic() + JOIN_SECONDS
        if self.count == 1:
            return True

        def may_wait() -> bool:
            return time.monotonic() < deadline and not notice.is_given()

        try:
            if self.leads:
                self._await_followers(may_wait)
            else:
                self._peers[_LEADER] = _Peer(self._find_leader(may_wait))
                self._peers[_LEADER].send("join", self.node)
        except NodeLost:
            if notice.is_given():
                return False
            raise
        threading.Thread(target=self._listen, name="nodes", daemon=True).start()
        return True

    def begin(self) -> None:
        """Before ranks are started: what was decided about those before them is over."""
        if self.leads:
            self._forget()
            for peer in self._peers.values():
                peer.send("begin", None)  # in the order of what else they hear, such as the next end

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """On the leader, what each node gives, in their order; on the others only their own. Raises NodeLost."""
        if self.leads:
            return [value, *(self._next(node) for node in sorted(self._peers))]
        self._peers[_LEADER].send("value", value)
        return [value]

    def share(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives on the leader, on all nodes. Raises NodeLost."""
        if not self.leads:
            return self._next(_LEADER)
        value = make()
        for peer in self._peers.values():
            peer.send("value", value)
        return value

    def end_all_ranks(self, hang: Hang | None = None) -> None:
        """From the leader to all: the ranks of this start are over, for a hang if one is named."""
        self._end_ranks(hang)
        for peer in self._peers.values():
            peer.send("end", None if hang is None else asdict(hang))

    def tell_that_ranks_ended(self) -> None:
        """A rank of this node has failed, so that all others wait in vain."""
        if self.leads:
            self.end_all_ranks()
        else:
            self._peers[_LEADER].send("ended", None)

    def show(self, sights: list[Sight]) -> None:
        """Let the leader see the ranks of this node."""
        self._shown = sights

    def sights_of_others(self) -> list[Sight]:
        """On the leader: the ranks of all other nodes, as they were seen last."""
        return [sight for sights in list(self._sights.values()) for sight in sights]

    def close(self) -> None:
        """The attempt is over. The leader leaves last: its end would take back what it has said."""
        self._is_over.set()
        if self.leads:
            self._are_gone.wait(LEAVE_SECONDS if self._peers else 0)

    def _forget(self) -> None:
        self.ranks_must_end.clear()
        self.hang = None
        self._sights = {}

    def _end_ranks(self, hang: Hang | None) -> None:
        self.hang = self.hang or hang
        self.ranks_must_end.set()

    def _next(self, node: int) -> dict[str, Any]:
        peer = self._peers[node]
        while True:
            with suppress(queue.Empty):
                return peer.values.get(timeout=_POLL_SECONDS)
            if self._lost is not None:
                raise NodeLost(self._lost)

    def _await_followers(self, may_wait: Callable[[], bool]) -> None:
        key = secrets.token_bytes(32)
        with socket.create_server((self.address, 0), backlog=self.count) as listener:
            address, port = listener.getsockname()
            self._attempt.write_leader({"address": address, "port": port, "key": key.hex()})
            listener.settimeout(_ACCEPT_SECONDS)
            while len(self._peers) < self.count - 1 and may_wait():
                with suppress(OSError):
                    stranger, _ = listener.accept()
                    # One that says nothing, whoever it is, holds up nobody else.
                    threading.Thread(target=self._admit, args=(stranger, key), name="joining", daemon=True).start()
        if missing := [self._allocation.hosts[node] for node in range(1, self.count) if node not in self._peers]:
            raise NodeLost(f"{', '.join(missing)} did not join within {JOIN_SECONDS:.0f} s")

    def _admit(self, stranger: socket.socket, key: bytes) -> None:
        """Take in a follower, which proves that it has the key. One that stops within a message, now or later, is as
        good as gone."""
        with suppress(AuthenticationError, OSError, EOFError, ValueError), ExitStack() as undo:
            undo.callback(stranger.close)
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(LOST_SECONDS))
            connection: Connection[Any, Any] = Connection(stranger.detach())
            undo.callback(connection.close)
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
            node = int(json.loads(connection.recv_bytes())["content"])
            undo.pop_all()
            self._peers[node] = _Peer(connection)

    def _find_leader(self, may_wait: Callable[[], bool]) -> Connection[Any, Any]:
        while may_wait():
            if (leader := self._attempt.leader()) is not None:
                with suppress(ConnectionError, TimeoutError, EOFError):  # it may end while we knock
                    return Client((leader["address"], leader["port"]), authkey=bytes.fromhex(leader["key"]))
            time.sleep(_POLL_SECONDS)
        raise NodeLost(f"{self._allocation.hosts[_LEADER]} was not found within {JOIN_SECONDS:.0f} s")

    def _listen(self) -> None:
        """Beat and hear until somebody is lost. Then the main thread has a while to see it and to leave in order."""
        by_connection: dict[Any, int] = {peer.connection: node for node, peer in self._peers.items()}
        # A clock that stands still while this process or machine does: that is nobody's silence.
        clock, last, beaten = 0.0, time.monotonic(), -BEAT_SECONDS
        heard = dict.fromkeys(self._peers, clock)
        while by_connection and self._lost is None and (self.leads or not self._is_over.is_set()):
            for ready in wait(list(by_connection), BEAT_SECONDS):
                node = by_connection[ready]
                heard[node] = clock
                if not self._hear(node):
                    del by_connection[ready]
            now = time.monotonic()
            clock, last = clock + min(now - last, 2 * BEAT_SECONDS), now
            if clock - beaten >= BEAT_SECONDS:
                beaten = clock
                self._beat()
            for node in by_connection.values():
                if clock - heard[node] > LOST_SECONDS:
                    self._lose(node, f"has said nothing for {LOST_SECONDS:.0f} s")
        for peer in self._peers.values():
            peer.close()
        self._are_gone.set()
        if self._lost is not None:
            self._end_ranks(None)
            time.sleep(LEAVE_SECONDS)
            os._exit(PREEMPTED_CODE)

    def _beat(self) -> None:
        for peer in self._peers.values():
            peer.send("beat", [] if self.leads else [asdict(sight) for sight in self._shown])

    def _hear(self, node: int) -> bool:
        """Take in one message; False when there will be no more."""
        peer = self._peers[node]
        try:
            message = json.loads(peer.connection.recv_bytes())
        except (EOFError, OSError):
            if not self._is_over.is_set():
                self._lose(node, "has closed its connection: its agent was ended")
            return False
        kind, content = message["kind"], message["content"]
        if kind == "beat":
            self._sights[node] = [Sight.from_json(sight) for sight in content]
        elif kind == "begin":
            self._forget()
        elif kind == "ended":
            self.end_all_ranks()
        elif kind == "end":
            self._end_ranks(Hang.from_json(content) if content else None)
        else:
            peer.values.put(content)
        return True

    def _lose(self, node: int, what: str) -> None:
        self._lost = self._lost or f"node {node} ({self._allocation.hosts[node]}) {what}"


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


class _Peer:
    """The other end of a connection."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self.connection = connection
        self.values: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def send(self, kind: str, content: object) -> None:
        """What cannot be sent is lost: that the other one is gone is noticed by whoever listens."""
        data = json.dumps({"kind": kind, "content": content}).encode()
        with self._lock, suppress(OSError):
            self.connection.send_bytes(data)

    def close(self) -> None:
        with self._lock:
            self.connection.close()
