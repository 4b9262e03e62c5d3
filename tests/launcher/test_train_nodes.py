"""The agents of several nodes, here threads of one process that talk over the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.runs_for_tests import wait_for

from cluster.allocation import Allocation
from cluster.preemption import Notice
from launcher.runs import PREEMPTED_CODE, Attempt
from launcher.train import nodes as nodes_module
from launcher.train.hangs import Hang
from launcher.train.nodes import NodeLost, Nodes
from launcher.train.pulse import Phase, Sight

SIGHT = Sight(rank=3, pid=1, state="R", phase=Phase.STEPPING, step=2, progress=4, beats=5, collectives=6)


@pytest.fixture
def attempt(tmp_path) -> Attempt:
    attempt = Attempt(tmp_path / "0001")
    attempt.logs.mkdir(parents=True)
    return attempt


@pytest.fixture(autouse=True)
def left(monkeypatch) -> Iterator[list[int]]:
    """The exit codes of agents that left because others were lost; here they stay."""
    codes: list[int] = []
    monkeypatch.setattr(nodes_module, "LEAVE_SECONDS", 0.1)
    monkeypatch.setattr(nodes_module.os, "_exit", codes.append)
    yield codes
    for thread in threading.enumerate():
        if thread.name == "nodes":
            thread.join(60)
            assert not thread.is_alive()


def on_each(count: int, work: Callable[[Nodes], Any], attempt: Attempt) -> list[Any]:
    """What `work` gives on each of that many nodes."""

    def one(node: int) -> Any:
        allocation = Allocation(job="7", start=0, node=node, hosts=tuple(f"n{i}" for i in range(count)))
        nodes = Nodes(attempt, allocation, "127.0.0.1")
        nodes.meet(Notice(attempt.folder / "notice"))
        answer = work(nodes)
        nodes.close()
        return answer

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_the_leader_gathers_and_shares(attempt):
    def work(nodes: Nodes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        gathered = nodes.gather({"node": nodes.node})
        return gathered, nodes.share(lambda: {"all": gathered})

    everything = [{"node": 0}, {"node": 1}, {"node": 2}]
    for node, (gathered, shared) in enumerate(on_each(3, work, attempt)):
        assert gathered == (everything if node == 0 else [{"node": node}])
        assert shared == {"all": everything}


def test_one_node_talks_to_itself(attempt):
    assert on_each(1, lambda nodes: (nodes.gather({"a": 1}), nodes.share(lambda: {"b": 2})), attempt) == [
        ([{"a": 1}], {"b": 2})
    ]


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_the_ranks_of_all_nodes_end_when_those_of_one_have(attempt, failed):
    def work(nodes: Nodes) -> bool:
        if nodes.node == failed:
            nodes.tell_that_ranks_ended()
        return nodes.ranks_must_end.wait(60)

    assert on_each(3, work, attempt) == [True] * 3


def test_the_leader_sees_the_ranks_of_the_others_and_tells_of_a_hang(attempt):
    hang = Hang(rank=3, cause="because", ranks={3: "a", 0: "b"})

    def work(nodes: Nodes) -> Hang | None:
        if nodes.leads:
            wait_for(lambda: nodes.sights_of_others() == [SIGHT], "the other's rank to be seen")
            nodes.end_all_ranks(hang)
        else:
            nodes.show([SIGHT])
        assert nodes.ranks_must_end.wait(60)
        return nodes.hang

    assert on_each(2, work, attempt) == [hang, hang]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_falls_silent_is_lost(attempt, monkeypatch, lost, left):
    monkeypatch.setattr(nodes_module, "LOST_SECONDS", 3.0)
    silent = threading.Event()

    def work(nodes: Nodes) -> str:
        if nodes.node == lost:
            nodes._beat = lambda: None  # type: ignore[method-assign]  its machine has no power
            silent.wait(60)
            return ""
        with pytest.raises(NodeLost) as caught:
            nodes.gather({}) if nodes.leads else nodes.share(dict)
        assert nodes.ranks_must_end.is_set()
        silent.set()
        return str(caught.value)

    said = on_each(2, work, attempt)
    assert said[1 - lost] == f"node {lost} (n{lost}) has said nothing for 3 s"
    wait_for(lambda: PREEMPTED_CODE in left, "the agent to leave even if its main thread does not")


def test_a_stranger_without_the_key_does_not_join(attempt):
    from multiprocessing import AuthenticationError
    from multiprocessing.connection import Client

    def strange() -> None:
        leader = wait_for(attempt.leader, "the leader")
        with pytest.raises((AuthenticationError, ConnectionError, EOFError)):
            Client((leader["address"], leader["port"]), authkey=b"guessed")

    stranger = threading.Thread(target=strange)
    stranger.start()
    assert on_each(2, lambda nodes: nodes.share(lambda: {"ok": 1}), attempt) == [{"ok": 1}] * 2
    stranger.join(60)
    assert (attempt.folder / "leader.json").stat().st_mode & 0o077 == 0


def test_strangers_that_say_nothing_hold_up_nobody_and_are_sent_away(attempt, monkeypatch):
    monkeypatch.setattr(nodes_module, "JOIN_SECONDS", 60.0)
    monkeypatch.setattr(nodes_module, "LOST_SECONDS", 2.0)
    are_here = threading.Event()

    def strange() -> list[bytes]:
        leader = wait_for(attempt.leader, "the leader")
        strangers = [socket.create_connection((leader["address"], leader["port"])) for _ in range(5)]
        strangers[0].sendall(b"\0")  # the start of a message
        are_here.set()
        answers = []
        for stranger in strangers:
            stranger.settimeout(60)
            with stranger, contextlib.suppress(ConnectionResetError):
                while answer := stranger.recv(4096):
                    answers.append(answer)
        return answers

    def work(node: int) -> dict[str, Any]:
        nodes = Nodes(attempt, Allocation(job="7", start=0, node=node, hosts=("a", "b")), "127.0.0.1")
        assert node == 0 or are_here.wait(60)
        nodes.meet(Notice(attempt.folder / "notice"))
        answer = nodes.share(lambda: {"ok": 1})
        nodes.close()
        return answer

    with ThreadPoolExecutor(3) as pool:
        answers = pool.submit(strange)
        assert list(pool.map(work, range(2))) == [{"ok": 1}] * 2
        assert answers.result(60)  # each got a challenge, and then the end


def test_nodes_that_do_not_come_are_named(attempt, monkeypatch):
    monkeypatch.setattr(nodes_module, "JOIN_SECONDS", 0.3)
    nodes = Nodes(attempt, Allocation(job="7", start=0, node=0, hosts=("a", "b", "c")), "127.0.0.1")
    with pytest.raises(NodeLost, match="b, c did not join"):
        nodes.meet(Notice(attempt.folder / "notice"))


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_is_asked_to_stop_waits_for_no_other(attempt, node):
    notice = Notice(attempt.folder / "notice")
    notice.give("SIGTERM")
    nodes = Nodes(attempt, Allocation(job="7", start=0, node=node, hosts=("a", "b")), "127.0.0.1")
    assert not nodes.meet(notice)
