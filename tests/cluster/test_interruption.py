"""What clouds say before they take a machine away, from metadata servers on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.metadata_server import SECONDS, metadata_server
from support.runs_for_tests import REPOSITORY, wait_for

from cluster import interruption
from cluster.interruption import Azure, ComputeEngine, Ec2, this_cloud, watch_cloud
from cluster.preemption import Notice

CLOUDS = {
    Ec2: "AWS will terminate this spot instance",
    ComputeEngine: "Google Cloud preempts this machine",
    Azure: "Azure will take this machine away: Preempt",
}


@pytest.fixture
def server():
    with metadata_server() as server:
        yield server


@pytest.mark.parametrize("cloud", CLOUDS)
def test_an_interruption_becomes_the_notice(tmp_path, server, cloud):
    notice = Notice(tmp_path / "notice")
    watch_cloud(cloud(server.url), notice, pause_seconds=0.05)
    wait_for(lambda: server.requests > 2 or cloud is ComputeEngine, "some looks that find nothing")
    assert not notice.is_given()
    server.interrupt()
    wait_for(notice.is_given, "the notice", timeout=60)
    assert re.fullmatch(rf"{CLOUDS[cloud]} \(in (29|30) s\)", notice.reason())
    assert SECONDS - 3 < notice.end().seconds_left() <= SECONDS


def test_a_recommendation_to_rebalance_asks_for_a_save_and_is_no_notice(tmp_path, server):
    notice = Notice(tmp_path / "notice")
    server.is_at_risk = True
    watch_cloud(Ec2(server.url), notice, pause_seconds=0.05)
    wait_for(notice.is_asked_to_save, "the request", timeout=60)
    assert not notice.is_given()
    server.interrupt()
    wait_for(notice.is_given, "the notice", timeout=60)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("mood", ["hang", "drop", 401, 404, 500])
def test_a_service_in_trouble_is_asked_again(tmp_path, server, monkeypatch, cloud, mood):
    monkeypatch.setattr(interruption, "_REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(interruption, "_FIRST_AZURE_SECONDS", 0.2)
    notice = Notice(tmp_path / "notice")
    server.mood = mood
    server.interrupt()
    watch_cloud(cloud(server.url), notice, pause_seconds=0.05)
    wait_for(lambda: server.requests >= 3, "further requests")
    assert not notice.is_given()
    server.mood = "well"
    wait_for(notice.is_given, "the notice", timeout=60)


def test_a_token_that_is_too_old_is_replaced(server):
    cloud = Ec2(server.url)
    assert cloud.interruption() is None
    server.tokens.clear()
    server.interrupt()
    assert cloud.interruption().why == CLOUDS[Ec2]


def test_metadata_goes_through_no_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.interrupt()
    assert Ec2(server.url).interruption().why == CLOUDS[Ec2]


@pytest.mark.parametrize(
    ("vendor", "cloud"),
    [("Amazon EC2", Ec2), ("Google", ComputeEngine), ("Microsoft Corporation", Azure), ("LENOVO", type(None))],
)
def test_the_firmware_tells_whose_machine_this_is(tmp_path, monkeypatch, vendor, cloud):
    monkeypatch.setattr(interruption, "_FIRMWARE", tmp_path)
    (tmp_path / "sys_vendor").write_text(f"{vendor}\n")
    assert type(this_cloud()) is cloud
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert not isinstance(this_cloud(), Ec2)


NODE = """
import sys
from pathlib import Path
from cluster import interruption, node
interruption._FIRMWARE = Path(sys.argv[1])
sys.exit(node.main([sys.executable, "-c", sys.argv[2]]))
"""
TRAINER = """
import time
from cluster.preemption import Notice
notice = Notice.from_environment()
while not notice.is_given():
    time.sleep(0.05)
print(notice.reason())
"""


def test_the_node_process_of_a_cloud_machine_watches_for_it(tmp_path: Path, server):
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    environment = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(tmp_path), TRAINER], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    wait_for(lambda: server.requests, "the first look")
    server.interrupt()
    started = time.monotonic()
    said, _ = node.communicate(timeout=300)
    assert node.returncode == 0
    assert said.startswith(f"{CLOUDS[Ec2]} (in ")
    assert time.monotonic() - started < 10
