"""Checkpoints in a bucket of a real S3 server: what goes wrong between it and us, and what a run makes of it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import count, cycle

import pytest
from support.flaky import FAULTS, HurriedStore, Run, Tally
from support.object_server import environment, proxy, seldom

from checkpoints import object_store
from checkpoints.errors import NotExclusive, StoreError, StoreUnwritable
from checkpoints.store import Created, open_store, probe


@pytest.fixture
def through(server, bucket, monkeypatch):
    """Opens the bucket through a proxy with a fault; returns (store, what the proxy did)."""
    with ExitStack() as open_proxies:

        def open_with(fault):
            port, counts = open_proxies.enter_context(proxy(server, fault))
            monkeypatch.setenv("AWS_ENDPOINT_URL", environment(port)["AWS_ENDPOINT_URL"])
            return open_store(bucket), counts

        yield open_with


def test_a_store_that_ignores_the_precondition_is_refused(through):
    store, counts = through(lambda request: "lie")
    with pytest.raises(NotExclusive):
        probe(store)
    assert counts["lie"] > 0


def test_who_creates_a_key_can_tell_although_requests_and_replies_are_lost(through):
    store, counts = through(seldom({"drop": 0.05, "503": 0.05, "reply": 0.1}, seed=3))
    for number in range(30):
        key, ours = f"log/{number}", b"ours %d" % number
        assert store.create(key, ours) is Created.OK or store.get(key) == ours
        assert store.create(key, b"theirs") is Created.EXISTS
        assert store.get(key) == ours
    assert min(counts["drop"], counts["503"], counts["reply"]) > 0, counts


def test_large_files_arrive_whole_although_parts_of_them_are_lost(through):
    store, counts = through(seldom({"drop": 0.05, "503": 0.05, "reply": 0.1}, seed=5))
    data = os.urandom(70_000_000)
    store.put("data/save/file", (memoryview(data)[i : i + 2**23] for i in range(0, len(data), 2**23)))
    assert b"".join(bytes(part) for part in store.read_back("data/save/file", 2**23)) == data
    assert sum(counts.values()) > counts["pass"], counts


def test_answers_that_break_off_in_the_middle_are_asked_for_again(through):
    store, counts = through(seldom({"cut": 0.3}, seed=1))
    data = os.urandom(1_000_000)
    for number in range(10):
        store.put(f"data/save/{number}", [memoryview(data)])
        assert store.get(f"data/save/{number}") == data
        assert b"".join(bytes(part) for part in store.read_back(f"data/save/{number}", 2**18)) == data
        assert store.list("data/") == {f"data/save/{n}": len(data) for n in range(number + 1)}
    assert counts["cut"] > 10, counts


def test_an_upload_whose_last_answer_is_lost_has_arrived(through):
    store, counts = through(
        lambda request: "cut" if "uploadId" in request.path and request.command == "POST" else "pass"
    )
    data = os.urandom(20_000_000)
    store.put("data/save/file", [memoryview(data)])
    assert store.get("data/save/file") == data
    assert counts["cut"] > 0


def test_saves_commits_and_restores_come_through_a_network_that_loses_requests(server, bucket, monkeypatch):
    tally, numbers, faults = Tally(), count(1), cycle(FAULTS)
    with proxy(server, lambda _: next(faults) if next(numbers) % 10 == 0 else "pass") as (port, counts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment(port)["AWS_ENDPOINT_URL"])
        run = Run(HurriedStore(bucket, tally, request_seconds=1.0), tally, items=1000)
        run.go_on(lambda: counts.total() >= 100)
    assert tally.troubles == []
    assert tally.restores > 1
    assert min(counts[fault] for fault in FAULTS) > 0, counts


def test_a_server_that_is_gone_gives_no_answer_within_a_bounded_time(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(object_store, "RETRIES", 1)
    store = open_store(bucket)
    assert store.create("log/1", b"x") is Created.UNKNOWN
    with pytest.raises(StoreError, match=r"get log/1: .*error sending request"):
        store.get("log/1")
    with pytest.raises(StoreError, match="error sending request"):
        probe(store)


def test_wrong_credentials_are_named_and_not_shown(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    with pytest.raises(StoreUnwritable, match="403 Forbidden SignatureDoesNotMatch") as raised:
        open_store(bucket).create("log/1", b"x")
    assert "not-this-one" not in str(raised.value)


def test_a_url_without_a_bucket_is_refused():
    with pytest.raises(StoreError, match="open"):
        open_store("s3://")
